"""Weights 1 / spread of each reward, which give GRPO the scales that GDPO needs no estimate of."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float


class RewardScales:
    """Spreads of rewards within groups, over the first steps of a run or over its last ones.

    Args:
      mode: "given" leaves weights as they are; "fixed" divides them by the mean spread over the
        first `steps` steps, "running" over the last `steps`, this one included in both.

    Attributes:
      seen: the spreads that count, a list of K numbers per step; NaN where a step has none.
    """

    def __init__(self, mode: Literal["given", "fixed", "running"], *, steps: int):
        self.mode, self.steps = mode, steps
        self.seen: list[list[float]] = []

    def weights(
        self, given: Sequence[float], spread: Float[np.ndarray, " k"]
    ) -> Float[np.ndarray, " k"]:
        """w_k / mean spread_k, float32; called once per step. A reward that has never varied within
        a group keeps the weight that is given.

        Args:
          spread: of this step, see `contributions.group_spread`.
        """
        given = np.asarray(given, np.float32)
        if self.mode == "given":
            return given
        if self.mode == "running" or len(self.seen) < self.steps:
            self.seen = [*self.seen, [float(value) for value in spread]][-self.steps :]
        seen = np.array(self.seen)
        counts = (~np.isnan(seen)).sum(axis=0)
        means = np.nansum(seen, axis=0) / np.maximum(counts, 1)
        return np.where(means > 0, given / np.where(means > 0, means, 1.0), given).astype(
            np.float32
        )

    def state(self) -> list[list[float | None]]:
        """What a resumed run needs, as JSON."""
        return [[None if math.isnan(x) else x for x in row] for row in self.seen]

    def restore(self, state: Sequence[Sequence[float | None]]) -> None:
        """Takes up `state`."""
        self.seen = [[math.nan if x is None else x for x in row] for row in state]
