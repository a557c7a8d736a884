"""Rewards to advantages: GDPO, GRPO, the published variants of both, and RLOO.

`rewards` is `[B, G, K]`: B images, G captions of each, K rewards of each caption. NaN means "no
signal": the judge failed, or the reward was dropped on purpose. It is never a zero. An infinite
reward (or one beyond 1e18, whose square overflows float32) is a bug upstream and carries no signal
either, so that every result is finite.

A caption without any signal gets advantage 0 and enters no statistic. The caller must also keep it
out of the loss (`losses.policy_loss(valid=...)`): a zero advantage still counts in a mean.

Everything is float32 and needs the whole rollout batch: whitening a micro-batch on its own gives
other advantages, so call this before splitting.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from balcap_jax.errors import UserError
from balcap_jax.rl.group_statistics import (
    any_signal,
    batch_moments,
    beside_others,
    centre,
    inverse,
    normalise,
    signals,
    spread,
    weighted_sum,
)

# Rewards are made on the host by numpy; inside a jitted step they are traced arrays.
AnyArray = Array | np.ndarray
# Numbers as users write them: 0 and 2 as well as 0.0 and 2.0.
Number = float | int
Weights = Sequence[Number] | AnyArray | None
SCALES = ("group", "batch", "both", "none")


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
      scale: `std` is that of the group ("group"), of R over the batch ("batch"), first that of the
        group and then that of the result over the batch ("both": GDPO's last line, with the sum
        first), or the division is left out ("none", Dr. GRPO).

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


def rloo_advantages(
    rewards: Float[AnyArray, "b g k"], *, weights: Weights = None
) -> Float[Array, "b g"]:
    """Advantages against the mean of the other captions of the group (leave one out).

        A[i,j] = sum_k w_k (R_k[i,j] - mean_{j' != j} R_k[i,j'])        (arXiv:2402.14740)

    Nothing is divided by a standard deviation. It is the same whether rewards are summed before or
    after; after, as here, a reward that a caption lacks is missing and no zero. TRL, which sums
    first, differs there and nowhere else.

    Args:
      rewards, weights: as in `gdpo_advantages`.

    Returns:
      float32, always finite; 0 for a caption without any signal, or that is alone with it.

    Raises:
      UserError: `weights` are not K numbers.
    """
    return _rloo(rewards, _weights(weights, rewards.shape[-1]))


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
    rewards, signal = signals(rewards)
    mean, std = batch_moments(rewards, signal, ddof=0)
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
    rewards, signal = signals(rewards)
    z = normalise(rewards, signal, axis=1, eps=eps, ddof=ddof)
    summed = weighted_sum(z, weights)
    if not whiten:
        return summed
    return _whitened(summed, any_signal(signal), eps=eps, ddof=ddof)


def _whitened(summed, valid, *, eps, ddof):
    """Divided by their standard deviation over the batch."""
    count = jnp.sum(valid, dtype=jnp.float32)
    # A caption without signal has S = 0 and adds nothing; the mean of the others is zero.
    std = jnp.sqrt(jnp.sum(summed * summed) / jnp.maximum(count - ddof, 1.0))
    return summed * inverse(std, eps)


@partial(jax.jit, static_argnames="scale")
def _grpo(rewards, weights, *, eps, ddof, scale: str):
    rewards, signal = signals(rewards)
    summed = weighted_sum(rewards, weights)
    valid = any_signal(signal)
    if scale in ("group", "both"):
        by_group = normalise(summed, valid, axis=1, eps=eps, ddof=ddof)
        return by_group if scale == "group" else _whitened(by_group, valid, eps=eps, ddof=ddof)
    centred, _ = centre(summed, valid, axis=1)
    if scale == "none":
        return centred
    _, std = batch_moments(summed, valid, ddof=ddof)
    return centred * inverse(std, eps)


@jax.jit
def _rloo(rewards, weights):
    rewards, signal = signals(rewards)
    return weighted_sum(beside_others(rewards, signal), weights)


@partial(jax.jit, static_argnames="convention")
def _by_convention(rewards, weights, token_counts, *, convention: Convention):
    rewards, signal = signals(rewards)
    if convention.missing == "zero":
        signal = jnp.ones_like(signal)
    z = _scores(rewards, signal, convention)
    summed = weighted_sum(z, weights)
    valid = any_signal(signal)

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
        return jnp.where(std > 0.0, centred * inverse(std, convention.batch_eps), centred)
    return centred * inverse(std, convention.batch_eps)


def convention_scores(rewards, signal, name: str) -> Float[Array, "b g k"]:
    """z_k of the preset `name`; `rewards` and `signal` as `group_statistics.signals` gives them."""
    convention = PRESETS[name]
    if convention.missing == "zero":
        signal = jnp.ones_like(signal)
    return _scores(rewards, signal, convention)


def _scores(rewards, signal, convention: Convention):
    if convention.lone_caption_raw and rewards.shape[1] == 1:
        return rewards / (1.0 + convention.eps)
    if convention.baseline == "leave_one_out":
        return _normalise_by_others(rewards, signal, convention)
    return normalise(rewards, signal, axis=1, eps=convention.eps, ddof=1)


def _normalise_by_others(rewards, signal, convention: Convention):
    """Each caption against mean and std of the other captions of its group."""
    group = rewards.shape[1]
    # [b, j, i, k]: what caption j sees of caption i. Subtracting j from the group's sums instead
    # would leave a rounding error where the others are all equal, to be divided by.
    others = signal[:, None] & ~jnp.eye(group, dtype=bool)[None, :, :, None]
    seen = jnp.broadcast_to(rewards[:, None], others.shape)
    centred, mean = centre(seen, others, axis=2)
    std = spread(centred, others, axis=2, ddof=1)[:, :, 0]
    comparable = signal & jnp.any(others, axis=2)
    difference = jnp.where(comparable, rewards - mean[:, :, 0], 0.0)
    return jnp.where(std > 0.0, difference * inverse(std, convention.eps), difference)


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
