"""Calls to an OpenAI-compatible endpoint: limited in rate, retried, timed, counted.

The key is read from the environment and given to the client of `openai` alone. What a server says
goes into no message before the key is struck out of it: some repeat what they were sent.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm import causes
from balcap_jax.rewards.llm.accounting import Ledger
from balcap_jax.rewards.llm.answers import BadAnswer
from balcap_jax.rewards.llm.causes import Retry, Trouble
from balcap_jax.rewards.llm.limits import (
    Clock,
    Gate,
    Pace,
    Sleep,
    Slots,
    backoff_seconds,
    retry_after_seconds,
    share_of,
)
from balcap_jax.rewards.llm.questions import Part
from balcap_jax.rewards.llm.replies import ErrorReply, Reply, read
from balcap_jax.rewards.llm.reply_size import (
    ENCODINGS,
    MOST_BYTES,
    TooLargeError,
    read_in_bounds,
)
from balcap_jax.rewards.llm.request_form import RequestForm, Sampling
from balcap_jax.rewards.llm.server_words import ServerError, error_of, shown

T = TypeVar("T")
_log = logging.getLogger(__name__)

_NO_KEY = "none"  # the client insists on one; servers without keys ignore it
_TOKENS_OF_ANSWER = 400  # a guess, corrected when the answer is there
_PIXELS_PER_TOKEN = 784  # of an image, 28 x 28: a guess likewise
_DOUBLINGS = 2  # of judge.max_tokens, for answers that were cut


class CallFailed(Exception):  # noqa: N818
    """No usable answer after all retries; the message is the reason of the last failure."""


class _Plainer(Trouble):
    """A field of the request was refused; `form` is the one to try in its place."""

    def __init__(self, form: RequestForm, details: str, *, tokens: tuple[int, int]):
        super().__init__(causes.UNKNOWN_FIELD, details, tokens=tokens)
        self.form = form


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
            http_client=openai.DefaultAsyncHttpxClient(
                headers={"Accept-Encoding": ENCODINGS},
                event_hooks={"response": [read_in_bounds]},
            ),
        )
        self._slots = Slots(share_of(judge.concurrency))
        self._requests = Pace(judge.requests_per_minute, clock=clock, sleep=sleep)
        self._tokens = Pace(judge.tokens_per_minute, clock=clock, sleep=sleep)
        self._gate = Gate(clock=clock, sleep=sleep)
        self._rng = random.Random()  # of waiting times alone
        self._form = RequestForm.of(judge.structured)  # the best that the endpoint understands

    async def ask(
        self,
        part: Part,
        messages: list[dict[str, Any]],
        check: Callable[[str], T],
        *,
        pixels: int = 0,
        sampling: Sampling | None = None,
        ledger: Ledger | None = None,
        turn: int = 0,
    ) -> tuple[T, Reply]:
        """What `check` makes of the answer to `messages`, and the answer.

        Args:
          check: raises BadAnswer for an answer that cannot be used, which is then asked for again.
          pixels: of the image in the messages, to guess its tokens.
          sampling: in place of the settings of the judge; a question that is asked again keeps its
            temperature and gets another seed.
          ledger: that counts it; default: the one of the client.
          turn: see `Slots.one`.

        Raises:
          CallFailed: every try failed, or one failed in a way that no retry fixes.
        """
        # A loop and not tenacity: what is asked changes with the cause, and a pause that the server
        # asked for is no failed try.
        ledger = self._ledger if ledger is None else ledger
        form = self._form
        failed = different = cuts = 0
        while True:
            form = form.plainer(self._form)
            used = sampling or Sampling(
                max(self.judge.temperature, min(0.25 * different, 1.0)), self.judge.max_tokens
            )
            # A server that repeats itself would repeat the bad answer.
            seed = (used.seed or 0) + different if different else used.seed
            fields = form.fields(
                part,
                limit=used.max_tokens * 2**cuts,
                temperature=used.temperature,
                seed=seed,
                top_p=used.top_p,
            )
            try:
                reply = await self._send(
                    messages, fields, form, pixels=pixels, ledger=ledger, turn=turn
                )
                return _checked(reply, check), reply
            except _Plainer as refusal:  # no failed try: the forms have an end
                ledger.error(refusal.tokens)
                form = refusal.form
                continue
            except Trouble as caught:
                trouble = caught
            if trouble.cause.counted == causes.BAD_ANSWER:
                ledger.bad_answer()
            else:
                ledger.error(trouble.tokens)
            retry = trouble.cause.retry
            if retry is Retry.LATER and trouble.pause is not None:
                # The server is there and has said when: that is no failed try. The deadline of
                # the step ends the waiting.
                self._gate.close_for(max(trouble.pause, self.judge.backoff))
                continue
            failed += 1
            if (
                retry is Retry.NEVER
                or failed > self.judge.retries
                or (retry is Retry.LONGER and cuts == _DOUBLINGS)
            ):
                raise CallFailed(str(trouble))
            if retry is Retry.LATER:
                wait = backoff_seconds(failed - 1, first=self.judge.backoff, rng=self._rng)
                await self._sleep(wait)
            elif retry is Retry.LONGER:
                different += cuts > 0  # a model that goes round in circles needs more than room
                cuts += 1
            else:
                different += 1

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _send(
        self,
        messages: list[dict[str, Any]],
        fields: dict[str, Any],
        form: RequestForm,
        *,
        pixels: int,
        ledger: Ledger,
        turn: int,
    ) -> Reply:
        """One call, in its turn, timed and counted.

        Raises:
          Trouble: there is no answer.
        """
        guess = _letters(messages) / 4 + pixels / _PIXELS_PER_TOKEN + _TOKENS_OF_ANSWER
        async with self._slots.one(turn):
            await self._requests.take()
            await self._tokens.take(guess)
            await self._gate.wait()
            began = self._clock()
            try:
                async with asyncio.timeout(self.judge.timeout):  # a reply that trickles, too
                    reply = await self._create({"messages": messages} | fields, form)
            except TimeoutError:
                raise Trouble(causes.TIMEOUT) from None
        if used := sum(reply.tokens):
            self._tokens.correct(used - guess)
        ledger.call(seconds=self._clock() - began, tokens=reply.tokens)
        self._remember(form)
        return reply

    async def _create(self, asked: dict[str, Any], form: RequestForm) -> Reply:
        """One call.

        Raises:
          Trouble: the server cannot be reached, refuses, or sends no chat completion.
        """
        openai = self._openai
        try:
            # As extra_body: the client would walk through every message and schema, which takes a
            # third of the time of a call. Raw: what a server sends is checked by us alone.
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self.judge.model, messages=[], extra_body=asked
            )
            return read(raw.text, key=self._key)
        except Trouble:
            raise
        except ErrorReply as reply:
            raise self._refusal(
                200, reply.error, raw.headers, form, asked, tokens=reply.tokens
            ) from None
        except openai.APITimeoutError:
            raise Trouble(causes.TIMEOUT) from None
        except (openai.APIConnectionError, TooLargeError) as error:
            # Before its version 3 the client makes errors of connections of all others.
            if isinstance(error.__cause__ or error, TooLargeError):
                raise Trouble(causes.TOO_LARGE, f"{MOST_BYTES >> 20} MB") from None
            raise Trouble(causes.NO_CONNECTION) from None
        except openai.APIStatusError as error:
            found = error_of(error.response.text)
            headers = error.response.headers
            raise self._refusal(error.status_code, found, headers, form, asked) from None
        except Exception as error:  # of the client or a library below it: a call that failed
            raise Trouble(causes.CLIENT, type(error).__name__) from None

    def _refusal(
        self,
        status: int,
        error: ServerError,
        headers: Any,
        form: RequestForm,
        asked: dict[str, Any],
        *,
        tokens: tuple[int, int] = (0, 0),
    ) -> Trouble:
        """The trouble that an error means."""
        named = error.status or status
        cause = causes.of_error(named, error.code)
        reason = f"HTTP {named}"
        if status == 200:
            reason += " (an error in a reply of status 200)" if named != 200 else " with an error"
        if status in causes.EXPLAINED_STATUS or named in causes.EXPLAINED_STATUS:
            reason += f" {shown(error.words, key=self._key)!r}"
        if 300 <= status < 400 and (target := headers.get("location")):
            reason += f", which sends on to {shown(target, key=self._key)!r}"
        plainer = form.refused(error.words, param=error.param, status=named, seeded="seed" in asked)
        if plainer is not None:
            return _Plainer(plainer, reason, tokens=tokens)
        pause = retry_after_seconds(headers) if cause.retry is Retry.LATER else None
        return Trouble(cause, reason, pause=pause, tokens=tokens)

    def _remember(self, form: RequestForm) -> None:
        """Keeps a form that worked, for all calls to come."""
        form = form.plainer(self._form)
        if changes := form.changes(self._form):
            _log.warning("%s: %s", self.judge.base_url, "; ".join(changes))
        self._form = form


def _checked(reply: Reply, check: Callable[[str], T]) -> T:
    """What `check` makes of a reply.

    Raises:
      Trouble: it is no usable answer.
    """
    try:
        return check(reply.text)
    except BadAnswer as error:
        raise reply.doubt or Trouble(causes.UNUSABLE, str(error)) from None


def _key(name: str) -> str:
    """The key in the environment variable `name`, "" where there is none."""
    key = os.environ.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):  # else it would stand in the error of a header
        raise UserError(
            f"The key in the environment variable {name} holds characters that no key has; "
            "set it again."
        )
    return key


def _letters(messages: list[dict[str, Any]]) -> int:
    """Characters of all texts of a request."""
    count = 0
    for message in messages:
        content = message["content"]
        texts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        count += sum(map(len, texts))
    return count
