"""The judge: a multimodal model is asked about every caption; what fails gets no verdict."""

import asyncio
import itertools
import logging
import time
import unicodedata
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm import answers, prompts
from balcap_jax.rewards.llm.accounting import Ledger, listing
from balcap_jax.rewards.llm.cache import key_of
from balcap_jax.rewards.llm.images import ReadyImages, SentImage
from balcap_jax.rewards.llm.limits import Clock, Sleep
from balcap_jax.rewards.llm.loop_thread import LoopThread
from balcap_jax.rewards.llm.once import Once
from balcap_jax.rewards.llm.questions import (
    JOINT,
    JOINT_CAPTION_FIRST,
    RECAPTION,
    SEPARATE,
    UNITS,
    VERSION,
    Part,
)
from balcap_jax.rewards.llm.settled import CLOSED, settle
from balcap_jax.rewards.llm.stored_answers import StoredAnswers
from balcap_jax.rewards.llm.stored_units import StoredUnits
from balcap_jax.rewards.verdicts import Judgement, Verdict

T = TypeVar("T")
_log = logging.getLogger(__name__)

_VERDICT = "verdict for"  # what is missing where a judgement failed, for messages
_EMPTY = (0.0, 0.0, 0.0)  # the scores of a caption without a word, which no model need be asked


