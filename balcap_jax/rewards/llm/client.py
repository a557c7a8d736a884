"""Calls to an OpenAI-compatible endpoint: limited in rate, retried, timed, counted.

The key is read from the environment and given to the client of `openai` alone. What a server says
goes into no message before the key is struck out of it: some repeat what they were sent.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.accounting import Ledger
from balcap_jax.rewards.llm.answers import BadAnswer
from balcap_jax.rewards.llm.limits import (
    Clock,
    Gate,
    Pace,
    Sleep,
    backoff_seconds,
    retry_after_seconds,
    share_of,
)
from balcap_jax.rewards.llm.prompts import Part, response_format

T = TypeVar("T")

_NO_KEY = "none"  # the client insists on one; servers without keys ignore it
_RETRIED_STATUS = (408, 409, 425, 429)  # and all from 500 on
_EXPLAINED_STATUS = (400, 404, 413, 422)  # where the server's words help to fix the request
_TOKENS_OF_ANSWER = 400  # a guess, corrected when the answer is there
_PIXELS_PER_TOKEN = 784  # of an image, 28 x 28: a guess likewise


class CallFailed(Exception):  # noqa: N818
    """No usable answer after all retries; the message is the reason of the last failure."""


class Reply(NamedTuple):
    """An answer and what it took."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class _Trouble(Exception):  # noqa: N818
    """One call failed.

    Attributes:
      again: whether it may go better the next time.
      pause: the seconds that the server asked to wait.
    """

    def __init__(self, reason: str, *, again: bool = True, pause: float | None = None):
        super().__init__(reason)
        self.again, self.pause = again, pause


