"""The examples of the next step, decoded and processed by threads while the device works."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar
from zlib import crc32

import numpy as np
from jaxtyping import Int

from balcap_jax.data.examples import Example, Source
from balcap_jax.data.order import Extent, Order
from balcap_jax.data.photos import Photos
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Prompts, Row
from balcap_jax.parallel import processes

T = TypeVar("T")  # the batch of a step


class Loaded(NamedTuple):
    """The examples of a step and their prompts, as numpy arrays [B, ...]."""

    examples: list[Example]
    prompts: Prompts


class Draw(NamedTuple):
    """What stands at one row of a step.

    Attributes:
      place: of the example in its source.
      visit: how often the whole source has been seen before, from 0.
      step: from 0.
    """

    place: int
    visit: int
    step: int


class StepLoader(ABC, Generic[T]):
    """Examples and prompts by step; those of the steps behind it are prepared in the meantime.

    What `step(n)` returns is a function of n, the seed and the data: neither threads nor the order
    of the calls change it, so the number of the step is all that a resumed run needs.
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        *,
        count: int,
        seed: int,
        steps: int,
        rows: Sequence[int] | Int[np.ndarray, " h"] | None = None,
        workers: int = 4,
        ahead: int = 1,
        group_by_length: int = 0,
    ):
        """
        Args:
          count: examples of a step, on all hosts together.
          steps: of the run; nothing is prepared for later ones.
          rows: those of a step that this host holds (`BatchRows.local_rows`), from 0; default: all.
          workers: threads that open and process images.
          ahead: steps that are prepared while one is used. In memory are at most `ahead + 1` steps.
          group_by_length: batches among which photos of similar size share one, see `Order`.
        """
        self.source, self.processor = source, processor
        self.count, self.seed, self.steps, self.ahead = count, seed, steps, ahead
        self.rows = range(count) if rows is None else [int(row) for row in rows]
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="example")
        # Waits for the workers and so is none of them.
        self._padder = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        # Reads sizes of images ahead, with the workers' help.
        self._orderer = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._made: dict[int, Future[T]] = {}
        self.order = Order(
            len(source),
            count=count,
            seed=seed,
            window=group_by_length,
            extents=self._extents if isinstance(source, Photos) else None,
        )

    def step(self, number: int) -> T:
        """What step `number` sees; waits for it and starts on the next ones.

        Raises:
          UserError: the data are bad, see `Photos` and `Processor.prompts`. Any error of a thread
            comes out here, at the step it belongs to.
        """
        assert 0 <= number < self.steps, f"step {number} of {self.steps}"
        wanted = range(number, min(number + self.ahead + 1, self.steps))
        for left in set(self._made) - set(wanted):  # of a caller that jumped
            self._made.pop(left).cancel()
        for later in wanted:
            if later not in self._made:
                self._made[later] = self._start(later)
        if self.order.window and wanted[-1] + 1 < self.steps:
            self._orderer.submit(self.order.places, wanted[-1] + 1)
        self._check_hosts(number)
        return self._made.pop(number).result()

    def _check_hosts(self, number: int) -> None:
        """Refuses hosts whose files have other sizes: each would take another order for the step's.

        Raises:
          UserError: on all of them.
        """
        if not self.order.window or processes.is_alone():
            return
        code = crc32(repr(self.order.places(number)).encode())
        most, least = processes.largest([code, -code])
        if most != -least:
            raise UserError(
                f"The hosts see other image files for step {number + 1}, by whose sizes batches "
                "are formed; give all of them the same files, or set --data.group-by-length 0."
            )

    def _extents(self, places: Sequence[int]) -> list[Extent]:
        return list(self._workers.map(self._extent, places))

    def _extent(self, place: int) -> Extent:
        """Of the images of an example; none where a bad one is found when its turn comes."""
        assert isinstance(self.source, Photos)
        return self.processor.extent(self.source.image_sizes(place))

    def close(self) -> None:
        """Stops the threads; what they are at is finished, the rest is given up."""
        self._workers.shutdown(cancel_futures=True)
        self._orderer.shutdown(cancel_futures=True)
        self._padder.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, step: int) -> Future[T]:
        size = len(self.source)
        places = self.order.places(step)
        parts = [
            self._workers.submit(
                self._prepare, Draw(places[row], (step * self.count + row) // size, step)
            )
            for row in self.rows
        ]
        return self._padder.submit(self._join, parts, self.order.extent(step))

    @abstractmethod
    def _prepare(self, draw: Draw) -> Any:
        """One row, by a thread of its own."""

    @abstractmethod
    def _join(self, parts: list[Future[Any]], least: Extent) -> T:
        """The batch of such rows, padded to `least` or more."""


class Loader(StepLoader[Loaded]):
    """Examples with their prompts."""

    def _prepare(self, draw: Draw) -> tuple[Example, Row]:
        example = self.source[draw.place]
        return example, self.processor.row(example)

    def _join(self, parts: list[Future[tuple[Example, Row]]], least: Extent) -> Loaded:
        pairs = [part.result() for part in parts]
        prompts = self.processor.pad([row for _, row in pairs], least=least)
        return Loaded([example for example, _ in pairs], prompts)
