"""Rewards changed on purpose, to see what depends on their scale: arrays in, arrays out.

Of training alone: held-out captions keep the judge's rewards.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from balcap_jax.config.study import StudyConfig, numbers_of


def changed_rewards(
    rewards: Float[np.ndarray, "b g k"],
    *,
    squeeze: Float[np.ndarray, " k"],
    centre: float,
    noise: Float[np.ndarray, " k"],
    normals: Float[np.ndarray, "b g k"],
    levels: Float[np.ndarray, " k"],
    sparse: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "b g k"]:
    """Rewards squeezed, then noisy, then of few levels, then sparse; NaN stays NaN.

        x <- centre + squeeze_k (x - centre)
        x <- x + noise_k n,                   n from `normals`
        x <- round(levels_k x) / levels_k     half to even
        x <- 1 if x >= sparse_k else 0

    Args:
      rewards: NaN = no signal.
      squeeze, noise, levels, sparse: NaN leaves a reward as it is.
      normals: standard normal numbers.

    Returns:
      float32.
    """
    x = rewards.astype(np.float64)
    x = np.where(np.isnan(squeeze), x, centre + squeeze * (x - centre))
    x = np.where(np.isnan(noise), x, x + noise * normals)
    x = np.where(np.isnan(levels), x, np.round(levels * x) / levels)
    # In the precision of rewards, or a reward of 0.9 would not reach a threshold of 0.9.
    reaches = x.astype(np.float32) >= sparse.astype(np.float32)
    x = np.where(np.isnan(sparse), x, reaches)
    # A comparison with NaN is False, which would make no signal a zero.
    return np.where(np.isnan(rewards), np.nan, x).astype(np.float32)


def normals_of(
    seed: int, step: int, rows: Int[np.ndarray, " b"], *, group: int, count: int
) -> Float[np.ndarray, "b g k"]:
    """Standard normal numbers of each caption's rewards: those of (seed, step, row) and nothing
    else, so that a resumed run, and one on other hosts, draws the same.

    Args:
      rows: of the images in the batch of all hosts.
      group: G captions of each.
      count: K rewards of each caption.
    """
    drawn = [
        np.random.default_rng([seed, step, int(row)]).normal(size=(group, count)) for row in rows
    ]
    return np.array(drawn).reshape(len(rows), group, count)


def studied(
    rewards: Float[np.ndarray, "b g k"],
    study: StudyConfig,
    names: Sequence[str],
    *,
    seed: int,
    step: int,
    rows: Int[np.ndarray, " b"],
) -> Float[np.ndarray, "b g k"]:
    """`changed_rewards` by the settings of a run.

    Args:
      names: of the K rewards.
      seed, step, rows: see `normals_of`.
    """
    _, group, count = rewards.shape
    return changed_rewards(
        rewards,
        squeeze=np.array(numbers_of(study.squeeze, names)),
        centre=study.centre,
        noise=np.array(numbers_of(study.noise, names)),
        normals=normals_of(seed, step, rows, group=group, count=count),
        levels=np.array(numbers_of(study.levels, names)),
        sparse=np.array(numbers_of(study.sparse, names)),
    )