class Client:
    """Asks one model; used by one event loop.

    Args:
      clock, sleep: of seconds; tests give their own.

    Raises:
      UserError: no model is named, or the `openai` package is not installed.
    """

    def __init__(
        self,
        judge: JudgeConfig,
        ledger: Ledger,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ):
        if not judge.model:
            raise UserError(
                f"judge.model='' names no model to ask at {judge.base_url}; "
                "set --judge.model to the name that the server gives it."
            )
        try:
            import openai  # noqa: PLC0415  a second, and an extra
        except ImportError:
            raise UserError(
                "judge.kind='llm' needs the package openai, which is not installed; "
                "run `pip install 'balcap_jax[judge]'`."
            ) from None
        self._openai = openai
        self.judge, self._ledger, self._clock, self._sleep = judge, ledger, clock, sleep
        self._key = _key(judge.key_env)
        self._client = openai.AsyncOpenAI(
            base_url=judge.base_url,
            api_key=self._key or _NO_KEY,
            timeout=judge.timeout,
            max_retries=0,  # retries are ours: they know the deadline and are counted
        )
        self._slots = asyncio.Semaphore(share_of(judge.concurrency))
        self._requests = Pace(judge.requests_per_minute, clock=clock, sleep=sleep)
        self._tokens = Pace(judge.tokens_per_minute, clock=clock, sleep=sleep)
        self._gate = Gate(clock=clock, sleep=sleep)
        self._rng = random.Random()  # of waiting times alone

    async def ask(
        self,
        part: Part,
        messages: list[dict[str, Any]],
        check: Callable[[str], T],
        *,
        pixels: int = 0,
    ) -> tuple[T, Reply]:
        """What `check` makes of the answer to `messages`, and the answer.

        Args:
          check: raises BadAnswer for an answer that cannot be used, which is then asked for again.
          pixels: of the image in the messages, to guess its tokens.

        Raises:
          CallFailed: every try failed, or one failed in a way that no retry fixes.
        """
        attempt = 0
        bad_answers = 0
        while True:
            try:
                reply = await self._send(part, messages, bad_answers=bad_answers, pixels=pixels)
                return check(reply.text), reply
            except BadAnswer as error:
                self._ledger.bad_answer()
                reason, wait = f"an unusable answer: {error}", 0.0
                bad_answers += 1
            except _Trouble as trouble:
                self._ledger.error()
                reason = str(trouble)
                if not trouble.again:
                    raise CallFailed(reason) from None
                if trouble.pause is not None:
                    # The server is there and has said when: that is no failed try. The deadline of
                    # the step ends the waiting.
                    self._gate.close_for(max(trouble.pause, self.judge.backoff))
                    continue
                wait = backoff_seconds(attempt, first=self.judge.backoff, rng=self._rng)
            attempt += 1
            if attempt > self.judge.retries:
                raise CallFailed(reason)
            if wait:
                await self._sleep(wait)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _send(
        self, part: Part, messages: list[dict[str, Any]], *, bad_answers: int, pixels: int
    ) -> Reply:
        guess = _letters(messages) / 4 + pixels / _PIXELS_PER_TOKEN + _TOKENS_OF_ANSWER
        async with self._slots:
            await self._requests.take()
            await self._tokens.take(guess)
            await self._gate.wait()
            began = self._clock()
            try:
                async with asyncio.timeout(self.judge.timeout):  # a reply that trickles, too
                    reply = await self._create(part, messages, bad_answers=bad_answers)
            except TimeoutError:
                raise _Trouble("timeout") from None
        used = reply.prompt_tokens + reply.completion_tokens
        if used:
            self._tokens.correct(used - guess)
        self._ledger.call(
            seconds=self._clock() - began,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
        )
        return reply

    async def _create(
        self, part: Part, messages: list[dict[str, Any]], *, bad_answers: int
    ) -> Reply:
        """One call.

        Raises:
          _Trouble: the server cannot be reached, or refuses.
          BadAnswer: what it sent is no whole chat completion.
        """
        judge, openai = self.judge, self._openai
        asked: dict[str, Any] = {
            "messages": messages,
            "max_completion_tokens": judge.max_tokens,
            "temperature": judge.temperature,
        }
        if (form := response_format(part, structured=judge.structured)) is not None:
            asked["response_format"] = form
        if bad_answers:  # a server that repeats itself would repeat the unusable answer
            asked["seed"] = bad_answers
            asked["temperature"] = max(judge.temperature, min(0.25 * bad_answers, 1.0))
        try:
            # As extra_body: the client would walk through every message and schema, which takes a
            # third of the time of a call. Raw: what a server sends is checked by us alone.
            raw = await self._client.chat.completions.with_raw_response.create(
                model=judge.model, messages=[], extra_body=asked
            )
            return _read(raw.text)
        except openai.APITimeoutError:
            raise _Trouble("timeout") from None
        except openai.APIConnectionError:
            raise _Trouble("no connection, or a broken one") from None
        except openai.APIStatusError as error:
            raise self._refusal(error.status_code, error.response) from None
        except openai.OpenAIError as error:
            raise _Trouble(type(error).__name__) from None

    def _refusal(self, status: int, response: Any) -> _Trouble:
        reason = f"HTTP {status}"
        if status in _EXPLAINED_STATUS:
            reason += f" {self._without_key(response.text)!r}"
        again = status in _RETRIED_STATUS or status >= 500
        pause = retry_after_seconds(response.headers) if again else None
        return _Trouble(reason, again=again, pause=pause)

    def _without_key(self, text: str) -> str:
        """The server's words, short, on one line, and without the key."""
        text = " ".join(text.split())
        if self._key:
            text = text.replace(self._key, "***")
        return text[:200]


def _key(name: str) -> str:
    """The key in the environment variable `name`, "" where there is none."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):  # else it would stand in the error of a header
        raise UserError(
            f"The key in the environment variable {name} holds characters that no key has; "
            "set it again."
        )
    return key


def _read(body: str) -> Reply:
    """The answer in a chat completion.

    Raises:
      BadAnswer: it is none, or not whole.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        text, ended = choice["message"]["content"], choice.get("finish_reason")
        usage = completion.get("usage") or {}
        counts = [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise BadAnswer("a reply that is no chat completion") from None
    if not isinstance(text, str) or not all(isinstance(count, int) for count in counts):
        raise BadAnswer("a reply without a text")
    if ended == "length":
        raise BadAnswer("longer than judge.max_tokens")
    return Reply(text, *counts)


def _letters(messages: list[dict[str, Any]]) -> int:
    """Characters of all texts of a request."""
    count = 0
    for message in messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        count += sum(map(len, texts))
    return count
