"""Questions about scenes with exact answers: true statements, and the same with one thing changed.

A scene is described, and described again by the same draws with one edit (object, colour, count,
place). What both descriptions say is in the same words, so nothing but the image tells the true
statement from the false one.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from balcap_jax.data.examples import Turn
from balcap_jax.rewards.model.statements import statements
from balcap_jax.rewards.scene.claims import read
from balcap_jax.scenes.captions import describe
from balcap_jax.scenes.world import COLOURS, GRID, SHAPES, Scene, Thing

_TRIES = 200  # descriptions of a scene; one of a single dull thing has few different statements


class Pair(NamedTuple):
    """A true statement of a scene, and a false one that an edit made of it.

    Attributes:
      kind: what was edited, one of EDITS.
    """

    kind: str
    true: str
    false: str


def is_true(statement: str, scene: Scene) -> bool | None:
    """Whether a scene is as a statement says; None where the scene judge does not understand it."""
    readings = read(statement, scene)
    claims = [claim for reading in readings for claim in reading.claims]
    if not claims or any(reading.remarks for reading in readings):
        return None
    return all(claim.true for claim in claims)


def pairs(scene: Scene, rng: random.Random) -> Iterator[Pair]:
    """Pairs of statements, without an end; the same pair may come again."""
    kinds = list(EDITS)
    while True:
        rng.shuffle(kinds)
        for kind in kinds:
            edited = EDITS[kind](scene, rng)
            if edited is None:
                continue
            draws = rng.random()
            told = describe(random.Random(draws), scene)
            wrong = describe(random.Random(draws), edited)
            found = [
                Pair(kind, *pair)
                for one, other in zip(told, wrong, strict=False)
                if one != other
                for pair in zip(
                    (s.text for s in statements(one)),
                    (s.text for s in statements(other)),
                    strict=False,
                )
                if is_true(pair[0], scene) is True and is_true(pair[1], scene) is False
            ]
            if found:
                yield rng.choice(found)
        # A scene always has another colour, so that there is a pair to come.


def scene_questions(scene: Scene, rng: random.Random, count: int) -> list[Turn]:
    """`count` questions, half of them (rounded down) with the answer yes, in any order; each once
    as long as the scene has others.
    """
    yes: dict[str, None] = {}
    no: dict[str, None] = {}
    for _, pair in zip(range(_TRIES), pairs(scene, rng), strict=False):
        if len(yes) < count // 2:
            yes.setdefault(pair.true)
        if len(no) < count - count // 2:
            no.setdefault(pair.false)
        if len(yes) + len(no) == count:
            break
    turns = [*_filled(yes, count // 2, "yes"), *_filled(no, count - count // 2, "no")]
    rng.shuffle(turns)
    return turns


def _filled(texts: dict[str, None], count: int, answer: str) -> list[Turn]:
    known = list(texts)
    return [Turn(known[i % len(known)], answer) for i in range(count)] if known else []


# Edits ------------------------------------------------------------------------------------------


def _with(scene: Scene, index: int, **changes: object) -> Scene:
    things = list(scene.things)
    things[index] = dataclasses.replace(things[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(scene, things=tuple(things))


def _another(rng: random.Random, now: str, all_: tuple[str, ...], seen: list[str]) -> str:
    """Another value; half of the time one that the scene has elsewhere, as captioners confuse."""
    near = [value for value in seen if value != now]
    if near and rng.random() < 0.5:
        return rng.choice(near)
    return rng.choice([value for value in all_ if value != now])


def _look(scene: Scene, rng: random.Random, field: str, all_: tuple[str, ...]) -> Scene | None:
    index = rng.randrange(len(scene.things))
    thing = scene.things[index]
    new = _another(rng, getattr(thing, field), all_, [getattr(t, field) for t in scene.things])
    changed: Thing = dataclasses.replace(thing, **{field: new})
    if (changed.shape, changed.colour) in {(t.shape, t.colour) for t in scene.things}:
        return None
    return _with(scene, index, **{field: new})


def _object(scene: Scene, rng: random.Random) -> Scene | None:
    return _look(scene, rng, "shape", SHAPES)


def _colour(scene: Scene, rng: random.Random) -> Scene | None:
    return _look(scene, rng, "colour", tuple(COLOURS))


def _count(scene: Scene, rng: random.Random) -> Scene | None:
    groups = [i for i, thing in enumerate(scene.things) if thing.count > 1]
    if not groups:
        return None
    index = rng.choice(groups)
    return _with(
        scene, index, count=rng.choice([n for n in (2, 3, 4) if n != scene.things[index].count])
    )


def _place(scene: Scene, rng: random.Random) -> Scene | None:
    """A cluster in another cell that is free."""
    taken = {(thing.row, thing.col) for thing in scene.things}
    if scene.sign is not None:
        taken.add((scene.sign.row, scene.sign.col))
    free = [(r, c) for r in range(GRID) for c in range(GRID) if (r, c) not in taken]
    if not free:
        return None
    here = rng.choice([(thing.row, thing.col) for thing in scene.things])
    row, col = rng.choice(free)
    things = tuple(
        dataclasses.replace(thing, row=row, col=col) if (thing.row, thing.col) == here else thing
        for thing in scene.things
    )
    return dataclasses.replace(scene, things=things)


EDITS: dict[str, Callable[[Scene, random.Random], Scene | None]] = {
    "object": _object,
    "colour": _colour,
    "count": _count,
    "place": _place,
}
