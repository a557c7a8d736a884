"""Which examples a step sees: a function of the seed, the step and the data, so that nothing but
the step has to be kept to go on with a run.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from balcap_jax.models.packing import next_size

# Longer than any run: comes in its own order, as scenes do, which are drawn by chance anyway.
# A permutation takes 4 bytes an example, a sixth of what the places of their rows do.
ENDLESS = 10**8
_WINDOWS = 3  # kept: those of two steps that are prepared, and one that is read ahead


class Extent(NamedTuple):
    """What the images of an example, or the largest of some, make of a prompt.

    Attributes:
      tokens: their features.
      windows: their attention windows.
    """

    tokens: int
    windows: int


NO_EXTENT = Extent(0, 0)
Extents = Callable[[Sequence[int]], Sequence[Extent]]


def step_places(size: int, *, step: int, count: int, seed: int) -> list[int]:
    """The places, in a source of `size` examples, of those of a step; the first is step 0.

    A source that is seen again comes in a new order each time; no example comes twice before every
    other has come once.
    """
    first = step * count
    return [_place(size, number, seed) for number in range(first, first + count)]


class Window(NamedTuple):
    """Examples of an epoch among which those of similar length are brought together.

    Attributes:
      start, stop: from and up to which place of the epoch's order.
      head, tail: how many of the first and the last share a batch with another epoch.
    """

    epoch: int
    start: int
    stop: int
    head: int
    tail: int


class Order:
    """The places of the examples of each step, as `step_places`, and within windows of some batches
    brought together by the tokens of their images: a batch is padded to its longest prompt.

    The windows are those of the plain order, so an epoch has the same examples, and within one that
    has examples of one length alone nothing moves. Batches stay in an order by chance. Neighbours
    in a batch are unlike, so that parts of it, such as those of hosts, are long alike. Every size
    that batches are padded to is some programs to compile, so those whose longest examples are
    about as long, by steps of 2 and 3 times a power of two, are padded as the longest of these.
    """

    def __init__(
        self,
        size: int,
        *,
        count: int,
        seed: int,
        window: int = 0,
        extents: Extents | None = None,
    ):
        """
        Args:
          count: examples of a step.
          window: batches of a window; 0: the plain order.
          extents: of the examples at some places; asked once a window, by any thread.
        """
        self.size, self.count, self.seed = size, count, seed
        self.window = 0 if extents is None or size > ENDLESS else window
        self._extents = extents
        self._made: dict[Window, _Grouped] = {}
        self._lock = threading.Lock()

    def places(self, step: int) -> list[int]:
        """Of the examples of a step; the first is step 0."""
        if not self.window:
            return step_places(self.size, step=step, count=self.count, seed=self.seed)
        return [int(in_window.places[i]) for in_window, i in self._at(step)]

    def extent(self, step: int) -> Extent:
        """What the batch of a step is padded to at least."""
        if not self.window:
            return NO_EXTENT
        at = self._at(step)
        size = _size_of(max(int(in_window.extents[i, 0]) for in_window, i in at))
        most = {id(in_window): in_window.most.get(size, NO_EXTENT) for in_window, _ in at}.values()
        return Extent(*map(max, zip(*most, strict=True)))

    def _at(self, step: int) -> list[tuple["_Grouped", int]]:
        """Of each example of a step its window, and where it is there."""
        found = []
        for number in range(step * self.count, (step + 1) * self.count):
            epoch, offset = divmod(number, self.size)
            window = self.window_of(epoch, offset)
            found.append((self._grouped(window), offset - window.start))
        return found

    def window_of(self, epoch: int, offset: int) -> Window:
        """The window of a place in the order of an epoch."""
        head = min(-epoch * self.size % self.count, self.size)
        batches, tail = divmod(self.size - head, self.count)
        last = max(batches // self.window - 1, 0)  # and what is left over
        length = self.window * self.count
        number = min(max(offset - head, 0) // length, last)
        return Window(
            epoch,
            start=0 if number == 0 else head + number * length,
            stop=self.size if number == last else head + (number + 1) * length,
            head=head if number == 0 else 0,
            tail=tail if number == last else 0,
        )

    def _grouped(self, window: Window) -> "_Grouped":
        with self._lock:
            if window not in self._made:
                for old in list(self._made)[: 1 - _WINDOWS]:
                    del self._made[old]
                self._made[window] = self._make(window)
            return self._made[window]

    def _make(self, window: Window) -> "_Grouped":
        plain = _order(self.size, self.seed, window.epoch)[window.start : window.stop]
        assert self._extents is not None
        extents = np.array(self._extents(plain.tolist()), np.int64)
        lengths = extents[:, 0]
        if lengths.min() == lengths.max():
            return _Grouped(plain, extents, most={})
        shortest_first = np.argsort(lengths, kind="stable")
        # Two epochs share a batch: the shortest of each.
        ends = window.head + window.tail
        batches = shortest_first[ends:].reshape(-1, self.count)[:, spread(self.count)]
        rng = np.random.default_rng((self.seed, window.epoch, window.start))
        order = np.concatenate(
            [
                shortest_first[: window.head],
                rng.permutation(batches).reshape(-1),
                shortest_first[window.head : ends],
            ]
        )
        return _Grouped(plain[order], extents[order], most=_most(extents))


class _Grouped(NamedTuple):
    """The examples of a window in their order.

    Attributes:
      extents: of each, a row of tokens and windows.
      most: by size, the most tokens and windows of its examples; none where all are of one length.
    """

    places: Int[np.ndarray, " n"]
    extents: Int[np.ndarray, "n 2"]
    most: dict[int, Extent]


def _most(extents: Int[np.ndarray, "n 2"]) -> dict[int, Extent]:
    tokens, which = np.unique(extents[:, 0], return_inverse=True)
    sizes = np.array([_size_of(int(count)) for count in tokens])[which]
    return {
        int(size): Extent(*map(int, extents[sizes == size].max(axis=0)))
        for size in np.unique(sizes)
    }


def _size_of(tokens: int) -> int:
    return next_size(tokens, (2, 3))


def spread(count: int) -> Int[np.ndarray, " n"]:
    """The numbers from 0 to `count` in an order whose halves, quarters and so on are each spread
    over all of them alike: by their bits from the last to the first.
    """
    bits = max(count - 1, 1).bit_length()
    numbers = np.arange(count)
    reversed_bits = sum(((numbers >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
    return np.argsort(reversed_bits, kind="stable")


def _place(size: int, number: int, seed: int) -> int:
    epoch, offset = divmod(number, size)
    if size > ENDLESS:
        return offset
    return int(_order(size, seed, epoch)[offset])


@lru_cache(maxsize=2)  # a step may lie on both sides of the end of an epoch
def _order(size: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    order = np.arange(size, dtype=np.int32)
    np.random.default_rng((seed, epoch)).shuffle(order)
    return order
