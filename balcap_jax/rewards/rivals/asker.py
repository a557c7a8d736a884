"""The model of `reward.judge`, asked about a batch of captions."""

import asyncio
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.accounting import Ledger, listing
from balcap_jax.rewards.llm.cached import CachedClient
from balcap_jax.rewards.llm.images import ReadyImages, SentImage
from balcap_jax.rewards.llm.limits import Clock, Sleep
from balcap_jax.rewards.llm.loop_thread import LoopThread
from balcap_jax.rewards.llm.settled import CLOSED, settle

T = TypeVar("T")
Job = Callable[[], Coroutine[Any, Any, T]]
_log = logging.getLogger(__name__)


class Asker:
    """Calls for rewards: limited, retried, counted, ended by the deadline of the step.

    Args:
      judge: the settings; of kind "llm".
      clock, sleep: of seconds; tests give their own.

    Attributes:
      failures: how often each reason was why a job has no answer; the caller clears it.
    """

    def __init__(
        self, judge: JudgeConfig, *, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep
    ):
        self.judge = judge
        self._clock, self._sleep = clock, sleep
        self._ledger = Ledger(
            prompt_price=judge.prompt_price, completion_price=judge.completion_price
        )
        self._clients: list[CachedClient] = []
        self._images = ReadyImages(judge.image_side)
        self._loop = LoopThread()
        self.failures: Counter[str] = Counter()

    def client(
        self, topic: str, *, version: str, model: str = "", judge: JudgeConfig | None = None
    ) -> CachedClient:
        """Where the questions of one reward are asked.

        Args:
          topic, version: see `CachedClient`.
          model: in place of that of the settings, at the same endpoint.
          judge: settings of another endpoint.

        Raises:
          UserError: `openai` is not installed, or the cache cannot be used.
        """
        judge = self.judge if judge is None else judge
        judge = dataclasses.replace(judge, model=model) if model else judge
        made = CachedClient(
            judge,
            self._ledger,
            topic=topic,
            version=version,
            clock=self._clock,
            sleep=self._sleep,
        )
        self._clients.append(made)
        return made

    def all(self, jobs: Sequence["Job[T]"], *, what: str) -> list[T | None]:
        """The results of all jobs, which run at once; None for what failed or was late.

        Args:
          what: is missing where a job fails, for messages.

        Raises:
          UserError: the cache cannot be used, or is to be replayed and lacks an answer.
        """
        found = self._loop.run(lambda: self._gather(jobs, what=what))
        if found is None:  # closed before it began
            self._ledger.failures(len(jobs))
            self.failures[CLOSED] += len(jobs)
            return [None] * len(jobs)
        return found

    async def image(self, example: Example) -> SentImage:
        """The example's image, made ready once; the examples of the batch keep it alive."""
        return await self._images.of(example.image)

    def lap(self) -> dict[str, float]:
        """What was spent since the last lap; see `Ledger.lap`."""
        return self._ledger.lap()

    def close(self) -> None:
        """Ends what is under way and closes connections and caches; twice is fine."""
        self._loop.close(self._close_clients)
        for client in self._clients:
            client.cache.close()

    async def _close_clients(self) -> None:
        for client in self._clients:
            await client.close()

    async def _gather(self, jobs: Sequence["Job[T]"], *, what: str) -> list[T | None]:
        tasks = [asyncio.ensure_future(job()) for job in jobs]
        found, failures = await settle(
            self._loop, tasks, deadline=self.judge.deadline, end=self._cancel
        )
        self._ledger.failures(failures.total())
        self.failures += failures
        if failures and self.judge.replay and not self._loop.closed:
            raise UserError(
                f"{self.judge.room}replay=True found no {what} {failures.total()} of {len(jobs)} "
                f"in {self.judge.cache}; ask the model, without it."
            )
        if failures:
            _log.warning("no %s %d of %d: %s", what, failures.total(), len(jobs), listing(failures))
        return found

    async def _cancel(self) -> None:
        for client in self._clients:
            await client.cancel()
        await self._images.end()
