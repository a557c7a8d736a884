"""The policy objective: arrays in, sums out.

Every function works on completions of any leading shape, `[..., T]` tokens and `[...]` per caption
(the update uses `[B, G, T]`). A loss comes as `(total, count)`: add both over micro-batches and
devices and divide once, then the split does not change the result. `count` does not depend on the
parameters, so gradients add the same way.

Masked entries may hold anything, inf and NaN too: they are replaced before any arithmetic, which
keeps the gradients finite (`where` after the fact would let `0 * inf` through backwards).
"""

import math
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from balcap_jax.errors import UserError

Number = float | int
Normaliser = Literal["dapo", "grpo", "dr_grpo"]
NORMALISERS = get_args(Normaliser)


class PolicyLoss(NamedTuple):
    """Sums over the tokens of one micro-batch; each field adds up over micro-batches.

    Attributes:
      total: the weighted loss; total / count is the objective to minimise.
      count: its divisor, by the normaliser.
      tokens: number of tokens that carry weight; divides the fields below.
      clipped_low: tokens that the lower bound cut off (negative advantage, ratio below).
      clipped_high: tokens that the upper bound cut off (positive advantage, ratio above).
      kl: k3 estimate of KL(policy || reference); 0 without a reference.
      drift: k3 estimate of KL(sampling policy || policy): how far the update is off-policy.
      importance: sum of the importance weights; as large as `tokens` without them.
      truncated: tokens whose importance weight was cut to the cap.
    """

    total: Float[Array, ""]
    count: Float[Array, ""]
    tokens: Float[Array, ""]
    clipped_low: Float[Array, ""]
    clipped_high: Float[Array, ""]
    kl: Float[Array, ""]
    drift: Float[Array, ""]
    importance: Float[Array, ""]
    truncated: Float[Array, ""]


def policy_loss(
    logprobs: Float[Array, "*n t"],
    old_logprobs: Float[Array, "*n t"],
    advantages: Float[Array, "*n"],
    mask: Bool[Array, "*n t"],
    *,
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    normaliser: str = "dapo",
    max_length: int | None = None,
    valid: Bool[Array, "*n"] | None = None,
    reference_logprobs: Float[Array, "*n t"] | None = None,
    kl_coefficient: Number = 0.0,
    start_logprobs: Float[Array, "*n t"] | None = None,
    importance_cap: Number = 0.0,
) -> PolicyLoss:
    """PPO's clipped objective on token ratios, with an optional KL penalty.

        r_t = exp(logprob_t - old_logprob_t)
        l_t = -min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) + kl_coefficient * k3_t

    The `min` holds for both signs of A (arXiv:1707.06347, Eq. 7): a step that makes things worse
    is never clipped. With `importance_cap` above 0 it is the decoupled objective (arXiv:2110.00641)
    with its weight truncated, token by token (as of IMPALA, arXiv:1802.01561):

        w_t = min(exp(start_logprob_t - old_logprob_t), importance_cap)          a constant
        r_t = exp(logprob_t - start_logprob_t)
        l_t = -w_t min(r_t A, clip(r_t, 1 - clip_low, 1 + clip_high) A) + kl_coefficient * k3_t

    so that a token of an older policy counts as often as the policy itself would have sampled it,
    and the range of r_t holds the policy near where the step began, not near the old one. `l_t` is
    summed by `normaliser`:

        "dapo"     all tokens alike             / tokens of the batch          (arXiv:2503.14476)
        "grpo"     mean over a caption's tokens / captions of the batch        (arXiv:2402.03300)
        "dr_grpo"  all tokens alike             / captions x max_length        (arXiv:2503.20783)

    Args:
      logprobs: of the sampled tokens under the policy; the only input that gets a gradient.
      old_logprobs: under the policy that sampled them.
      advantages: one per caption.
      mask: True where a token was sampled.
      clip_low, clip_high: distance of the bounds from 1.
      max_length: of a completion, for "dr_grpo": the same number for all micro-batches.
      valid: False for a caption without any signal; it adds nothing to total or count.
      reference_logprobs: of the frozen reference policy; needed if `kl_coefficient` is not 0.
      start_logprobs: under the policy before the first update on these captions; default:
        `logprobs`, which they are in the first one. Read with `importance_cap` alone.
      importance_cap: largest weight, at least 1; 0: no weights.

    Raises:
      UserError: a bound or coefficient out of range, an unknown normaliser, or one of the two
        arguments above missing where it is needed.
    """
    _check(clip_low, clip_high, normaliser, max_length)
    if not (importance_cap == 0.0 or importance_cap >= 1.0):
        raise UserError(
            f"importance_cap={importance_cap} must be at least 1, or 0 for no weights; 2 is usual."
        )
    if kl_coefficient < 0.0 or (kl_coefficient > 0.0 and reference_logprobs is None):
        raise UserError(
            f"kl_coefficient={kl_coefficient} must be >= 0 and needs reference_logprobs if it is "
            "not 0; pass both or neither."
        )
    live = mask if valid is None else mask & valid[..., None]
    logprobs = jnp.where(live, logprobs.astype(jnp.float32), 0.0)
    old_logprobs = jax.lax.stop_gradient(jnp.where(live, old_logprobs.astype(jnp.float32), 0.0))
    advantage = jax.lax.stop_gradient(advantages.astype(jnp.float32))[..., None]
    advantage = jnp.where(live, advantage, 0.0)

    importance, truncated = jnp.where(live, 1.0, 0.0), jnp.zeros_like(live)
    from_logprobs = old_logprobs  # of the policy that the ratio starts from
    if importance_cap > 0.0:
        start = logprobs if start_logprobs is None else start_logprobs.astype(jnp.float32)
        from_logprobs = jax.lax.stop_gradient(jnp.where(live, start, 0.0))
        importance, truncated = importance_weights(from_logprobs, old_logprobs, cap=importance_cap)
        importance = jnp.where(live, importance, 0.0)

    ratio = jnp.exp(logprobs - from_logprobs)
    bounded = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    per_token = -jnp.minimum(ratio * advantage, bounded * advantage)
    if importance_cap > 0.0:
        per_token = per_token * importance
    kl = jnp.zeros_like(per_token)
    if reference_logprobs is not None:
        reference = jnp.where(live, reference_logprobs.astype(jnp.float32), 0.0)
        kl = kl_k3(logprobs, jax.lax.stop_gradient(reference))
        if kl_coefficient > 0.0:
            per_token = per_token + kl_coefficient * kl

    weight, count = token_weights(live, normaliser=normaliser, max_length=max_length)
    return PolicyLoss(
        # `per_token` is 0 wherever `live` is False: ratio 1 times advantage 0.
        total=jnp.sum(per_token * weight),
        count=count,
        tokens=jnp.sum(live, dtype=jnp.float32),
        clipped_low=_count((advantage < 0.0) & (ratio < 1.0 - clip_low)),
        clipped_high=_count((advantage > 0.0) & (ratio > 1.0 + clip_high)),
        kl=jax.lax.stop_gradient(jnp.sum(kl)),
        drift=jax.lax.stop_gradient(jnp.sum(kl_k3(old_logprobs, logprobs))),
        importance=jnp.sum(importance),
        truncated=_count(truncated),
    )


