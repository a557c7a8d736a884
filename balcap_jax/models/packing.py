"""Packing: only real tokens of a batch go through the layers, padded to few sizes.

The prompts of a device, each with its group of completions, become one row: first the completion
tokens that count, prompt after prompt, then the tokens of the prompts. Everything that is computed
token by token (norms, projections, MLPs, logits) runs on this row. Attention alone knows the parts.

A prompt's completion tokens begin at a tile, a quarter of the longest completion: attention works
tile by tile, or on the slots of the padded batch (`attention.packed`).

Letters: b batch, g group, c tokens, p prefix, t = p + g * c slots of a prompt, r rows, n places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Num, Shaped

from balcap_jax.models.rearrange import rearrange

# Rows have 4, 5, 6 or 7 times a power of two places: at most a fifth is padding, and a run in which
# lengths double compiles four programs.
STEPS = (4, 5, 6, 7)


class Room(NamedTuple):
    """How many places a row has; static, each pair is a program of its own.

    Attributes:
      own: for tokens of completions, in whole tiles.
      prefix: for tokens of prompts.
    """

    own: int
    prefix: int


def next_size(count: int, steps: Sequence[int] = STEPS) -> int:
    """The least size of a row with so many places, one of `steps` times a power of two."""
    scale = 1
    while steps[-1] * scale < count:
        scale *= 2
    return next(step * scale for step in steps if step * scale >= count)


def tile_of(length: int) -> int:
    """Places of a tile, for completions of at most `length` tokens."""
    return -(-length // 4)


def room_for(
    own: Int[np.ndarray, "*parts b"],
    prefix: Int[np.ndarray, "*parts b"],
    *,
    group: int,
    length: int,
    prefix_length: int,
    steps: Sequence[int] = STEPS,
) -> Room | None:
    """The least room that every row fits into; None where padding takes no more.

    Args:
      own: tokens of completions that count, by prompt, the b prompts of a row along the last axis.
      prefix: tokens of prompts.
      group, length, prefix_length: G, C and P of the padded batch.
      steps: see `next_size`.
    """
    prompts, tile = own.shape[-1], tile_of(length)
    room = Room(
        own=_round_up(next_size(int(_round_up(own, tile).sum(axis=-1).max()), steps), tile),
        prefix=min(next_size(int(prefix.sum(axis=-1).max()), steps), prompts * prefix_length),
    )
    padded = prompts * group * length
    if room.own >= padded and room.prefix == prompts * prefix_length:
        return None
    return room._replace(own=min(room.own, _round_up(padded, tile)))


def _round_up(count: Num[np.ndarray, "*n"] | int, step: int) -> Num[np.ndarray, "*n"] | int:
    return -(-count // step) * step


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch are; made inside jit, of masks.

    Attributes:
      room, tile: of a row, and of a tile, in places.
      group, length: G and C.
      places: the place of each slot in its row, -1 for those that have none.
      slots: the slot of each place, -1 for padding.
      own_places, own_slots, prefix_places, prefix_slots: the same of the two parts of a row, among
        the slots of completions and of prompts.
      fits: every row has room for its tokens.
    """

    room: Room
    tile: int
    group: int
    length: int
    own_places: Int[Array, "r bgc"]
    own_slots: Int[Array, "r own"]
    prefix_places: Int[Array, "r bp"]
    prefix_slots: Int[Array, "r prefix"]
    places: Int[Array, "r bt"]
    slots: Int[Array, "r n"]
    fits: Bool[Array, ""]

    @classmethod
    def of(
        cls,
        room: Room,
        prefix_mask: Bool[Array, "b p"],
        mask: Bool[Array, "b g c"],
        *,
        rows: int,
    ) -> "Packing":
        """
        Args:
          prefix_mask: the real tokens of prompts.
          mask: tokens of completions that count; all tokens before one that counts do so, too.
          rows: in how many parts the mesh splits the batch.
        """
        (B, P), (_, G, C) = prefix_mask.shape, mask.shape
        prompts, tile = B // rows, tile_of(C)
        own = _index(mask.reshape(rows, prompts, G * C), room.own, tile)
        # Where there is room for all slots of prompts, each stays where it is.
        kept = prefix_mask | (room.prefix == prompts * P)
        prefix = _index(kept.reshape(rows, prompts, P), room.prefix, 1)
        after_own = jnp.where(prefix.places < 0, -1, prefix.places + room.own)
        parts = after_own.reshape(B, P), own.places.reshape(B, G * C)
        total = P + G * C
        slots = _among(own.slots, G * C, total, start=P), _among(prefix.slots, P, total, start=0)
        return cls(
            room=room,
            tile=tile,
            group=G,
            length=C,
            own_places=own.places,
            own_slots=own.slots,
            prefix_places=prefix.places,
            prefix_slots=prefix.slots,
            places=jnp.concatenate(parts, axis=1).reshape(rows, -1),
            slots=jnp.concatenate(slots, axis=1),
            fits=own.fits & prefix.fits,
        )

    @property
    def rows(self) -> int:
        return len(self.slots)

    def pack(self, x: Shaped[Array, "b t *x"]) -> Shaped[Array, "r n *x"]:
        """From slots [prefix, completions] of prompts to rows, 0 at padding."""
        return rearrange(x.reshape(self.rows, -1, *x.shape[2:]), self.slots, self.places)

    def unpack(self, x: Shaped[Array, "r n *x"], batch: int) -> Shaped[Array, "b t *x"]:
        """The inverse of `pack`; 0 in slots that have no place."""
        return rearrange(x, self.places, self.slots).reshape(batch, -1, *x.shape[2:])

    def pack_own(self, x: Shaped[Array, "b g c *x"]) -> Shaped[Array, "r own *x"]:
        """`pack` of what completions alone have."""
        rows = x.reshape(self.rows, -1, *x.shape[3:])
        return rearrange(rows, self.own_slots, self.own_places)

    def unpack_own(
        self, x: Shaped[Array, "r own *x"], shape: tuple[int, int, int]
    ) -> Shaped[Array, "b g c *x"]:
        """The inverse of `pack_own`; `shape` is [b g c]."""
        return rearrange(x, self.own_places, self.own_slots).reshape(*shape, *x.shape[2:])

    def take_own(
        self, x: Shaped[Array, "r own *x"], at: Int[Array, "b g k"], shape: tuple[int, int, int]
    ) -> Shaped[Array, "b g k *x"]:
        """Of each completion its tokens `at`, without a gradient to speak of; what has no place is
        without meaning. `shape` is [b g c].
        """
        places = jnp.take_along_axis(self.own_places.reshape(shape), at, axis=2)
        flat = jnp.maximum(places, 0).reshape(self.rows, -1)
        taken = jnp.take_along_axis(x, flat.reshape(*flat.shape, *[1] * (x.ndim - 2)), axis=1)
        return taken.reshape(*at.shape, *x.shape[2:])

    def pack_prefix(self, x: Shaped[Array, "b p *x"]) -> Shaped[Array, "r prefix *x"]:
        """`pack` of what prompts alone have."""
        rows = x.reshape(self.rows, -1, *x.shape[2:])
        if rows.shape[1] == self.room.prefix:
            return rows
        return rearrange(rows, self.prefix_slots, self.prefix_places)

    def unpack_prefix(self, x: Shaped[Array, "r prefix *x"], batch: int) -> Shaped[Array, "b p *x"]:
        """The inverse of `pack_prefix`."""
        if self.prefix_places.shape[1] != self.room.prefix:
            x = rearrange(x, self.prefix_places, self.prefix_slots)
        return x.reshape(batch, -1, *x.shape[2:])


