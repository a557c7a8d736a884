"""Questions of benchmarks to a judge, through the project's client: limited, cached, retried.

The cache is all that is kept of a start that was killed: what is in it is not asked again.
"""

import asyncio
import dataclasses
import re
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.images import BadImageError, Pixels, open_image
from balcap_jax.errors import UserError
from balcap_jax.evaluation.prompts import Prompts
from balcap_jax.rewards.llm.accounting import Ledger, listing
from balcap_jax.rewards.llm.cached import CachedClient
from balcap_jax.rewards.llm.client import CallFailed
from balcap_jax.rewards.llm.images import SentImage, make_ready
from balcap_jax.rewards.llm.loop_thread import LoopThread
from balcap_jax.rewards.llm.once import Once
from balcap_jax.rewards.llm.request_form import Sampling
from balcap_jax.runs.progress import training_progress

T = TypeVar("T")

_FOREVER = 1e9  # seconds
_PIXELS = Pixels(most=4096 * 4096)  # bounds the memory of images that are under way
_BLIND = re.compile(r"image|vision|multi-?modal|content.?(type|part)", re.I)
_NOBODY = 16  # failures from the start on, or one after another, after which nobody is there
_LATE = "not answered within judge.deadline"


class Failure(NamedTuple):
    """In place of what the judge gave no answer for."""

    reason: str


class Spent(NamedTuple):
    """What asking took.

    Attributes:
      ledger: see `Ledger.lap`.
      seconds: of the wall clock.
      cpu_ms: of this process, per call that was made.
    """

    ledger: dict[str, float]
    seconds: float
    cpu_ms: float


