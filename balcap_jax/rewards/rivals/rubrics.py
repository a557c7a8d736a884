"""Rubrics as in RubiCap (arXiv:2603.09160): binary criteria of one image with weights."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Criterion(NamedTuple):
    """One thing that a caption of the image is to do.

    Attributes:
      text: a statement on the caption that is true or false, such as "Says that the car is red.".
      weight: of RubiCap's levels 3 (critical), 2 and 1; only their proportions count.
    """

    text: str
    weight: float


class Rubric(NamedTuple):
    """The criteria of the image `id`; none where the starting policy's caption failed nothing.

    Attributes:
      reference: `reference_digest` of the image's reference when it was written; "" where the file
        does not tell.
    """

    id: str
    criteria: tuple[Criterion, ...]
    reference: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(criterion.text for criterion in self.criteria)


def rubric_reward(criteria: Sequence[Criterion], met: Sequence[bool]) -> float:
    """sum(w y) / sum(w), in [0, 1], where y is 1 for a criterion that is met.

    NaN without criteria: there is nothing to do better, so there is no signal.
    """
    if not criteria:
        return math.nan
    weights = [criterion.weight for criterion in criteria]
    reached = math.fsum(w for w, is_met in zip(weights, met, strict=True) if is_met)
    return reached / math.fsum(weights)
