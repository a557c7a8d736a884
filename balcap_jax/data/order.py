"""Which examples a step sees: a function of the seed and the step, so that nothing but the step has
to be kept to go on with a run.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Int

# Longer than any run: comes in its own order, as scenes do, which are drawn by chance anyway.
# A permutation takes 4 bytes an example, a sixth of what the places of their rows do.
ENDLESS = 10**8


def step_places(size: int, *, step: int, count: int, seed: int) -> list[int]:
    """The places, in a source of `size` examples, of those of a step; the first is step 0.

    A source that is seen again comes in a new order each time; no example comes twice before every
    other has come once.
    """
    first = step * count
    return [_place(size, number, seed) for number in range(first, first + count)]


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
