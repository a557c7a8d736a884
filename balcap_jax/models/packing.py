"""Packing: only real tokens of a batch go through the layers, padded to few sizes.

The prompts of a device, each with its group of completions, become one row: first all completion
tokens that count, then all tokens of prompts. Everything that is computed token by token (norms,
projections, MLPs, logits) runs on this row. Attention alone needs to know who sees whom: for it the
tokens go back to the slots of their prompt and completion, by gathers both ways, so that every
backend computes on packed batches what it computes on padded ones.

Letters: b batch, g group, c tokens, p prefix, t = p + g * c slots of a prompt, r rows, n places.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from balcap_jax.models.attention.plain import KV
from balcap_jax.models.rearrange import rearrange
from balcap_jax.parallel.sharding import constrain_heads

# Rows have 4, 5, 6 or 7 times a power of two places: at most a quarter is padding, and a run in
# which lengths double compiles four programs.
_STEPS = (4, 5, 6, 7)


class Room(NamedTuple):
    """How many places a row has; static, each pair is a program of its own.

    Attributes:
      own: for tokens of completions.
      prefix: for tokens of prompts.
    """

    own: int
    prefix: int


def next_size(count: int) -> int:
    """The least size of a row with so many places, one of 4, 5, 6 or 7 times a power of two."""
    scale = 1
    while _STEPS[-1] * scale < count:
        scale *= 2
    return next(step * scale for step in _STEPS if step * scale >= count)


def rows_of(
    counts: Num[np.ndarray, " b"], *, rows: int, micro_batches: int
) -> Num[np.ndarray, "micro {rows}"]:
    """Tokens of each row of each micro-batch, of those of each prompt.

    Args:
      rows: in how many parts the mesh splits a batch.
      micro_batches: see `rl.update.split_micro_batches`, whose split this is.
    """
    return counts.reshape(rows, -1, micro_batches).sum(axis=1).T


def room_for(
    own: Int[np.ndarray, " b"],
    prefix: Int[np.ndarray, " b"],
    *,
    slots: Room,
    rows: int,
    micro_batches: int,
) -> Room | None:
    """The room that every row of this batch fits into; None where padding takes no more.

    A function of the whole batch alone: equal on all hosts, and in a run that is resumed.

    Args:
      own: tokens of completions that count, by prompt.
      prefix: tokens of prompts.
      slots: of one prompt, as it is padded: G * C and P.
      rows, micro_batches: see `rows_of`.
    """
    split = {"rows": rows, "micro_batches": micro_batches}
    prompts = len(own) // (rows * micro_batches)
    padded = Room(prompts * slots.own, prompts * slots.prefix)
    largest = (int(rows_of(counts, **split).max()) for counts in (own, prefix))
    room = Room(*(min(next_size(n), most) for n, most in zip(largest, padded, strict=True)))
    return None if room == padded else room


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a batch are; made inside jit, of masks.

    Attributes:
      room: of a row.
      places: the place of each slot in its row, -1 for those that are not real.
      slots: the slot of each place, -1 for padding.
      own_places, own_slots: the same among the slots of completions alone.
      fits: every row has room for its tokens.
    """

    room: Room
    places: Int[Array, "r bt"]
    slots: Int[Array, "r n"]
    own_places: Int[Array, "r bgc"]
    own_slots: Int[Array, "r own"]
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
        B, P = prefix_mask.shape
        _, G, C = mask.shape
        own = _index(mask.reshape(rows, -1), room.own)
        prefix = _index(prefix_mask.reshape(rows, -1), room.prefix)
        after_own = jnp.where(prefix.places < 0, -1, prefix.places + room.own)
        parts = (after_own.reshape(B, P), own.places.reshape(B, G * C))
        return cls(
            room=room,
            places=jnp.concatenate(parts, axis=1).reshape(rows, -1),
            slots=jnp.concatenate(
                [
                    _in_slots(own.slots, G * C, total=P + G * C, start=P),
                    _in_slots(prefix.slots, P, total=P + G * C, start=0),
                ],
                axis=1,
            ),
            own_places=own.places,
            own_slots=own.slots,
            fits=own.fits & prefix.fits,
        )

    def pack(self, x: Shaped[Array, "b t *x"]) -> Shaped[Array, "r n *x"]:
        """From slots [prefix, completions] of prompts to rows, 0 at padding."""
        rows = len(self.slots)
        return rearrange(x.reshape(rows, -1, *x.shape[2:]), self.slots, self.places)

    def unpack(self, x: Shaped[Array, "r n *x"], batch: int) -> Shaped[Array, "b t *x"]:
        """The inverse of `pack`; 0 in slots that are not real."""
        return rearrange(x, self.places, self.slots).reshape(batch, -1, *x.shape[2:])

    def pack_own(self, x: Shaped[Array, "b g c *x"]) -> Shaped[Array, "r own *x"]:
        """`pack` of what completions alone have."""
        rows = len(self.slots)
        return rearrange(x.reshape(rows, -1, *x.shape[3:]), self.own_slots, self.own_places)

    def unpack_own(
        self, x: Shaped[Array, "r own *x"], shape: tuple[int, int, int]
    ) -> Shaped[Array, "b g c *x"]:
        """The inverse of `pack_own`."""
        return rearrange(x, self.own_places, self.own_slots).reshape(*shape, *x.shape[2:])

    def around(self, attend: Callable[..., Array]) -> Callable[..., Array]:
        """Such as `plain.attend_group`, of queries, keys and values that are packed, too."""

        def attend_packed(
            q: Float[Array, "r n q h"], kv: KV, prefix_mask: Bool[Array, "b p"], group: int
        ) -> Float[Array, "r n q h"]:
            q, k, v = (constrain_heads(self.unpack(x, len(prefix_mask))) for x in (q, *kv))
            return self.pack(attend(q, KV(k, v), prefix_mask, group))

        return attend_packed


class _Index(NamedTuple):
    places: Int[Array, "r s"]
    slots: Int[Array, "r n"]
    fits: Bool[Array, ""]


def _index(real: Bool[Array, "r s"], room: int) -> _Index:
    """Real slots in their order at the first places of a row, both ways."""
    place = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    count = place[:, -1:] + 1
    order = jnp.argsort(~real, axis=1, stable=True).astype(jnp.int32)[:, :room]
    return _Index(
        places=jnp.where(real & (place < room), place, -1),
        slots=jnp.where(jnp.arange(room)[None] < count, order, -1),
        fits=jnp.all(count <= room),
    )


def _in_slots(index: Int[Array, "r n"], each: int, *, total: int, start: int) -> Int[Array, "r n"]:
    """Slots counted among `each` of a prompt, counted among all its `total`, from `start` on."""
    return jnp.where(index < 0, -1, index // each * total + start + index % each)
