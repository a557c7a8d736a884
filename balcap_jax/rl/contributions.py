"""What each reward adds to the advantages, so that one sees a reward drown the others."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from balcap_jax.rl.advantages import AnyArray, Number, convention_scores
from balcap_jax.rl.group_statistics import (
    any_signal,
    beside_others,
    centre,
    inverse,
    normalise,
    signals,
    spread,
)


@partial(jax.jit, static_argnames=("advantage", "scale"))
def contributions(
    rewards: Float[AnyArray, "b g k"],
    *,
    weights: Float[AnyArray, " k"],
    advantage: str,
    eps: Array | Number = 1e-4,
    ddof: Array | int = 1,
    scale: str = "group",
) -> Float[Array, "b g k"]:
    """The part of each reward in the advantages, up to a factor that all captions share.

        gdpo, presets: c_k = w_k z_k
        grpo:          c_k = w_k (R_k - mean_j R_k) / std,  std that of the summed rewards' group
                       (of no group with scale "batch" and "none")
        rloo:          c_k = w_k (R_k - mean of the others)

    Summed over k they are the advantages up to that factor, and for presets that centre the batch
    once more up to its mean, which is of no reward alone.

    Args:
      rewards, weights, eps, ddof, scale: as the advantages were made of.
      advantage: "gdpo", "grpo", "rloo" or a preset of `advantages.PRESETS`.

    Returns:
      float32; 0 where there is no signal.
    """
    values, signal = signals(rewards)
    if advantage == "gdpo":
        return weights[None, None] * normalise(values, signal, axis=1, eps=eps, ddof=ddof)
    if advantage == "rloo":
        return weights[None, None] * beside_others(values, signal)
    if advantage != "grpo":
        return weights[None, None] * convention_scores(values, signal, advantage)
    # As in the sum, where a reward that a caption lacks counts as 0.
    valid = jnp.broadcast_to(any_signal(signal)[..., None], signal.shape)
    parts, _ = centre(weights[None, None] * values, valid, axis=1)
    if scale in ("batch", "none"):
        return parts
    std = spread(jnp.sum(parts, axis=2, keepdims=True), valid[..., :1], axis=1, ddof=ddof)
    return parts * inverse(std, eps)


@partial(jax.jit, static_argnames=("advantage", "scale"))
def balance(rewards: Float[AnyArray, "b g k"], **made_of: Any) -> Float[Array, " k"]:
    """The share of each reward in the advantages, from 0 to 1: `shares` of `contributions`."""
    return shares(contributions(rewards, **made_of))


def shares(parts: Float[AnyArray, "b g k"]) -> Float[Array, " k"]:
    """balance_k = sum over captions of |c_k| / the same summed over all k; NaN where all are 0."""
    sizes = jnp.sum(jnp.abs(jnp.asarray(parts)), axis=(0, 1))
    return sizes / jnp.sum(sizes)


@partial(jax.jit, static_argnames="ddof")
def group_spread(rewards: Float[AnyArray, "b g k"], *, ddof: Array | int = 1) -> Float[Array, " k"]:
    """Mean over groups of each reward's standard deviation within a group, which is what tells
    captions of an image apart; over the groups with two signals or more, NaN where there is none.
    """
    values, signal = signals(rewards)
    centred, _ = centre(values, signal, axis=1)
    std = spread(centred, signal, axis=1, ddof=ddof)[:, 0]
    comparable = jnp.sum(signal, axis=1) >= 2
    return jnp.sum(jnp.where(comparable, std, 0.0), axis=0) / jnp.sum(comparable, axis=0)
