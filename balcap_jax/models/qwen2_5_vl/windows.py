"""Attention within windows: patches go to the slots of their window and come back.

Letters: b batch, s patches, w windows, l slots of a window, n heads, h head size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from balcap_jax.models.inputs import AnyArray
from balcap_jax.models.rearrange import rearrange


class WindowIndex(NamedTuple):
    """Which patch stands in which slot, both ways; -1 where there is none.

    Attributes:
      patches: the patch of each slot; the empty slots of a window come last.
      slots: the slot of each patch, counted over all windows of its prompt.
    """

    patches: Int[Array, "b w l"]
    slots: Int[Array, "b s"]


def index_windows(windows: Int[AnyArray, "b w l"], patches: int) -> WindowIndex:
    """From `ImagePatches.windows`, for prompts padded to `patches`."""
    windows = jnp.asarray(windows)

    def slots_of(flat: Int[Array, " slots"]) -> Int[Array, " s"]:
        where = jnp.where(flat < 0, patches, flat)  # out of bounds: dropped
        return jnp.full(patches, -1, jnp.int32).at[where].set(jnp.arange(flat.size), mode="drop")

    return WindowIndex(windows, jax.vmap(slots_of)(windows.reshape(len(windows), -1)))


def attend_windows(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s n h"],
    v: Float[Array, "b s n h"],
    *,
    index: WindowIndex,
    attend_rows: Callable[[Array, Array, Array, Array], Array],
) -> Float[Array, "b s n h"]:
    """Attention of each patch to those of its window; 0 for patches that are in none.

    Args:
      attend_rows: such as `attention.attend_rows`; each window is a row.
    """
    b, w, slots = index.patches.shape
    flat = index.patches.reshape(b, w * slots)
    rows = (rearrange(x, flat, index.slots).reshape(b * w, slots, *x.shape[2:]) for x in (q, k, v))
    sizes = jnp.sum(index.patches >= 0, axis=-1).reshape(b * w)
    out = attend_rows(*rows, sizes)
    return rearrange(out.reshape(b, w * slots, *q.shape[2:]), index.slots, flat)
