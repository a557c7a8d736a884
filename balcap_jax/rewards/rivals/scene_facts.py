"""What a caption of a scene tells, fact by fact: the exact side of the rewards in this folder."""

from typing import NamedTuple

from balcap_jax.rewards.scene.claims import Claim, facts, read
from balcap_jax.scenes.world import Scene

Fact = tuple  # (kind, what is meant, value): see `Claim.key`; a place is a row and a column

_MAIN = ("thing",)
_DETAILS = ("colour", "texture", "size", "count", "word")


class Told(NamedTuple):
    """What one caption tells.

    Attributes:
      true: by fact, in order: is it so.
      texts: by fact, in plain words.
      repeated: words of claims that are made again in full; names that only come up again are none.
      unclear: words that were not understood.
    """

    true: dict[Fact, bool]
    texts: dict[Fact, str]
    repeated: tuple[str, ...]
    unclear: tuple[str, ...]


def told(caption: str, scene: Scene) -> Told:
    """The facts of a caption; commentary tells none."""
    true: dict[Fact, bool] = {}
    texts: dict[Fact, str] = {}
    repeated: list[str] = []
    unclear: dict[str, None] = {}
    for reading in read(caption, scene):
        for claim in reading.claims:
            found = facts(claim)
            if not claim.restated and all(fact in true for fact in found):
                repeated.append(claim.text)
            for fact in found:
                true.setdefault(fact, _is_so(fact, claim, scene))
                texts.setdefault(fact, claim.text)
        unclear |= {remark.text: None for remark in reading.remarks if not remark.meta}
    return Told(true, texts, tuple(repeated), tuple(unclear))


def severity_of(fact: Fact) -> int:
    """How much a fact matters: 3 for a thing, 2 for what it is like, 1 for the rest."""
    return 3 if fact[0] in _MAIN else 2 if fact[0] in _DETAILS else 1


def _is_so(fact: Fact, claim: Claim, scene: Scene) -> bool:
    """Whether a fact is true: of "at the top left" the row may be right and the column wrong."""
    axis, entity, *_ = (*fact, None)
    if axis not in ("row", "column") or not isinstance(entity, int | str):
        return claim.true
    there = scene.sign if entity == "sign" else scene.things[entity]
    if there is None:
        return False
    return fact[2] == (there.row if axis == "row" else there.col)
