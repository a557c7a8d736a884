"""Statistics of rewards over the entries that have a signal: of groups, of the batch.

Values and `signal` (where there is one) are [b, g, ...]; an axis that is reduced is kept, with size
1. Made to be called within a jitted program.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LARGEST_REWARD = 1e18


def signals(rewards) -> tuple[Float[Array, "b g k"], Bool[Array, "b g k"]]:
    """Rewards in float32 with 0 where there is no signal, and where there is one."""
    rewards = jnp.asarray(rewards, jnp.float32)
    signal = jnp.abs(rewards) <= LARGEST_REWARD  # False for NaN
    return jnp.where(signal, rewards, 0.0), signal


def normalise(values, signal, *, axis: int, eps, ddof):
    """z-scores, 0 where there is no signal or no spread."""
    centred, _ = centre(values, signal, axis=axis)
    return centred * inverse(spread(centred, signal, axis=axis, ddof=ddof), eps)


def centre(values, signal, *, axis: int):
    """Values minus their mean, 0 where there is no signal; and the mean, its axis kept.

    The smallest value is subtracted first: equal values then give exact zeros, and the mean of
    values that differ little is not lost in the rounding of their common offset.
    """
    low = _fold(jnp.minimum, jnp.where(signal, values, jnp.inf), axis=axis)
    shifted = jnp.where(signal, values - low, 0.0)
    mean = _fold(jnp.add, shifted, axis=axis) / jnp.maximum(_count(signal, axis=axis), 1.0)
    return jnp.where(signal, shifted - mean, 0.0), low + mean


def beside_others(values, signal):
    """Values minus the mean of the others of their group (axis 1), 0 where there is no other.

    With n values it is n / (n - 1) times the distance from the mean of all.
    """
    centred, _ = centre(values, signal, axis=1)
    count = _count(signal, axis=1)
    return centred * count / jnp.maximum(count - 1.0, 1.0)


def spread(centred, signal, *, axis: int, ddof):
    """Standard deviation from centred values, its axis kept; 0 for fewer than two values."""
    freedom = jnp.maximum(_count(signal, axis=axis) - ddof, 1.0)
    return jnp.sqrt(_fold(jnp.add, centred * centred, axis=axis) / freedom)


def batch_moments(values, signal, *, ddof):
    """Two-pass mean and standard deviation over all captions of the batch (the first two axes)."""
    count = jnp.sum(signal, axis=(0, 1), dtype=jnp.float32)
    mean = jnp.sum(jnp.where(signal, values, 0.0), axis=(0, 1)) / jnp.maximum(count, 1.0)
    centred = jnp.where(signal, values - jnp.expand_dims(mean, (0, 1)), 0.0)
    variance = jnp.sum(centred * centred, axis=(0, 1)) / jnp.maximum(count - ddof, 1.0)
    return mean, jnp.sqrt(variance)


def inverse(std, eps):
    """1 / (std + eps), and 0 where there is no spread."""
    varies = std > 0.0
    return jnp.where(varies, 1.0 / (jnp.where(varies, std, 1.0) + eps), 0.0)


def weighted_sum(values, weights):
    """Over the last axis, which is gone; without weights each counts 1."""
    if weights is not None:
        values = values * weights[None, None]
    return _fold(jnp.add, values, axis=2)[..., 0]


def any_signal(signal):
    """Whether a caption has a signal in any of its rewards."""
    return _fold(jnp.logical_or, signal, axis=2)[..., 0]


def _count(signal, *, axis: int):
    return _fold(jnp.add, signal.astype(jnp.float32), axis=axis)


def _fold(operation: Callable, values, *, axis: int):
    """Reduces a short axis, which is kept, by folding halves onto each other.

    XLA's own reduction over a short inner axis is a scalar loop on a CPU; whole halves vectorise
    (3 times faster overall, see docs/benchmarks.md). The order of the operations is also fixed, so
    group statistics do not depend on how the batch is spread over devices.
    """
    while (size := values.shape[axis]) > 1:
        low, high = (
            jax.lax.slice_in_dim(values, start, start + size // 2, axis=axis)
            for start in (0, size // 2)
        )
        odd = jax.lax.slice_in_dim(values, size - size % 2, size, axis=axis)
        values = jax.lax.concatenate([operation(low, high), odd], axis)
    return values
