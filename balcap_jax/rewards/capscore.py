"""b-CapScore (arXiv 2605.07394): the harmonic mean of precision, recall and linguistic quality."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from balcap_jax.config.sections import REWARDS


def harmonic_mean(values: Float[np.ndarray, "k ..."]) -> Float[np.ndarray, "..."]:
    """k / sum(1 / value) over the first axis, float64; 0 where a value is 0 or below, NaN where one
    is NaN.
    """
    values = np.asarray(values, np.float64)
    positive = np.where(values > 0, values, 1.0)
    mean = len(values) / (1.0 / positive).sum(axis=0)
    mean = np.where((values > 0).all(axis=0), mean, 0.0)
    return np.where(np.isnan(values).any(axis=0), np.nan, mean)


def b_capscore(rewards: Mapping[str, float]) -> float | None:
    """b-CapScore in 0..100 of rewards in [0, 1] by name, others ignored; None unless the three are
    among them.
    """
    if not set(REWARDS) <= set(rewards):
        return None
    return 100.0 * float(harmonic_mean(np.array([rewards[name] for name in REWARDS])))
