"""A model's answers: from the cache, or asked for once and kept there."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.accounting import Ledger
from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.rewards.llm.cache import Cache
from balcap_jax.rewards.llm.client import CallFailed, Client
from balcap_jax.rewards.llm.limits import Clock, Sleep
from balcap_jax.rewards.llm.once import Once
from balcap_jax.rewards.llm.questions import Part
from balcap_jax.rewards.llm.request_form import Sampling

T = TypeVar("T")


class StoredAnswers:
    """The model of `judge` behind `judge.cache`; used by one event loop.

    Args:
      version: of the words of the questions, kept with each answer.
      clock, sleep: of seconds; tests give their own.

    Attributes:
      cache: the caller closes it, after `close`.

    Raises:
      UserError: no model is named, `openai` is not installed, or the cache cannot be used.
    """

    def __init__(
        self,
        judge: JudgeConfig,
        ledger: Ledger,
        *,
        version: str,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ):
        self._judge, self._ledger, self._version = judge, ledger, version
        # In this order: what cannot ask leaves no file behind.
        self._client = Client(judge, ledger, clock=clock, sleep=sleep)
        self.cache = Cache(judge.cache)

    async def get(
        self,
        key: str,
        part: Part,
        messages: Callable[[], list[dict[str, Any]]],
        check: Callable[[str], T],
        *,
        once: Once[T],
        missing: str = "missing",
        sampling: Sampling | None = None,
        pixels: int = 0,
        ledger: Ledger | None = None,
        turn: int = 0,
    ) -> T:
        """The checked answer.

        Args:
          key: of the cache.
          messages: makes the request, if there is one.
          check: raises BadAnswer for what is asked for again.
          once: the calls under way; equal keys share one.
          missing: why there is no answer where the cache is replayed and lacks it.
          sampling, pixels, turn: see `Client.ask`.
          ledger: that counts it; default: the one that all share.

        Raises:
          CallFailed: there is none.
          UserError: the cache is to be replayed, and another program has locked it.
        """
        ledger = self._ledger if ledger is None else ledger
        stored = self.cache.get(key)
        if stored is not None:
            with suppress(BadAnswer):  # kept by a version that checked less, or damaged
                found = check(stored)
                ledger.cache_hit()
                return found
        if self._judge.replay:
            self._check_readable()
            raise CallFailed(missing)

        async def bought() -> T:
            found, reply = await self._client.ask(
                part,
                messages(),
                check,
                pixels=pixels,
                sampling=sampling,
                ledger=ledger,
                turn=turn,
            )
            self.cache.put(
                key,
                reply.text,
                part=part.name,
                model=self._judge.model,
                version=self._version,
                prompt_tokens=reply.tokens[0],
                completion_tokens=reply.tokens[1],
                replace=stored is not None,
            )
            return found

        return await once(key, bought)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def _check_readable(self) -> None:
        judge = self._judge
        if self.cache.locked:
            raise UserError(
                f"{judge.room}replay=True cannot read {judge.room}cache={judge.cache}, which "
                "another program has locked; end that program, or copy the file and name the copy."
            )
