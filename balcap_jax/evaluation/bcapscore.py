"""b-CapScore (arXiv:2605.07394) of a corpus, as a measure over images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from balcap_jax.config.sections import REWARDS
from balcap_jax.evaluation.statistics import Measure


def measures(items: Sequence[Mapping[str, Any]]) -> dict[str, Measure]:
    """The harmonic mean of the corpus means of precision, recall and linguistic quality, in 0..100,
    and each of them. A caption without a signal in one is left out of that mean.

    Args:
      items: the rewards by name, each from 0 to 1 or None.
    """
    weights = np.array([[item[name] is not None for name in REWARDS] for item in items], np.float64)
    totals = np.array([[item[name] or 0.0 for name in REWARDS] for item in items], np.float64)
    whole = Measure(totals * weights, weights, combine="harmonic")
    return {
        "strict": whole,
        **{
            name: Measure((totals * weights)[:, k : k + 1], weights[:, k : k + 1])
            for k, name in enumerate(REWARDS)
        },
    }


def filled(items: Sequence[Mapping[str, Any]], *, best: bool) -> list[dict[str, Any]]:
    """The items, with the least or the most that rewards without a signal could have been."""
    return [
        {**item, **{name: float(best) for name in REWARDS if item[name] is None}} for item in items
    ]
