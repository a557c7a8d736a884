"""Rewards to advantages: GDPO, GRPO and the published variants of both.

`rewards` is `[B, G, K]`: B images, G captions of each, K rewards of each caption. NaN means "no
signal": the judge failed, or the reward was dropped on purpose. It is never a zero. An infinite
reward (or one beyond 1e18, whose square overflows float32) is a bug upstream and carries no signal
either, so that every result is finite.

A caption without any signal gets advantage 0 and enters no statistic. The caller must also keep it
out of the loss (`losses.policy_loss(valid=...)`): a zero advantage still counts in a mean.

Everything is float32 and needs the whole rollout batch: whitening a micro-batch on its own gives
other advantages, so call this before splitting.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.errors import UserError

# Rewards are made on the host by numpy; inside a jitted step they are traced arrays.
AnyArray = Array | np.ndarray
# Numbers as users write them: 0 and 2 as well as 0.0 and 2.0.
Number = float | int
Weights = Sequence[Number] | AnyArray | None
SCALES = ("group", "batch", "none")

LARGEST_REWARD = 1e18


def gdpo_advantages(
    rewards: Float[AnyArray, "b g k"],
    *,
    weights: Weights = None,
    eps: Number = 1e-4,
    ddof: int = 1,
    whiten: bool = True,
) -> Float[Array, "b g"]:
    """Advantages that normalise each reward within its group, then sum, then whiten the batch.

        z_k[i,j] = (R_k[i,j] - mean_j R_k[i,:]) / (std_j R_k[i,:] + eps)
        S[i,j]   = sum_k w_k z_k[i,j]
        A[i,j]   = S[i,j] / (std S + eps)                            (arXiv:2601.05242)

    The statistics of a reward see only the captions that have it; a missing reward adds nothing to
    S. A reward that is the same for all captions of a group gives z = 0 exactly, whatever `eps`
    and the rounding. The paper's last line subtracts mean S, which is zero by construction: each
    z_k sums to zero over each group.

    Args:
      rewards: NaN = no signal; any float dtype, computed in float32.
      weights: w_k, K numbers; default all ones.
      eps: added to both standard deviations.
      ddof: 1 for the unbiased variance (published codes), 0 for the population variance.
      whiten: divide by the standard deviation of the batch; without it the result is S.

    Returns:
      float32, always finite; 0 for a caption without any signal.

    Raises:
      UserError: `weights` are not K numbers, `eps` is negative or `ddof` is not 0 or 1.
    """
    _check(eps=eps, ddof=ddof)
    weights = _weights(weights, rewards.shape[-1])
    return _gdpo(rewards, weights, eps=float(eps), ddof=ddof, whiten=whiten)


def grpo_advantages(
    rewards: Float[AnyArray, "b g k"],
    *,
    weights: Weights = None,
    eps: Number = 1e-4,
    ddof: int = 1,
    scale: str = "group",
) -> Float[Array, "b g"]:
    """Advantages that sum the rewards first, then normalise the sum within its group.

        R[i,j] = sum_k w_k R_k[i,j]
        A[i,j] = (R[i,j] - mean_j R[i,:]) / (std + eps)               (arXiv:2402.03300)

    As in the published codes, a reward that one caption lacks while it has others adds nothing to
    its sum, so for GRPO a missing reward does act like a zero; only a caption without any signal
    is left out. GDPO has no such case.

    Args:
      rewards, weights, eps, ddof: as in `gdpo_advantages`.
      scale: `std` is that of the group ("group"), of R over the batch ("batch"), or the division
        is left out ("none", Dr. GRPO).

    Returns:
      float32, always finite; 0 for a caption without any signal and in a constant group.

    Raises:
      UserError: as `gdpo_advantages`, or `scale` is unknown.
    """
    _check(eps=eps, ddof=ddof)
    if scale not in SCALES:
        raise UserError(f"scale={scale!r} is unknown; set it to one of {', '.join(SCALES)}.")
    weights = _weights(weights, rewards.shape[-1])
    return _grpo(rewards, weights, eps=float(eps), ddof=ddof, scale=scale)


class Convention(NamedTuple):
    """What the published GDPO codes disagree about.

    Attributes:
      eps: added to the standard deviation of a group.
      missing: "exclude" leaves a missing reward out of the group; "zero" scores it 0.
      baseline: "mean" of the group, or "leave_one_out": mean and std of the other captions.
      unscaled_if_constant: where the std is 0 the centred value is kept instead of divided by eps,
        in the group step and in the batch step.
      lone_caption_raw: a group of one caption keeps its raw reward (mean 0, std 1).
      level: the batch step weighs each caption once ("sequence") or by its tokens ("token").
      batch_eps: epsilon of the batch step.
      eps_in_variance: `/ sqrt(var + batch_eps)` instead of `/ (std + batch_eps)`.
    """

    eps: Number
    batch_eps: Number
    missing: Literal["exclude", "zero"] = "exclude"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    unscaled_if_constant: bool = False
    lone_caption_raw: bool = False
    level: Literal["sequence", "token"] = "sequence"
    eps_in_variance: bool = False


PRESETS = {
    # Hugging Face TRL, multi_objective_aggregation="normalize_then_sum".
    "trl": Convention(eps=1e-4, batch_eps=1e-4),
    # NVlabs/GDPO, its fork of TRL: a missing reward becomes a score of 0.
    "nvlabs": Convention(eps=1e-4, batch_eps=1e-4, missing="zero"),
    # verl: long captions weigh more in the batch statistics, so the mean over captions is not 0.
    "verl": Convention(
        eps=1e-6, batch_eps=1e-8, level="token", eps_in_variance=True, lone_caption_raw=True
    ),
    # NeMo-RL with its default leave-one-out baseline.
    "nemo": Convention(
        eps=1e-6, batch_eps=0.0, baseline="leave_one_out", unscaled_if_constant=True
    ),
    # ms-swift.
    "swift": Convention(eps=1e-8, batch_eps=1e-8),
}


def preset_advantages(
    name: str,
    rewards: Float[AnyArray, "b g k"],
    *,
    weights: Weights = None,
    token_counts: Int[AnyArray, "b g"] | None = None,
) -> Float[Array, "b g"]:
    """GDPO advantages by the convention of a published code, to reproduce its numbers.

    The conventions are reproduced, not the rounding: variances are two-pass and a constant group
    is found exactly, where some of these codes turn rounding errors into advantages.
    verl and NeMo-RL know no missing reward; here they leave it out, as TRL does.

    Args:
      name: a key of `PRESETS`.
      rewards, weights: as in `gdpo_advantages`.
      token_counts: tokens of each caption; needed by "verl" only.

    Returns:
      float32, always finite.

    Raises:
      UserError: unknown name, wrong weights, or "verl" without token counts.
    """
    if name not in PRESETS:
        raise UserError(f"preset={name!r} is unknown; set it to one of {', '.join(PRESETS)}.")
    convention = PRESETS[name]
    if convention.level == "token" and token_counts is None:
        raise UserError(
            f"preset={name!r} whitens over tokens; pass token_counts, the length of each caption."
        )
    weights = _weights(weights, rewards.shape[-1])
    return _by_convention(rewards, weights, token_counts, convention=convention)


class RewardStatistics(NamedTuple):
    """Health of each reward, one entry per reward; sums hide all of it.

    Attributes:
      mean, std: over the captions that have the reward; NaN where none has.
      missing: share of captions without it.
      constant: share of groups in which it says nothing: fewer than two distinct values.
    """

    mean: Float[Array, " k"]
    std: Float[Array, " k"]
    missing: Float[Array, " k"]
    constant: Float[Array, " k"]


@jax.jit
def reward_statistics(rewards: Float[AnyArray, "b g k"]) -> RewardStatistics:
    """Per-reward mean, population std, share missing and share of constant groups.

    With few informative groups whitening amplifies those few (4 of 64 groups: root mean square
    advantage 4 instead of 1), so `constant` is the number to watch.
    """
    rewards, signal = _signals(rewards)
    mean, std = _batch_moments(rewards, signal, ddof=0)
    present = jnp.any(signal, axis=(0, 1))
    low = jnp.min(rewards, axis=1, where=signal, initial=jnp.inf)
    high = jnp.max(rewards, axis=1, where=signal, initial=-jnp.inf)
    return RewardStatistics(
        mean=jnp.where(present, mean, jnp.nan),
        std=jnp.where(present, std, jnp.nan),
        missing=jnp.mean(~signal, axis=(0, 1), dtype=jnp.float32),
        constant=jnp.mean(low >= high, axis=0, dtype=jnp.float32),
    )


# The kernels. Jitted here so that a call outside a step is one program too.


@partial(jax.jit, static_argnames="whiten")
def _gdpo(rewards, weights, *, eps, ddof, whiten: bool):
    rewards, signal = _signals(rewards)
    z = _normalise(rewards, signal, axis=1, eps=eps, ddof=ddof)
    summed = _weighted_sum(z, weights)
    if not whiten:
        return summed
    count = jnp.sum(_any(signal), dtype=jnp.float32)
    # A caption without signal has S = 0 and adds nothing; the mean of the others is zero.
    std = jnp.sqrt(jnp.sum(summed * summed) / jnp.maximum(count - ddof, 1.0))
    return summed * _inverse(std, eps)


@partial(jax.jit, static_argnames="scale")
def _grpo(rewards, weights, *, eps, ddof, scale: str):
    rewards, signal = _signals(rewards)
    summed = _weighted_sum(rewards, weights)
    valid = _any(signal)
    if scale == "group":
        return _normalise(summed, valid, axis=1, eps=eps, ddof=ddof)
    centred, _ = _centre(summed, valid, axis=1)
    if scale == "none":
        return centred
    _, std = _batch_moments(summed, valid, ddof=ddof)
    return centred * _inverse(std, eps)


@partial(jax.jit, static_argnames="convention")
def _by_convention(rewards, weights, token_counts, *, convention: Convention):
    rewards, signal = _signals(rewards)
    if convention.missing == "zero":
        signal = jnp.ones_like(signal)
    if convention.lone_caption_raw and rewards.shape[1] == 1:
        z = rewards / (1.0 + convention.eps)
    elif convention.baseline == "leave_one_out":
        z = _normalise_by_others(rewards, signal, convention)
    else:
        z = _normalise(rewards, signal, axis=1, eps=convention.eps, ddof=1)
    summed = _weighted_sum(z, weights)
    valid = _any(signal)

    share = valid.astype(jnp.float32)
    if convention.level == "token":
        share = jnp.where(valid, token_counts, 0).astype(jnp.float32)
    count = jnp.sum(share)
    mean = jnp.sum(share * summed) / jnp.maximum(count, 1.0)
    centred = jnp.where(valid, summed - mean, 0.0)
    variance = jnp.sum(share * centred * centred) / jnp.maximum(count - 1.0, 1.0)
    if convention.eps_in_variance:
        return centred * jax.lax.rsqrt(variance + convention.batch_eps)
    std = jnp.sqrt(variance)
    if convention.unscaled_if_constant:
        return jnp.where(std > 0.0, centred * _inverse(std, convention.batch_eps), centred)
    return centred * _inverse(std, convention.batch_eps)


def _normalise_by_others(rewards, signal, convention: Convention):
    """Each caption against mean and std of the other captions of its group."""
    group = rewards.shape[1]
    # [b, j, i, k]: what caption j sees of caption i. Subtracting j from the group's sums instead
    # would leave a rounding error where the others are all equal, to be divided by.
    others = signal[:, None] & ~jnp.eye(group, dtype=bool)[None, :, :, None]
    seen = jnp.broadcast_to(rewards[:, None], others.shape)
    centred, mean = _centre(seen, others, axis=2)
    std = _spread(centred, others, axis=2, ddof=1)[:, :, 0]
    comparable = signal & jnp.any(others, axis=2)
    difference = jnp.where(comparable, rewards - mean[:, :, 0], 0.0)
    return jnp.where(std > 0.0, difference * _inverse(std, convention.eps), difference)


# Statistics over the entries that have a signal.


def _signals(rewards) -> tuple[Float[Array, "b g k"], Bool[Array, "b g k"]]:
    """Rewards in float32 with 0 where there is no signal, and where there is one."""
    rewards = jnp.asarray(rewards, jnp.float32)
    signal = jnp.abs(rewards) <= LARGEST_REWARD  # False for NaN
    return jnp.where(signal, rewards, 0.0), signal


def _normalise(values, signal, *, axis: int, eps, ddof):
    """z-scores, 0 where there is no signal or no spread."""
    centred, _ = _centre(values, signal, axis=axis)
    return centred * _inverse(_spread(centred, signal, axis=axis, ddof=ddof), eps)


def _centre(values, signal, *, axis: int):
    """Values minus their mean, 0 where there is no signal; and the mean, its axis kept.

    The smallest value is subtracted first: equal values then give exact zeros, and the mean of
    values that differ little is not lost in the rounding of their common offset.
    """
    low = _fold(jnp.minimum, jnp.where(signal, values, jnp.inf), axis=axis)
    shifted = jnp.where(signal, values - low, 0.0)
    mean = _fold(jnp.add, shifted, axis=axis) / jnp.maximum(_count(signal, axis=axis), 1.0)
    return jnp.where(signal, shifted - mean, 0.0), low + mean


def _spread(centred, signal, *, axis: int, ddof):
    """Standard deviation from centred values, its axis kept; 0 for fewer than two values."""
    freedom = jnp.maximum(_count(signal, axis=axis) - ddof, 1.0)
    return jnp.sqrt(_fold(jnp.add, centred * centred, axis=axis) / freedom)


def _batch_moments(values, signal, *, ddof):
    """Two-pass mean and standard deviation over all captions of the batch (the first two axes)."""
    count = jnp.sum(signal, axis=(0, 1), dtype=jnp.float32)
    mean = jnp.sum(jnp.where(signal, values, 0.0), axis=(0, 1)) / jnp.maximum(count, 1.0)
    centred = jnp.where(signal, values - jnp.expand_dims(mean, (0, 1)), 0.0)
    variance = jnp.sum(centred * centred, axis=(0, 1)) / jnp.maximum(count - ddof, 1.0)
    return mean, jnp.sqrt(variance)


def _inverse(std, eps):
    """1 / (std + eps), and 0 where there is no spread."""
    spread = std > 0.0
    return jnp.where(spread, 1.0 / (jnp.where(spread, std, 1.0) + eps), 0.0)


def _weighted_sum(values, weights):
    if weights is not None:
        values = values * weights[None, None]
    return _fold(jnp.add, values, axis=2)[..., 0]


def _count(signal, *, axis: int):
    return _fold(jnp.add, signal.astype(jnp.float32), axis=axis)


def _any(signal):
    return _fold(jnp.logical_or, signal, axis=2)[..., 0]


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


# Checks, on the host: arrays cannot raise inside a jitted program.


def _check(*, eps: Number, ddof: int) -> None:
    if not (np.isfinite(eps) and eps >= 0.0):
        raise UserError(f"eps={eps} must be a number >= 0; 1e-4 is the published value.")
    if ddof not in (0, 1):
        raise UserError(f"ddof={ddof} must be 0 or 1; 1 is the unbiased variance.")


def _weights(weights: Weights, rewards: int):
    if weights is None:
        return None
    if not isinstance(weights, jax.Array):
        weights = np.asarray(weights, np.float32)
        if not np.all(np.isfinite(weights)):
            raise UserError(f"weights={weights.tolist()} must be finite; correct them.")
    if weights.shape != (rewards,):
        raise UserError(
            f"weights has shape {weights.shape} for {rewards} rewards; give one number per reward."
        )
    return weights