class _Index(NamedTuple):
    places: Int[Array, "r s"]
    slots: Int[Array, "r n"]
    fits: Bool[Array, ""]


def _index(real: Bool[Array, "r b s"], room: int, tile: int) -> _Index:
    """Real slots in their order, those of each prompt from a tile on, both ways."""
    rows, prompts, each = real.shape
    rank = jnp.cumsum(real, axis=2, dtype=jnp.int32) - 1
    count = rank[..., -1] + 1
    size = -(-count // tile) * tile
    start = jnp.cumsum(size, axis=1) - size
    place = start[..., None] + rank
    order = jnp.argsort(~real, axis=2, stable=True).astype(jnp.int32)

    # The prompt of each place is the last one that starts there or before.
    n = jnp.arange(room, dtype=jnp.int32)[None]
    prompt = jnp.sum(start[:, None] <= n[..., None], axis=-1, dtype=jnp.int32) - 1
    rank_of = n - jnp.take_along_axis(start, prompt, axis=1)
    used = rank_of < jnp.take_along_axis(count, prompt, axis=1)
    slot = prompt * each + jnp.where(used, rank_of, 0)
    found = jnp.take_along_axis(order.reshape(rows, -1), slot, axis=1)
    return _Index(
        places=jnp.where(real & (place < room), place, -1).reshape(rows, -1),
        slots=jnp.where(used, prompt * each + found, -1),
        fits=jnp.all(start[:, -1] + count[:, -1] <= room),
    )


def _among(index: Int[Array, "r n"], each: int, total: int, *, start: int) -> Int[Array, "r n"]:
    """Slots counted among `each` of a prompt, counted among all its `total`, from `start` on."""
    return jnp.where(index < 0, -1, index // each * total + start + index % each)