class Asker:
    """Asks one model with the prompts of one benchmark.

    Raises:
      UserError: no model is named, `openai` is not installed, or the cache cannot be used.
    """

    def __init__(self, judge: JudgeConfig, prompts: Prompts, *, benchmark: str):
        # The benchmarks ask for the form of an answer in words.
        judge = dataclasses.replace(judge, structured="none")
        self.judge, self.prompts = judge, prompts
        self._benchmark = benchmark
        self._ledger = Ledger(
            prompt_price=judge.prompt_price, completion_price=judge.completion_price
        )
        self._client = CachedClient(judge, self._ledger, topic=benchmark, version=prompts.version)
        self._loop = LoopThread()
        self._images: Once[SentImage] = Once(keep=False)
        self._stop: UserError | None = None
        self._ended: Counter[bool] = Counter()  # items by whether they have an answer
        self._in_a_row = 0
        self.failures: Counter[str] = Counter()

    def all(self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T | Failure]:
        """The results of all jobs, at most `judge.concurrency` at once, in their order.

        Raises:
          UserError: nobody answers, the judge takes no images, or the cache is to be replayed and
            lacks an answer; what was answered is kept.
        """
        with training_progress(self._benchmark, len(jobs)) as advance:
            found = self._loop.run(lambda: self._gathered(jobs, advance))
        if self._stop is not None:
            raise self._stop
        assert found is not None
        self._check_failures(found)
        return found

    def spent(self, *, since: tuple[float, float]) -> Spent:
        """What was spent since `clocks()`; the ledger starts anew."""
        ledger = self._ledger.lap()
        wall, cpu = (now - then for now, then in zip(clocks(), since, strict=True))
        return Spent(ledger, wall, 1000 * cpu / max(ledger["calls"], 1))

    def close(self) -> None:
        """Closes connections and cache; twice is fine."""
        self._loop.close(self._client.close)
        self._client.cache.close()

    # ---- one question

    async def ask(
        self,
        part: str,
        texts: tuple[str, str],
        check: Callable[[str], T],
        *,
        sampling: Sampling,
        image: Path | None = None,
    ) -> T:
        """The checked answer, from the cache or the model.

        Args:
          part: name of the question.
          texts: of the system and of the user.
          check: raises BadAnswer for what is asked for again.
          image: stands before the user's text.

        Raises:
          CallFailed: there is none.
        """
        sent = None if image is None else await self._image(image)
        return await self._client.ask(part, texts, check, sampling=sampling, image=sent)

    async def _image(self, path: Path) -> SentImage:
        """The image, made ready beside the loop; once while several questions wait for it."""
        return await self._images(
            path, lambda: asyncio.to_thread(_made_ready, path, self.judge.image_side)
        )

    # ---- many

    async def _gathered(
        self,
        jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]],
        advance: Callable[[int, str], None],
    ) -> list[T | Failure]:
        results: list[T | Failure] = [Failure("not asked")] * len(jobs)
        waiting = iter(enumerate(jobs))

        async def work() -> None:
            for place, job in waiting:
                if self._stop is not None:
                    return
                results[place] = await self._one(job)
                lost = self._ended[False]
                advance(self._ended.total(), f"{lost} without an answer" if lost else "")

        self._ended.clear()
        self._in_a_row = 0
        tasks = [asyncio.ensure_future(work()) for _ in range(min(self._at_once, len(jobs)))]
        try:
            await self._loop.wait(tasks, timeout=_FOREVER)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.cancel()
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end
        return results

    @property
    def _at_once(self) -> int:
        return self.judge.concurrency

    async def _one(self, job: Callable[[], Coroutine[Any, Any, T]]) -> T | Failure:
        try:
            async with asyncio.timeout(self.judge.deadline):
                found: T | Failure = await job()
        except CallFailed as failed:
            found = Failure(str(failed))
        except TimeoutError:
            found = Failure(_LATE)
        except UserError as error:  # of an image, or the cache: nothing more is asked
            self._stop = self._stop or error
            return Failure(str(error))
        answered = not isinstance(found, Failure)
        self._ended[answered] += 1
        self._in_a_row = 0 if answered else self._in_a_row + 1
        if isinstance(found, Failure):
            self.failures[found.reason] += 1
            self._stop = self._stop or self._hopeless(found.reason)
        return found

    def _hopeless(self, reason: str) -> UserError | None:
        """Why there is no use in going on, if there is none."""
        if self.judge.replay:
            return None  # all that is missing is counted
        judge = f"judge.model={self.judge.model!r} at {self.judge.base_url}"
        if re.match(r"HTTP 4\d\d ['\"]", reason) and _BLIND.search(reason):
            return UserError(
                f"{judge} takes no images ({reason}), and {self._benchmark} shows them to the "
                "judge; name a multimodal model with --judge.model."
            )
        if self._in_a_row >= max(_NOBODY, self._at_once):
            return UserError(
                f"{judge} gave no answer {self._in_a_row} times in a row ({reason}); what was "
                "answered is kept: fix the server, its key or the judge.* settings, and give the "
                "same command again."
            )
        return None

    def _check_failures(self, found: Iterable[Any]) -> None:
        results = list(found)
        lost = sum(isinstance(item, Failure) for item in results)
        if not lost:
            return
        if self.judge.replay:
            raise UserError(
                f"judge.replay=True found no answer for {lost} of {len(results)} items in "
                f"{self.judge.cache}; ask the model, without --judge.replay."
            )
        if lost > self.judge.max_failure_share * len(results):
            raise UserError(
                f"{lost} of {len(results)} items of {self._benchmark} have no answer "
                f"({listing(self.failures)}), more than the share "
                f"judge.max_failure_share={self.judge.max_failure_share} that a result may lack; "
                "what was answered is kept: the same command asks for the others alone."
            )


def clocks() -> tuple[float, float]:
    """Seconds of the wall clock and of this process."""
    return time.monotonic(), time.process_time()


def today() -> str:
    """The date of a result (UTC)."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _made_ready(path: Path, side: int) -> SentImage:
    try:
        return make_ready(open_image(path, pixels=_PIXELS), side=side)
    except BadImageError as error:
        raise UserError(
            f"The image {path} cannot be shown to the judge ({error}); give a readable image file."
        ) from None
