"""Attention by cuDNN's fused kernels (NVIDIA), through `jax.nn.dot_product_attention`.

`implementation` is "cudnn"; tests run the same calls with "xla", which takes the same arguments.

Letters: b batch, g group, t tokens, p prefix, c completion, n query heads, k key-value heads,
h head size, r rows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.models.attention.plain import KV, join_group, split_group

CUDNN = "cudnn"


def attend_causal(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    mask: Bool[Array, "b t"],
    *,
    implementation: str = CUDNN,
) -> Float[Array, "b t n h"]:
    """Causal attention of tokens that are padded on the right."""
    del mask  # a real token sees no later one, so none of the padding
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)


def attend_group(
    q: Float[Array, "b t n h"],
    kv: KV,
    prefix_mask: Bool[Array, "b p"],
    group: int,
    *,
    implementation: str = CUDNN,
) -> Float[Array, "b t n h"]:
    """See `attention.attend_group`.

    A layer's keys and values, small by grouped queries, are copied G times for the length of its
    call. Without the copy there would be two calls, to be merged by their log-sum-exp, and cuDNN's
    gradient of that is none.
    """
    P = prefix_mask.shape[1]
    (prefix_q, own_q), prefix, own = split_group(q, kv, P, group)
    B, G, C, N, H = own_q.shape
    # cuDNN takes gradients beside a mask for even lengths only.
    odd_p, odd_c = P % 2, C % 2

    def keys(shared: Array, each: Array) -> Array:
        shared = jnp.pad(shared, [(0, 0), (0, odd_p), (0, 0), (0, 0)])
        each = jnp.pad(each, [(0, 0), (0, 0), (0, odd_c), (0, 0), (0, 0)])
        shared = jnp.broadcast_to(shared[:, None], (B, G, *shared.shape[1:]))
        joined = jnp.concatenate([shared, each], axis=2)
        return joined.reshape(B * G, *joined.shape[2:])

    even = C + odd_c
    visible = jnp.pad(prefix_mask, [(0, 0), (0, odd_p)])
    visible = jnp.broadcast_to(visible[:, None, None], (B, G, even, P + odd_p))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((even, even), bool)), (B, G, even, even))
    mask = jnp.concatenate([visible, causal], axis=-1).reshape(B * G, 1, even, -1)
    own_q = jnp.pad(own_q, [(0, 0), (0, 0), (0, odd_c), (0, 0), (0, 0)])
    of_own = jax.nn.dot_product_attention(
        own_q.reshape(B * G, even, N, H),
        keys(prefix.k, own.k),
        keys(prefix.v, own.v),
        mask=mask,
        implementation=implementation,
    )
    of_prefix = attend_causal(
        prefix_q, prefix.k, prefix.v, prefix_mask, implementation=implementation
    )
    return join_group(of_prefix, of_own[:, :C].reshape(B, G, C, N, H))


def attend_segments(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t n h"],
    v: Float[Array, "b t n h"],
    segments: Int[Array, "b t"],
    *,
    implementation: str = CUDNN,
) -> Float[Array, "b t n h"]:
    """See `attention.attend_segments`; ids count up from 0, padding (-1) is on the right.

    A batch of one image each is computed by lengths, others with a mask over all pairs.
    """
    T = q.shape[1]

    def by_length() -> Array:
        sizes = jnp.sum(segments >= 0, axis=1)
        return attend_rows(q, k, v, sizes, implementation=implementation)

    def by_mask() -> Array:
        padding = [(0, 0), (0, T % 2)]  # even, as in `attend_group`
        wide = (jnp.pad(x, [*padding, (0, 0), (0, 0)]) for x in (q, k, v))
        ids = jnp.pad(segments, padding, constant_values=-1)
        mask = (ids[:, :, None] == ids[:, None, :])[:, None]
        out = jax.nn.dot_product_attention(*wide, mask=mask, implementation=implementation)
        return out[:, :T]

    return jax.lax.cond(jnp.max(segments) <= 0, by_length, by_mask)


def attend_rows(
    q: Float[Array, "r t n h"],
    k: Float[Array, "r t n h"],
    v: Float[Array, "r t n h"],
    sizes: Int[Array, " r"],
    *,
    implementation: str = CUDNN,
) -> Float[Array, "r t n h"]:
    """See `attention.attend_rows`."""
    sizes = jnp.maximum(sizes, 1).astype(jnp.int32)  # a row without keys has no softmax
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=sizes,
        key_value_seq_lengths=sizes,
        implementation=implementation,
    )
