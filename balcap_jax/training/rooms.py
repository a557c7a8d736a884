"""Which program an update takes: rows of one room each, of which few are compiled."""

from collections import Counter
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from balcap_jax.models.packing import Room, room_for
from balcap_jax.rl.balance import Parts

# A smaller room than one that is there is compiled once so many steps have wanted it. Compiling
# takes as long as a few dozen steps save.
PATIENCE = 16
WASTE = 2.0  # a room larger than so many times that one is not taken in its place


class Rooms:
    """The rooms that a run has compiled, and chooses from.

    A function of the batches so far alone: all hosts choose alike, and a resumed run, which takes
    `state` up, as one that never stopped.
    """

    def __init__(self) -> None:
        self.made: list[Room] = []
        self.wanted: Counter[Room] = Counter()

    def choose(self, least: Room) -> Room:
        """A room for a batch that needs at least this one."""
        if least in self.made:
            return least
        fitting = [room for room in self.made if _holds(room, least)]
        self.wanted[least] += 1
        if fitting and self.wanted[least] < PATIENCE:
            nearest = min(fitting, key=sum)
            if sum(nearest) <= WASTE * sum(least):
                return nearest
        del self.wanted[least]
        self.made.append(least)
        return least

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"made": self.made, "wanted": [[*room, n] for room, n in self.wanted.items()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.made = [Room(*sizes) for sizes in state["made"]]
        self.wanted = Counter({Room(*sizes): n for *sizes, n in state["wanted"]})


def _holds(room: Room, least: Room) -> bool:
    return all(have >= need for have, need in zip(room, least, strict=True))


def least_room(
    token_counts: Int[np.ndarray, "b g"],
    valid: Bool[np.ndarray, "b g"],
    prefix_counts: Int[np.ndarray, " b"],
    *,
    length: int,
    prefix_length: int,
    parts: Parts,
) -> Room | None:
    """`room_for` the captions with a signal, of all hosts."""
    own = np.where(valid, token_counts, 0).sum(axis=1)
    order = None if parts.alone else parts.order(own)

    def of_rows(counts: Int[np.ndarray, " b"]) -> Int[np.ndarray, "r i m"]:
        ordered = counts if order is None else parts.ordered(counts, order)
        # As `split_micro_batches` splits them.
        return ordered.reshape(parts.rows, -1, parts.micro_batches).swapaxes(1, 2)

    return room_for(
        of_rows(own),
        of_rows(prefix_counts),
        group=valid.shape[1],
        length=length,
        prefix_length=prefix_length,
    )


def real_share(
    token_counts: Int[np.ndarray, "b g"],
    valid: Bool[np.ndarray, "b g"],
    prefix_counts: Int[np.ndarray, " b"],
    room: Room | None,
    *,
    length: int,
    prefix_length: int,
    parts: Parts,
) -> float:
    """Real tokens by tokens that the update computes: those of prompts, and of captions with a
    signal, by all places of rows; or of slots, where nothing is packed.
    """
    B, G = valid.shape
    real = int(np.where(valid, token_counts, 0).sum()) + int(prefix_counts.sum())
    computed = B * (prefix_length + G * length)
    if room is not None:
        computed = sum(room) * parts.rows * parts.micro_batches
    return real / computed
