"""Attention by splash attention (TPU, Pallas): flash attention that skips what a static mask hides.

One call per layer: the static mask says what may see what by position, segment ids hide padding.
The kernel takes grouped queries as they are. `interpret` runs it on any machine, slowly.

Letters: b batch, g group, t tokens, p prefix, c completion, n query heads, k key-value heads,
h head size, r rows.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.models.attention import plain
from balcap_jax.models.attention.plain import KV, OUTPUT
from balcap_jax.parallel.sharding import BATCH_AXES, image_axes, mesh_in_context

# Least and largest side of the kernel's blocks of queries and keys.
LANES, BLOCK = 128, 512


def attend_causal(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    mask: Bool[Array, "b t"],
    *,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Causal attention; `mask` marks the real keys."""
    return _attend(q, k, v, mask.astype(jnp.int32), (q.shape[1], 0, 0), interpret=interpret)


def attend_group(
    q: Float[Array, "b t n h"],
    kv: KV,
    prefix_mask: Bool[Array, "b p"],
    group: int,
    *,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """See `plain.attend_group`."""
    prefix = prefix_mask.shape[1]
    own = q.shape[1] - prefix
    segments = jnp.pad(prefix_mask.astype(jnp.int32), [(0, 0), (0, own)], constant_values=1)
    return _attend(q, *kv, segments, (prefix, group, own // group), interpret=interpret)


def attend_segments(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t n h"],
    v: Float[Array, "b t n h"],
    segments: Int[Array, "b t"],
    *,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """See `plain.attend_segments`."""
    return _attend(q, k, v, segments, None, interpret=interpret)


def attend_rows(
    q: Float[Array, "r t n h"],
    k: Float[Array, "r t n h"],
    v: Float[Array, "r t n h"],
    sizes: Int[Array, " r"],
    *,
    interpret: bool = False,
) -> Float[Array, "r t n h"]:
    """See `plain.attend_rows`. Rows below one block, such as windows, are left to XLA."""
    if q.shape[1] < LANES:
        return plain.attend_rows(q, k, v, sizes)
    real = jnp.arange(q.shape[1])[None] < sizes[:, None]
    return _attend(q, k, v, real.astype(jnp.int32), None, interpret=interpret)


def shared_prompt_mask(
    prefix: int, group: int, length: int, total: int
) -> Bool[np.ndarray, "{total} {total}"]:
    """What may see what in [prefix, group completions of `length`, padding up to `total`].

    All is causal; a completion sees the prefix and itself, padding only itself.
    """
    position = np.arange(total)
    part = np.where(position < prefix, -1, (position - prefix) // max(length, 1))
    part = np.where(position < prefix + group * length, part, group)
    see_prefix = (part[:, None] < group) & (part[None] == -1)
    same = part[:, None] == part[None]
    return (same | see_prefix) & (position[:, None] >= position[None])


@lru_cache(maxsize=64)
def _kernel(layout: tuple[int, int, int] | None, total: int, heads: int, interpret: bool) -> Any:  # noqa: FBT001
    """The kernel for sequences of `total`; without a layout all may see all."""
    if layout is None:
        mask = splash.FullMask((total, total))
    else:
        mask = splash.NumpyMask(shared_prompt_mask(*layout, total))
    block = min(total, BLOCK)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    # Made while a program is traced, kept for the next one: its arrays must be no tracers.
    with jax.ensure_compile_time_eval():
        return splash.make_splash_mha(
            splash.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=OUTPUT,
            interpret=interpret,
        )


def _attend(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b t k h"],
    v: Float[Array, "b t k h"],
    segments: Int[Array, "b t"],
    layout: tuple[int, int, int] | None,
    *,
    interpret: bool,
) -> Float[Array, "b t n h"]:
    T, H = q.shape[1], q.shape[3]
    step = LANES if T <= BLOCK else BLOCK
    padding = -T % step
    # Every row sees itself, so that no softmax is empty: padding is a segment of its own.
    segments = jnp.pad(segments, [(0, 0), (0, padding)], constant_values=-1)

    def inward(x: Array) -> Array:  # [b t n h] -> [b n t h]
        return jnp.pad(x, [(0, 0), (0, padding), (0, 0), (0, 0)]).swapaxes(1, 2)

    # The kernel does not scale.
    scaled = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype)
    run = partial(_run, layout=layout, interpret=interpret)
    # Without a layout all see all: the patches of images.
    axes = image_axes(len(q)) if layout is None else BATCH_AXES
    over_mesh = _over_mesh(run, axes, batch=len(q), heads=q.shape[2], kv_heads=k.shape[2])
    out = over_mesh(inward(scaled), inward(k), inward(v), segments)
    return out.swapaxes(1, 2)[:, :T].astype(q.dtype)


def _run(
    q: Array, k: Array, v: Array, segments: Array, *, layout: Any, interpret: bool
) -> Float[Array, "b n t h"]:
    kernel = _kernel(layout, q.shape[2], q.shape[1], interpret)
    return jax.vmap(lambda q, k, v, s: kernel(q, k, v, splash.SegmentIds(s, s)))(q, k, v, segments)


def _over_mesh(run: Any, axes: tuple[str, ...], *, batch: int, heads: int, kv_heads: int) -> Any:
    """`run` on each device's share: XLA cannot split a kernel by itself.

    Batch over `axes`, heads over `tensor` unless that is one of them; what does not divide is
    computed by all. Of key-value heads that are fewer than `tensor` every device has all, and takes
    the one that its queries share.
    """
    mesh = mesh_in_context()
    if mesh is None or mesh.size == 1:
        return run
    rows = axes if batch % int(np.prod([mesh.shape[axis] for axis in axes])) == 0 else None
    parts = 1 if "tensor" in axes else mesh.shape["tensor"]
    split = parts > 1 and heads % parts == 0
    if split and kv_heads % parts == 0:
        q_spec = kv_spec = P(rows, "tensor")
        local = run
    elif split and parts % kv_heads == 0:
        q_spec, kv_spec = P(rows, "tensor"), P(rows)

        def local(q: Array, k: Array, v: Array, segments: Array) -> Array:
            which = jax.lax.axis_index("tensor") * kv_heads // parts
            k, v = (jax.lax.dynamic_slice_in_dim(x, which, 1, axis=1) for x in (k, v))
            return run(q, k, v, segments)

    else:
        q_spec = kv_spec = P(rows)
        local = run
    return jax.shard_map(
        local,
        in_specs=(q_spec, kv_spec, kv_spec, P(rows)),
        out_specs=q_spec,
        check_vma=False,
    )