class LLMJudge:
    """Judges captions of any image with a reference.

    Args:
      judge: the settings; `judge.kind` is not looked at.
      stored: reference units that were made before.
      clock, sleep: of seconds; tests give their own.

    Raises:
      UserError: no model is named, `openai` is not installed, or the cache cannot be used.
    """

    def __init__(
        self,
        judge: JudgeConfig,
        *,
        stored: StoredUnits | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ):
        self.judge = judge
        self._stored = stored
        self._ledger = self._new_ledger()
        self._answers = StoredAnswers(
            judge, self._ledger, version=VERSION, clock=clock, sleep=sleep
        )
        self._say_what_is_old()
        self._units: dict[str, tuple[str, ...]] = {}  # by reference
        self._loop = LoopThread()
        self._numbers = itertools.count()  # of batches, in the order of their beginning
        self._over: asyncio.Event | None = None  # of the batch that began last
        self._batches: list[_Batch] = []  # under way
        # Why captions of the last batch have no verdict, the most frequent reasons first.
        self.last_failures = ""

    def _new_ledger(self) -> Ledger:
        return Ledger(
            prompt_price=self.judge.prompt_price, completion_price=self.judge.completion_price
        )

    def _say_what_is_old(self) -> None:
        old = self._answers.cache.versions()
        if old and VERSION not in old:
            _log.warning(
                "judge.cache=%s holds answers to prompts of version %s, which are not used beside "
                "those of version %s: its questions are asked anew",
                self.judge.cache,
                ", ".join(sorted(old)),
                VERSION,
            )

    # ---- the protocol

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """One verdict per pair, None where no usable answer came before the deadline.

        Raises:
          UserError: the cache cannot be used, or is to be replayed and lacks an answer.
        """
        return self._all(self._verdicts(examples, captions), what=_VERDICT)

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """The units of the reference: stored with the data, or made now.

        Raises:
          UserError: they cannot be made, with the reason.
        """
        if (known := self._known_units(example)) is not None:
            return known
        job = lambda batch: self._reference_units(batch, example)  # noqa: E731
        units = self._all([job], what="units for", warn=False)[0]  # the error says it
        if units is None:
            raise UserError(
                f"judge.model={self.judge.model!r} at {self.judge.base_url} made no "
                f"reference units of example {example.id!r}: {self.last_failures}; "
                f"{self.remedy()}."
            )
        return units

    def remedy(self) -> str:
        """What fixes a judge that does not answer."""
        if self.last_failures.startswith(("HTTP 401", "HTTP 403")):
            return f"put the server's key into the environment variable {self.judge.key_env}"
        if self.last_failures.startswith("HTTP 404"):
            return "give --judge.model and --judge.base-url as the server has them"
        return "start the server, or fix the judge.* settings"

    # ---- beyond it

    def start(self, examples: Sequence[Example], captions: Sequence[str]) -> Future[Judgement]:
        """Begins to judge and returns at once; errors as of a call come out of the result.

        Calls of batches that were started earlier go first, and the deadline of a batch counts from
        the end of the one before it.
        """
        return self._begun(self._verdicts(examples, captions))

    def expect(
        self, examples: Sequence[Example], captions: Sequence[Future[str]]
    ) -> Future[Judgement]:
        """As `start`, of captions to come: each is judged as soon as it is told, what is asked of
        the references at once. The deadline counts from the last one, too.
        """
        return self._begun(self._verdicts(examples, captions), coming=captions)

    def _begun(
        self, jobs: Sequence["_Job[Verdict]"], *, coming: Sequence[Future[str]] = ()
    ) -> Future[Judgement]:
        batch = self._batch(self._new_ledger())

        async def judged() -> Judgement:
            verdicts = await self._gather(batch, jobs, what=_VERDICT, warn=True, coming=coming)
            return Judgement(verdicts, batch.ledger.lap(), batch.reasons)

        found = self._loop.start(judged)
        if found is None:  # closed before it began
            batch.lost(len(jobs))
            found = Future()
            found.set_result(Judgement([None] * len(jobs), batch.ledger.lap(), batch.reasons))
        return found

    def _verdicts(
        self, examples: Sequence[Example], captions: Sequence[str | Future[str]]
    ) -> list["_Job"]:
        return [
            lambda batch, e=example, c=caption: self._verdict(batch, e, c)
            for example, caption in zip(examples, captions, strict=True)
        ]

    def units_of(self, examples: Sequence[Example]) -> list[tuple[str, ...] | None]:
        """The reference units of many examples at once; None where they could not be made."""
        jobs = [lambda batch, e=example: self._reference_units(batch, e) for example in examples]
        return self._all(jobs, what="units for")

    def captions_of(self, examples: Sequence[Example]) -> list[str | None]:
        """A better reference for each example; None where none could be made."""
        jobs = [lambda batch, e=example: self._caption(batch, e) for example in examples]
        return self._all(jobs, what="caption for")

    def lap(self) -> dict[str, float]:
        """What was spent since the last lap; see `Ledger.lap`."""
        return self._ledger.lap()

    def close(self) -> None:
        """Cancels what is under way and closes connections and cache; twice is fine.

        A call that another thread waits for returns at once what is answered, None for the rest.
        """
        self._loop.close(self._answers.close)
        self._answers.cache.close()

    # ---- one batch

    def _all(self, jobs: Sequence["_Job[T]"], *, what: str, warn: bool = True) -> list[T | None]:
        batch = self._batch(self._ledger)
        try:
            answers = self._loop.run(lambda: self._gather(batch, jobs, what=what, warn=warn))
            if answers is None:  # closed before it began
                batch.lost(len(jobs))
                return [None] * len(jobs)
            return answers
        finally:
            self.last_failures = batch.reasons

    def _batch(self, ledger: Ledger) -> "_Batch":
        return _Batch(next(self._numbers), ledger, side=self.judge.image_side)

    async def _gather(
        self,
        batch: "_Batch",
        jobs: Sequence["_Job[T]"],
        *,
        what: str,
        warn: bool,
        coming: Sequence[Future[str]] = (),
    ) -> list[T | None]:
        """The results of all jobs, which run at once; None for what failed or was late."""
        before, self._over = self._over, batch.over
        waits = [before.wait()] if before is not None else []
        waits += map(asyncio.wrap_future, coming)
        self._batches.append(batch)
        tasks = [asyncio.ensure_future(job(batch)) for job in jobs]
        try:
            found, failures = await settle(
                self._loop,
                tasks,
                deadline=self.judge.deadline,
                end=batch.end,
                after=asyncio.gather(*waits) if waits else None,
            )
        finally:
            self._batches.remove(batch)
            batch.over.set()
        batch.ledger.failures(failures.total())
        batch.reasons = listing(failures)
        if failures:
            self._say(batch.reasons, failures.total(), len(jobs), what=what, warn=warn)
        return found

    def _say(self, reasons: str, lost: int, count: int, *, what: str, warn: bool) -> None:
        if self.judge.replay and not self._loop.closed:
            raise UserError(
                f"judge.replay=True found no {what} {lost} of {count} in {self.judge.cache}: "
                f"{reasons}; ask the model, without --judge.replay."
            )
        if warn:
            _log.warning("no %s %d of %d: %s", what, lost, count, reasons)

    # ---- one question

    async def _verdict(
        self, batch: "_Batch", example: Example, caption: str | Future[str]
    ) -> Verdict:
        units = await self._reference_units(batch, example)
        if isinstance(caption, Future):  # to come
            caption = await asyncio.wrap_future(caption)
        if not prompts.clean(caption):
            return Verdict((), (False,) * len(units), *_EMPTY)
        found = await asyncio.gather(
            *(self._findings(batch, part, example, units, caption) for part in self._parts())
        )
        return answers.verdict_of(found)

    def _parts(self) -> tuple[Part, ...]:
        """What is asked about one caption."""
        if self.judge.calls == "separate":
            return SEPARATE
        return (JOINT_CAPTION_FIRST if self.judge.order == "caption_first" else JOINT,)

    async def _findings(
        self, batch: "_Batch", part: Part, example: Example, units: tuple[str, ...], caption: str
    ) -> answers.Findings:
        return await self._ask(
            batch,
            part,
            caption,
            lambda text: answers.findings(part, text, caption=caption, units=len(units)),
            image=await batch.image(example) if "image" in part.sees else None,
            units=units if "units" in part.sees else (),
            about=f"a caption of image {example.id!r}",
        )

    async def _reference_units(self, batch: "_Batch", example: Example) -> tuple[str, ...]:
        if (known := self._known_units(example)) is not None:
            return known
        reference = example.reference
        units = await self._ask(
            batch,
            UNITS,
            reference,
            lambda text: answers.unit_texts(text, reference=reference),
            label="description",
            about=f"the reference units of image {example.id!r}",
        )
        self._units[reference] = units
        return units

    def _known_units(self, example: Example) -> tuple[str, ...] | None:
        if example.units:
            return example.units
        if not prompts.clean(example.reference):
            return ()  # nothing to cover: no signal in the recall reward
        if example.reference in self._units:
            return self._units[example.reference]
        return None if self._stored is None else self._stored.get(example)

    async def _caption(self, batch: "_Batch", example: Example) -> str:
        return await self._ask(
            batch,
            RECAPTION,
            example.reference,
            answers.new_caption,
            label="draft",
            image=await batch.image(example),
            about=f"a new caption of image {example.id!r}",
        )

    async def _ask(
        self,
        batch: "_Batch",
        part: Part,
        text: str,
        check: Callable[[str], T],
        *,
        about: str,
        label: str = "caption",
        image: SentImage | None = None,
        units: tuple[str, ...] = (),
    ) -> T:
        """The checked answer, from the cache or the model; equal questions are asked once."""
        judge = self.judge
        # One spelling of a letter (NFC), as it is sent: an equal question has an equal key.
        text = unicodedata.normalize("NFC", text)
        units = tuple(unicodedata.normalize("NFC", unit) for unit in units)
        key = key_of(
            model=judge.model,
            version=VERSION,
            part=part.name,
            image=image.digest if image else None,
            side=judge.image_side if image else None,
            units=units,
            text=text,
            temperature=judge.temperature,
        )
        # Of another batch: its answer will be in the cache, where it gets one.
        while key not in batch.calls and (others := self._asking(key)):
            await others[0].calls.ended(key)
        return await self._answers.get(
            key,
            part,
            lambda: prompts.messages(
                part, text=text, label=label, image_url=image.url if image else "", units=units
            ),
            check,
            once=batch.calls,
            missing=f"{about} is missing",
            pixels=image.pixels if image else 0,
            ledger=batch.ledger,
            turn=batch.number,
        )

    def _asking(self, key: str) -> list["_Batch"]:
        """The batches that have a call for `key` under way."""
        return [batch for batch in self._batches if batch.calls.is_running(key)]


class _Batch:
    """What the jobs of one batch share.

    Attributes:
      number: of the batch; calls of lower ones go first.
      ledger: what it spends.
      calls: under way or done: the same is never asked twice.
      over: set once all of it is answered or given up.
      reasons: why some of it was not answered, the most frequent reasons first.
    """

    def __init__(self, number: int, ledger: Ledger, *, side: int):
        self.number, self.ledger = number, ledger
        self.over, self.reasons = asyncio.Event(), ""
        self._images = ReadyImages(side)
        self.calls: Once = Once(keep=True)

    async def image(self, example: Example) -> SentImage:
        """The example's image, made ready once; the examples of the batch keep it alive."""
        return await self._images.of(example.image)

    def lost(self, count: int) -> None:
        """The judge was closed before so many jobs began."""
        self.ledger.failures(count)
        self.reasons = f"{CLOSED} ({count})" if count else ""

    async def end(self) -> None:
        """Cancels what is still under way."""
        await self.calls.end()
        await self._images.end()


_Job = Callable[[_Batch], Coroutine[Any, Any, T]]
