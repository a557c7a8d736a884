"""From verdicts to rewards: arrays in which NaN means that the judge gave no signal."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from balcap_jax.rewards.verdicts import Verdict


def precision(verdict: Verdict, *, pointability: bool = True) -> float:
    """Utility-aware correctness: share of assertions that are verified and pointable.

    A caption with no assertion, or with none that says anything, has precision 0 (arXiv
    2605.07394). A judge that cannot know gives chances, whose weighted mean is the share to expect.

    Args:
      pointability: False is the paper's ablation: every assertion counts as pointable.

    Raises:
      UserError: see `Assertion.value_if_pointable`.
    """
    total = sum(assertion.weight for assertion in verdict.assertions)
    if not total:
        return 0.0
    of = verdict.assertions
    values = [a.value if pointability else a.value_if_pointable for a in of]
    return sum(a.weight * value for a, value in zip(of, values, strict=True)) / total


def recall(verdict: Verdict) -> float:
    """Reference coverage: share of reference units that the caption covers, or of the weight that
    is asked for, at most 1.

    NaN for a reference without units: there is nothing to cover, so there is no signal.
    """
    if not verdict.covered:
        return float("nan")
    weights = verdict.unit_weights or (1.0,) * len(verdict.covered)
    covered = sum(w for w, is_covered in zip(weights, verdict.covered, strict=True) if is_covered)
    return min(1.0, covered / (sum(weights) if verdict.asked is None else verdict.asked))


def linguistic(verdict: Verdict) -> float:
    """Linguistic quality: mean of clarity, fluency and coherency."""
    return (verdict.clarity + verdict.fluency + verdict.coherency) / 3


_REWARDS = {"recall": recall, "linguistic": linguistic}


def rewards_of(
    verdicts: Sequence[Verdict | None], names: Sequence[str], *, pointability: bool = True
) -> Float[np.ndarray, "n k"]:
    """Rewards in [0, 1] of each verdict, float32, in the order of `names`.

    A verdict of None (the judge failed) is NaN in every reward: no signal, never a zero.

    Args:
      pointability: see `precision`.
    """
    rewards = _REWARDS | {"precision": partial(precision, pointability=pointability)}
    return np.array(
        [
            [np.nan if verdict is None else rewards[name](verdict) for name in names]
            for verdict in verdicts
        ],
        np.float32,
    ).reshape(len(verdicts), len(names))
