"""Attention of packed tokens: by any kernel on the slots of the padded batch, and in plain XLA.

The slots take gathers both ways and no work on kernels: scores of padding are computed, but these
are few beside the matmuls of a large policy. Plain XLA works tile by tile: a tile's queries see the
prefix of their prompt and the tiles before them that the longest completion reaches back to, one
softmax over both.

Letters: b batch, r rows, n places, i tiles, w places of a tile, p prefix, q query heads, k
key-value heads, h head size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Shaped

from balcap_jax.models.attention.plain import KV, OUTPUT, attend, attend_causal
from balcap_jax.models.packing import Packing
from balcap_jax.parallel.sharding import constrain_heads


def through_slots(attend_group: Callable[..., Array]) -> Callable[..., Array]:
    """Attention of packed tokens by such as `plain.attend_group`."""

    def attend_packed(
        q: Float[Array, "r n q h"], kv: KV, prefix_mask: Bool[Array, "b p"], packing: Packing
    ) -> Float[Array, "r n q h"]:
        q, k, v = (constrain_heads(packing.unpack(x, len(prefix_mask))) for x in (q, *kv))
        return packing.pack(attend_group(q, KV(k, v), prefix_mask, packing.group))

    return attend_packed


def attend_tiles(
    q: Float[Array, "r n q h"],
    kv: KV,
    prefix_mask: Bool[Array, "b p"],
    packing: Packing,
    *,
    attend: Callable[..., tuple[Array, Array]] = attend,
) -> Float[Array, "r n q h"]:
    """`plain.attend_group` of tokens that are packed.

    Args:
      attend: `plain.attend`, or another that does the same, of the tiles of completions.
    """
    (B, P), own, width = prefix_mask.shape, packing.room.own, packing.tile
    rows, tiles = packing.rows, own // width

    def tiled(x: Shaped[Array, "r own *x"]) -> Shaped[Array, "r i w *x"]:
        return x.reshape(rows, tiles, width, *x.shape[2:])

    prefix_q, *prefix = (packing.unpack_prefix(x[:, own:], B) for x in (q, *kv))
    of_prefix = attend_causal(prefix_q, *prefix, prefix_mask)

    completion = jnp.where(packing.own_slots < 0, -1, packing.own_slots // packing.length)
    completion = tiled(completion)
    back = min(-(-(packing.length - 1) // width), tiles - 1)
    # A place sees those of its completion up to itself; padding sees padding.
    same = completion[..., None] == _band(completion, back, fill=-2)[:, :, None]
    place = jnp.arange(width)[:, None] + back * width
    before = place >= jnp.arange((back + 1) * width)[None]
    prompt = _prompt_of(packing, B // rows, tiled)
    see_prefix = _take(prefix_mask.reshape(rows, -1, P), prompt)[:, :, None]
    see_prefix = jnp.broadcast_to(see_prefix, (rows, tiles, width, P))
    mask = jnp.concatenate([see_prefix, same & before[None, None]], axis=-1)

    def keys(prefix: Float[Array, "b p k h"], x: Float[Array, "r n k h"]) -> Array:
        shared = _take(prefix.reshape(rows, -1, *prefix.shape[1:]), prompt)
        joined = jnp.concatenate([shared, _band(tiled(x[:, :own]), back)], axis=2)
        return joined.reshape(rows * tiles, *joined.shape[2:])

    k, v = (keys(shared, x) for shared, x in zip(prefix, kv, strict=True))
    flat_q = q[:, :own].reshape(rows * tiles, width, *q.shape[2:])
    of_own = attend(flat_q, k, v, mask.reshape(rows * tiles, width, -1))[0]
    of_own = checkpoint_name(of_own.astype(q.dtype), OUTPUT).reshape(rows, own, *q.shape[2:])
    return jnp.concatenate([of_own, packing.pack_prefix(of_prefix)], axis=1)


def _band(x: Shaped[Array, "r i w *x"], back: int, *, fill: int = 0) -> Array:
    """Each tile behind the `back` ones before it: [r i (back + 1) * w ...]."""
    tiles = x.shape[1]
    widths = [(0, 0), (back, 0)] + [(0, 0)] * (x.ndim - 2)
    padded = jnp.pad(x, widths, constant_values=fill)
    return jnp.concatenate([padded[:, i : i + tiles] for i in range(back + 1)], axis=2)


def _take(x: Shaped[Array, "r b *x"], index: Int[Array, "r i"]) -> Shaped[Array, "r i *x"]:
    return jax.vmap(lambda of_row, at: of_row[at])(x, index)


def _prompt_of(
    packing: Packing, prompts: int, tiled: Callable[[Array], Array]
) -> Int[Array, "r i"]:
    """The prompt of each tile within its row; that of a tile of padding does not matter."""
    each = packing.own_places.shape[1] // prompts
    return jnp.maximum(tiled(packing.own_slots)[:, :, 0], 0) // each