def importance_weights(
    start_logprobs: Float[Array, "*n t"], old_logprobs: Float[Array, "*n t"], *, cap: Number
) -> tuple[Float[Array, "*n t"], Bool[Array, "*n t"]]:
    """`min(exp(start - old), cap)` of each token, and which of them the cap cut.

    Args:
      start_logprobs, old_logprobs: under the policy to learn and under the one that sampled.
    """
    difference, bound = start_logprobs - old_logprobs, math.log(cap)
    # Cut before `exp`, which would be inf where the old policy gave a token next to nothing.
    return jnp.exp(jnp.minimum(difference, bound)), difference > bound


def token_weights(
    mask: Bool[Array, "*n t"], *, normaliser: str, max_length: int | None = None
) -> tuple[Float[Array, "*n 1"], Float[Array, ""]]:
    """What each token of a caption weighs in the sum, and the divisor of the sum.

    A caption without any token weighs nothing and is not counted. Counts are float32: exact up to
    2^24 tokens in a batch.

    Raises:
      UserError: an unknown normaliser, or "dr_grpo" without `max_length`.
    """
    _check_normaliser(normaliser, max_length)
    lengths = jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.float32)
    captions = jnp.sum(lengths > 0.0, dtype=jnp.float32)
    if normaliser == "grpo":
        return 1.0 / jnp.maximum(lengths, 1.0), captions
    if normaliser == "dapo":
        return jnp.ones_like(lengths), jnp.sum(lengths)
    return jnp.ones_like(lengths), captions * max_length


def kl_k3(
    logprobs: Float[Array, "*n t"], reference_logprobs: Float[Array, "*n t"]
) -> Float[Array, "*n t"]:
    """Schulman's k3 per-token estimate of KL(policy || reference): `exp(d) - 1 - d >= 0`.

    d = reference - policy, on tokens sampled from the policy. `expm1` keeps the digits of a small
    d, which `exp(d) - 1` loses in float32.
    """
    difference = reference_logprobs - logprobs
    return jnp.expm1(difference) - difference


def mean_of(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """total / count, and 0 for an empty batch (no caption had a signal)."""
    return jnp.where(count > 0.0, total / jnp.maximum(count, 1.0), 0.0)


def _count(condition: Bool[Array, "..."]) -> Float[Array, ""]:
    return jnp.sum(condition, dtype=jnp.float32)


def _check(clip_low: Number, clip_high: Number, normaliser: str, max_length: int | None) -> None:
    if not 0.0 <= clip_low < 1.0:
        raise UserError(f"clip_low={clip_low} must be from 0 to below 1; 0.2 is usual.")
    if not clip_high >= 0.0:
        raise UserError(f"clip_high={clip_high} must be >= 0; 0.2 is usual.")
    _check_normaliser(normaliser, max_length)


def _check_normaliser(normaliser: str, max_length: int | None) -> None:
    if normaliser not in NORMALISERS:
        known = ", ".join(NORMALISERS)
        raise UserError(f"normaliser={normaliser!r} is unknown; set it to one of {known}.")
    if normaliser == "dr_grpo" and not (max_length and max_length > 0):
        raise UserError(
            f"max_length={max_length} must be positive for normaliser='dr_grpo'; "
            "pass the longest completion that may be sampled."
        )
