"""Attention in plain XLA: the reference for the backends in `attention_backends`.

Letters: b batch, g group, t queries, s keys, p prefix, n query heads, k key-value heads, r query
heads of one of them, h head size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

# Finite, so that a row without any key is a harmless average and not NaN; far below any score.
MASKED = -1e30

# What the attended values are called, for rematerialisation to keep them.
OUTPUT = "attention"

# Attention of any kind among the patches of a vision tower: q, k, v [b s n h] -> [b s n h].
Attend = Callable[[Array, Array, Array], Array]
# Rotary embedding by such as `rotary.rotate`: [b t n h], angles -> [b t n h].
Rotate = Callable[[Array, Array], Array]


class KV(NamedTuple):
    """Keys (rotary embedding applied) and values of one layer."""

    k: Float[Array, "*b s k h"]
    v: Float[Array, "*b s k h"]


def attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "#b #t s"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """Softmax attention over the keys where `mask`; n / k query heads share a key-value head.

    Returns:
      The attended values and the log-sum-exp of the scores, both float32: enough to merge with
      attention over other keys.
    """
    grouped, k, v = _heads_first(q, k.shape[2]), k.swapaxes(1, 2), v.swapaxes(1, 2)
    out, log_sum = attend_by_heads(grouped, k, v, mask[:, None, :, None])
    return _queries_first(out), _queries_first(log_sum)


def attend_by_columns(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b s k h"],
    v: Float[Array, "b s k h"],
    mask: Bool[Array, "b t s"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """`attend` for CPUs: the scores of a query are a column.

    Maxima and sums over keys are then sums of rows, which CPUs do in vectors, and of the four
    matmuls forwards and backwards that read scores or keys the other way round, two are left.
    """
    grouped, k, v = _heads_first(q, k.shape[2]), k.swapaxes(1, 2), v.swapaxes(1, 2)
    (B, K, T, R, H), S = grouped.shape, k.shape[2]
    queries = grouped.reshape(B, K, T * R, H)
    scores = jnp.einsum("bksh,bkmh->bksm", k, queries, preferred_element_type=jnp.float32)
    seen = jnp.broadcast_to(mask.swapaxes(1, 2)[..., None], (B, S, T, R))
    scores = jnp.where(seen.reshape(B, 1, S, -1), scores * H**-0.5, MASKED)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=2))
    weights = jnp.exp(scores - top[:, :, None])
    total = jnp.sum(weights, axis=2)
    out = jnp.einsum(
        "bksm,bksh->bkmh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (out / total[..., None]).reshape(grouped.shape)
    log_sum = (top + jnp.log(total)).reshape(B, K, T, R)
    return _queries_first(out), _queries_first(log_sum)


def attend_by_heads(
    q: Float[Array, "b k t r h"],
    k: Float[Array, "b k s h"],
    v: Float[Array, "b k s h"],
    mask: Bool[Array, "#b 1 #t 1 s"],
) -> tuple[Float[Array, "b k t r h"], Float[Array, "b k t r"]]:
    """`attend` with the heads in front, where matmuls take them: no scores are transposed."""
    scores = jnp.einsum("bktrh,bksh->bktrs", q, k, preferred_element_type=jnp.float32)
    weights, total, log_sum = softmax_parts(scores * q.shape[-1] ** -0.5, mask)
    out = jnp.einsum(
        "bktrs,bksh->bktrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return out / total, log_sum


def _heads_first(q: Float[Array, "b t n h"], kv_heads: int) -> Float[Array, "b k t r h"]:
    """Queries by the key-value head that they share."""
    return jnp.moveaxis(q.reshape(*q.shape[:2], kv_heads, -1, q.shape[-1]), 1, 2)


def _queries_first(x: Float[Array, "b k t r *x"]) -> Float[Array, "b t n *x"]:
    """The way back, n = k r."""
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def softmax_parts(
    scores: Float[Array, "*b s"], mask: Bool[Array, "*#b s"]
) -> tuple[Float[Array, "*b s"], Float[Array, "*b 1"], Float[Array, "*b"]]:
    """Softmax over the scores where `mask`, not divided yet: exponentials, their sum, and the
    log-sum-exp of the scores.
    """
    scores = jnp.where(mask, scores, MASKED)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights, total, (top + jnp.log(total))[..., 0]


def attend_segments(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t n h"],
    v: Float[Array, "b t n h"],
    segments: Int[Array, "b t"],
) -> Float[Array, "b t n h"]:
    """Attention among equal segment ids; padding (-1) sees padding only, and nothing sees it."""
    mask = segments[:, :, None] == segments[:, None, :]
    return checkpoint_name(attend(q, k, v, mask)[0].astype(q.dtype), OUTPUT)


def attend_rows(
    q: Float[Array, "r t n h"],
    k: Float[Array, "r t n h"],
    v: Float[Array, "r t n h"],
    sizes: Int[Array, " r"],
) -> Float[Array, "r t n h"]:
    """Attention among the first `sizes` tokens of each row; what comes after them is no result."""
    mask = jnp.arange(q.shape[1])[None] < sizes[:, None]
    return checkpoint_name(attend(q, k, v, mask[:, None])[0].astype(q.dtype), OUTPUT)


def attend_causal(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    mask: Bool[Array, "b t"],
) -> Float[Array, "b t n h"]:
    """Causal attention; `mask` marks the real keys."""
    T = q.shape[1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    attended, _ = attend(q, k, v, causal[None] & mask[:, None, :])
    return checkpoint_name(attended.astype(q.dtype), OUTPUT)


def attend_prompt_and_past(
    q: Float[Array, "b g t n h"],
    prompt: KV,
    prompt_mask: Bool[Array, "b p"],
    past: KV,
    past_mask: Bool[Array, "t s"],
) -> Float[Array, "b g t n h"]:
    """Attention of G completions to the prompt they share and each to its own past.

    The prompt's keys [b p k h] are never copied G times: its queries are read as one sequence of
    g * t. The two parts are merged by their log-sum-exp, so the result is the softmax over both.
    """
    B, G, T, N, H = q.shape
    from_prompt, prompt_lse = attend(
        q.reshape(B, G * T, N, H), prompt.k, prompt.v, prompt_mask[:, None, :]
    )
    k, v = (x.reshape(B * G, *x.shape[2:]) for x in past)
    from_past, past_lse = attend(q.reshape(B * G, T, N, H), k, v, past_mask[None])
    merged = merge(
        from_prompt.reshape(q.shape),
        prompt_lse.reshape(B, G, T, N),
        from_past.reshape(q.shape),
        past_lse.reshape(B, G, T, N),
    )
    return checkpoint_name(merged.astype(q.dtype), OUTPUT)


def merge(
    one: Float[Array, "*b h"],
    one_lse: Float[Array, "*b"],
    other: Float[Array, "*b h"],
    other_lse: Float[Array, "*b"],
) -> Float[Array, "*b h"]:
    """Attention over two sets of keys, of that over each and the log-sum-exp of its scores."""
    odds = (one_lse - other_lse)[..., None]
    return jax.nn.sigmoid(odds) * one + jax.nn.sigmoid(-odds) * other


def attend_group(
    q: Float[Array, "b t n h"], kv: KV, prefix_mask: Bool[Array, "b p"], group: int
) -> Float[Array, "b t n h"]:
    """Causal attention of a prompt, and of G completions to the prompt and each to its own past.

    Args:
      q, kv: of the prompt and its completions as one sequence, t = p + g * c.
      prefix_mask: the real tokens of the prompt; padding is on the right.
      group: G.
    """
    (prefix_q, own_q), prefix, own = split_group(q, kv, prefix_mask.shape[1], group)
    length = own_q.shape[2]
    causal = jnp.tril(jnp.ones((length, length), bool))
    return join_group(
        attend_causal(prefix_q, *prefix, prefix_mask),
        attend_prompt_and_past(own_q, prefix, prefix_mask, own, causal),
    )


def join_group(prefix: Shaped[Array, "b p *x"], own: Shaped[Array, "b g c *x"]) -> Array:
    """A prompt and its completions as one sequence [b t *x], t = p + g * c."""
    B, G, C = own.shape[:3]
    return jnp.concatenate([prefix, own.reshape(B, G * C, *own.shape[3:])], axis=1)


def parts_of_group(x: Shaped[Array, "b t *x"], prefix: int, group: int) -> tuple[Array, Array]:
    """The inverse of `join_group`: [b p *x] and [b g c *x]."""
    B = x.shape[0]
    return x[:, :prefix], x[:, prefix:].reshape(B, group, -1, *x.shape[2:])


def split_group(q: Array, kv: KV, prefix: int, group: int) -> tuple[tuple[Array, Array], KV, KV]:
    """Queries of prompt and completions, then keys and values of the prompt, and of the
    completions.
    """
    (prefix_k, own_k), (prefix_v, own_v) = (parts_of_group(x, prefix, group) for x in kv)
    return parts_of_group(q, prefix, group), KV(prefix_k, prefix_v), KV(own_k, own_v)
