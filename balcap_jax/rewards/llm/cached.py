"""Questions in words of their own to one model: cached, and equal ones asked once at a time.

The cache is all that is kept of a start that was killed: what is in it is not asked again.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.accounting import Ledger
from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.rewards.llm.cache import Cache, key_of
from balcap_jax.rewards.llm.client import CallFailed, Client
from balcap_jax.rewards.llm.images import SentImage
from balcap_jax.rewards.llm.limits import Clock, Sleep
from balcap_jax.rewards.llm.questions import Part
from balcap_jax.rewards.llm.request_form import Sampling

T = TypeVar("T")

_IN_WORDS: Mapping[str, Any] = {}  # the schema of an answer whose form the words ask for


class CachedClient:
    """Asks one model about one topic; used by one event loop.

    Args:
      judge: `structured` is used where a question has a schema.
      topic: what the questions are of: a benchmark, a reward. A part of every key.
      version: of the words of the questions; another one asks anew.
      clock, sleep: of seconds; tests give their own.

    Attributes:
      cache: of `judge.cache`; the caller closes it, after `close`.

    Raises:
      UserError: no model is named, `openai` is not installed, or the cache cannot be used.
    """

    def __init__(
        self,
        judge: JudgeConfig,
        ledger: Ledger,
        *,
        topic: str,
        version: str,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ):
        self.judge, self._ledger = judge, ledger
        self._topic, self._version = topic, version
        self._default = Sampling(judge.temperature, judge.max_tokens)
        # In this order: what cannot ask leaves no file behind.
        self._client = Client(judge, ledger, clock=clock, sleep=sleep)
        self.cache = Cache(judge.cache)
        self._under_way: dict[str, asyncio.Future] = {}

    async def ask(
        self,
        part: str,
        texts: tuple[str, str],
        check: Callable[[str], T],
        *,
        sampling: Sampling | None = None,
        image: SentImage | None = None,
        schema: Mapping[str, Any] = _IN_WORDS,
    ) -> T:
        """The checked answer, from the cache or the model.

        Args:
          part: name of the question.
          texts: of the system ("": there is none) and of the user.
          check: raises BadAnswer for what is asked for again.
          sampling: a part of the key, too; another seed is another answer. Default: by the settings
            of the judge, and warmer when an answer cannot be used, as one at temperature 0 would
            come again.
          image: stands before the user's text.
          schema: JSON schema of the answer; default: any text.

        Raises:
          CallFailed: there is none.
          UserError: the cache is to be replayed, and another program has locked it.
        """
        system, user = map(_sendable, texts)
        key = key_of(
            model=self.judge.model,
            version=self._version,
            part=f"{self._topic}/{part}",
            image=image.digest if image else None,
            side=self.judge.image_side if image else None,
            text=[system, user],
            sampling=(sampling or self._default)._asdict(),
        )
        stored = self.cache.get(key)
        if stored is not None:
            with suppress(BadAnswer):  # kept by a version that checked less, or damaged
                found = check(stored)
                self._ledger.cache_hit()
                return found
        if self.judge.replay and self.cache.locked:
            raise UserError(
                f"{self.judge.room}replay=True cannot read {self.judge.room}cache="
                f"{self.judge.cache}, which another program has locked; end that program, or copy "
                "the file and name the copy."
            )
        if self.judge.replay:
            raise CallFailed("missing")
        if key not in self._under_way:
            messages = _messages(system, user, image)
            question = Part(f"{self._topic}_{part}", "", dict(schema), frozenset())
            self._under_way[key] = asyncio.ensure_future(
                self._buy(
                    key, question, messages, check, sampling, image, replace=stored is not None
                )
            )
        try:
            return await asyncio.shield(self._under_way[key])
        finally:
            if (call := self._under_way.get(key)) is not None and call.done():
                del self._under_way[key]

    async def cancel(self) -> None:
        """Ends the calls that are under way."""
        calls = list(self._under_way.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        self._under_way.clear()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _buy(
        self,
        key: str,
        question: Part,
        messages: list[dict[str, Any]],
        check: Callable[[str], T],
        sampling: Sampling | None,
        image: SentImage | None,
        *,
        replace: bool,
    ) -> T:
        found, reply = await self._client.ask(
            question, messages, check, pixels=image.pixels if image else 0, sampling=sampling
        )
        self.cache.put(
            key,
            reply.text,
            part=question.name,
            model=self.judge.model,
            version=self._version,
            prompt_tokens=reply.tokens[0],
            completion_tokens=reply.tokens[1],
            replace=replace,
        )
        return found


def _messages(system: str, user: str, image: SentImage | None) -> list[dict[str, Any]]:
    content: Any = user
    if image is not None:
        shown = {"type": "image_url", "image_url": {"url": image.url, "detail": "high"}}
        content = [shown, {"type": "text", "text": user}]
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": content}]


def _sendable(text: str) -> str:
    """Half of a character cannot be sent."""
    return text.encode("utf-8", "replace").decode("utf-8")
