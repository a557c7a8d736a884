"""Which cells there are, in the order in which they tell the most."""

from collections.abc import Sequence
from typing import NamedTuple

from balcap_jax.evidence.cells import Cell
from balcap_jax.evidence.claims import Claim


class Planned(NamedTuple):
    """A cell and what it is for.

    Attributes:
      key: the name of its folder.
      names: of the claims' settings that it is a seed of, such as "spreads/gdpo"; several where
        claims share it.
    """

    key: str
    cell: Cell
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{', '.join(self.names)}, seed {self.cell.seed}"


def plan_of(claims: Sequence[Claim], *, seeds: int, code: str) -> list[Planned]:
    """Every cell once: required claims before the others, and among them a first seed of all before
    a second seed of any, since an effect that is there is mostly seen by few seeds; a setting that
    `waits` joins so many seeds later.

    Args:
      seeds: seeds 0, 1, ... of each setting, fewer where it says so.
      code: see `code_version`.
    """
    cells: dict[str, Cell] = {}
    names: dict[str, list[str]] = {}
    settings = [
        (claim, name, setting)
        for required in (True, False)
        for claim in claims
        if claim.required == required
        for name, setting in claim.settings.items()
    ]
    order = [
        (not claim.required, seed + setting.waits, claim, name, seed)
        for claim, name, setting in settings
        for seed in range(seeds if setting.seeds is None else min(seeds, setting.seeds))
    ]
    for *_, claim, name, seed in sorted(order, key=lambda place: place[:2]):
        cell = claim.cell(name, seed)
        key = cell.key(code)
        cells.setdefault(key, cell)
        names.setdefault(key, []).append(f"{claim.name}/{name}")
    return [Planned(key, cell, tuple(names[key])) for key, cell in cells.items()]
