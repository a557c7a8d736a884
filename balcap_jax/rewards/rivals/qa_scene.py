"""Questions about generated scenes, and an exact reader that answers them from a caption.

The questions are made of the scene's truth: colours, counts, places, sizes, textures, what holds or
hides what, what is there, the background and the word on a sign. A question names a thing by what
it does not ask for, so that one thing alone is meant.

The reader is an honest answerer that knows the caption alone. It takes an option if the caption
asserts that option and no other of the question; true or false is not looked at, so that a caption
with a wrong colour gives a wrong answer. Where the caption asserts none of the options, or several
that exclude one another, it does not know: it takes the option that the caption does not tell,
where there is one, and else guesses. The guess is drawn from the caption, the question and the
options as they are shown, not from a random state, so that the same caption has the same reward
whenever it is asked; over captions it is right as often as chance.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from typing import NamedTuple

from balcap_jax.rewards.rivals.qa_questions import Question
from balcap_jax.rewards.scene.claims import facts, read
from balcap_jax.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    Scene,
    Thing,
)

_CHOICES = 4
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
_NUMBERS = {2: "two", 3: "three", 4: "four"}

# What a caption must assert for an option: all of these facts, see `asserted`.
Needs = frozenset[tuple]


class SceneQuestion(NamedTuple):
    """A question, and what a caption must say for each of its options.

    Attributes:
      kind: what it asks for.
      needs: of each option, in the order of `asked.choices`.
    """

    kind: str
    asked: Question
    needs: tuple[Needs, ...]


@lru_cache(maxsize=4096)
def scene_questions(scene: Scene) -> tuple[SceneQuestion, ...]:
    """All questions about a scene; a function of the scene alone. There always are some."""
    rng = random.Random(f"questions/{scene}")
    found = [_presence(scene, rng), _background(scene, rng)]
    for entity in range(len(scene.things)):
        found += _about(scene, entity, rng)
    found += _neighbours(scene)
    if scene.sign is not None:
        needs = {word: {("word", word)} for word in WORDS}
        text = "Which word is written on the sign?"
        found.append(_drawn("word", text, needs, scene.sign.text, rng))
    return tuple(found)


def answer(question: SceneQuestion, caption: str, scene: Scene, shown: Sequence[int]) -> int | None:
    """The place of the option that the reader takes from a caption; None: it does not know.

    Args:
      shown: places in `question.asked.choices` of the options, in the order they are shown.
    """
    told = asserted(caption, scene)
    known = [place for place, option in enumerate(shown) if question.needs[option] <= told]
    return known[0] if len(known) == 1 else None


def guess(question: str, options: Sequence[str], caption: str) -> int:
    """The place of an option; a function of the arguments, each option as likely as the others."""
    text = "\0".join((question, *options, caption)).encode("utf-8", "replace")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % len(options)


@lru_cache(maxsize=4096)
def asserted(caption: str, scene: Scene) -> Needs:
    """The facts that a caption asserts, true or false.

    Those of `claims.facts`; ("shown", colour, shape) for what it names with a colour, there or not;
    and what follows from two places. Names are resolved as the scene judge does: "the star" is the
    star that fits best.
    """
    told = {
        fact
        for reading in read(caption, scene)
        for claim in reading.claims
        for fact in facts(claim)
    }
    return frozenset((*told, *_names(told, scene), *_from_places(told)))


def _names(told: set[tuple], scene: Scene) -> Iterator[tuple]:
    for kind, entity, *rest in told:
        if kind == "colour" and isinstance(entity, int):
            yield "shown", rest[0], scene.things[entity].shape
        elif kind == "thing" and isinstance(entity, tuple):  # an invented one
            yield "shown", entity[1], entity[0]


def _from_places(told: set[tuple]) -> Iterator[tuple]:
    """What is left of or above what, by columns and rows."""
    for axis, relation in (("column", "left"), ("row", "above")):
        places = [fact[1:] for fact in told if fact[0] == axis]
        for one, at in places:
            for other, there in places:
                if at < there:
                    yield relation, one, other


# The questions ----------------------------------------------------------------------------------


def _drawn(
    kind: str, text: str, needs: Mapping[str, Set[tuple]], right: str, rng: random.Random
) -> SceneQuestion:
    """A question with the right option and some others.

    Args:
      needs: of every option that there could be.
    """
    others = [option for option in needs if option != right]
    options = [right, *rng.sample(others, min(_CHOICES - 1, len(others)))]
    rng.shuffle(options)
    return _asked(kind, text, {option: needs[option] for option in options}, right)


def _asked(kind: str, text: str, needs: Mapping[str, Set[tuple]], right: str) -> SceneQuestion:
    options = tuple(needs)
    asked = Question(text, options, options.index(right))
    return SceneQuestion(kind, asked, tuple(frozenset(needs[option]) for option in options))


def _presence(scene: Scene, rng: random.Random) -> SceneQuestion:
    """Which of four things there is: one of the scene, and three that it does not have."""
    there = {(thing.colour, thing.shape) for thing in scene.things}
    right = rng.choice(scene.things)
    needs = {
        f"something {colour} in the shape of a {shape}": {("shown", colour, shape)}
        for colour in COLOURS
        for shape in SHAPES
        if (colour, shape) not in there or (colour, shape) == (right.colour, right.shape)
    }
    name = f"something {right.colour} in the shape of a {right.shape}"
    return _drawn("presence", "Which of these is in the image?", needs, name, rng)


def _background(scene: Scene, rng: random.Random) -> SceneQuestion:
    needs = {name: {("background", name)} for name in BACKGROUNDS}
    return _drawn("background", "What is the background?", needs, scene.background, rng)


def _about(scene: Scene, entity: int, rng: random.Random) -> Iterator[SceneQuestion]:
    """What can be asked of one thing, which has its place and looks for itself."""
    thing = scene.things[entity]
    name = _name(thing)
    be, do = ("are", "do") if thing.count > 1 else ("is", "does")
    if sum(other.shape == thing.shape for other in scene.things) == 1:
        needs = {colour: {("colour", entity, colour)} for colour in COLOURS}
        yield _drawn("colour", f"What colour {be} the {_noun(thing)}?", needs, thing.colour, rng)
    if thing.count > 1:
        counts = {word: {("count", entity, number)} for number, word in _NUMBERS.items()}
        text = f"How many {name} are there?"
        yield _drawn("count", text, counts, _NUMBERS[thing.count], rng)
    elif thing.size != "medium":  # which captions do not tell
        sizes = {size: {("size", entity, size)} for size in SIZES}
        yield _drawn("size", f"How large is the {name}?", sizes, thing.size, rng)
    if thing.texture != "plain":
        textures = {texture: {("texture", entity, texture)} for texture in TEXTURES}
        text = f"What pattern {do} the {name} have?"
        yield _drawn("texture", text, textures, thing.texture, rng)
    if thing.inside is not None:
        text = f"What is inside the {_name(scene.things[thing.inside])}?"
        needs = _partners(scene, lambda other, holder=thing.inside: ("inside", other, holder))
        yield _drawn("inside", text, needs, name, rng)
    elif thing.behind is not None:
        text = f"What is partly hidden behind the {_name(scene.things[thing.behind])}?"
        needs = _partners(scene, lambda other, front=thing.behind: ("front", front, other))
        yield _drawn("behind", text, needs, name, rng)
    else:
        places = {
            _cell(row, col): {("row", entity, row), ("column", entity, col)}
            for row in range(GRID)
            for col in range(GRID)
        }
        text = f"Where {be} the {name}?"
        yield _drawn("place", text, places, _cell(thing.row, thing.col), rng)


def _partners(scene: Scene, fact: Callable[[object], tuple]) -> dict[str, Set[tuple]]:
    """The things that a relation could be of: those of the scene by their looks, and all others."""
    there = {(thing.colour, thing.shape): i for i, thing in enumerate(scene.things)}
    needs: dict[str, Set[tuple]] = {}
    for colour in COLOURS:
        for shape in SHAPES:
            entity = there.get((colour, shape))
            if entity is None:
                needs[f"{colour} {shape}"] = {fact((shape, colour))}
            else:
                name = _name(scene.things[entity])
                needs[name] = {fact(entity), ("colour", entity, colour)}
    return needs


def _neighbours(scene: Scene) -> Iterator[SceneQuestion]:
    """Where a thing is from another in the same row or column; one of four is right."""
    leads = [
        (i, thing)
        for i, thing in enumerate(scene.things)
        if thing.inside is None and thing.behind is None
    ]
    for place, (one, thing) in enumerate(leads):
        for other, there in leads[place + 1 :]:
            if (thing.row == there.row) == (thing.col == there.col):
                continue
            needs = {
                "left of it": {("left", one, other)},
                "right of it": {("left", other, one)},
                "above it": {("above", one, other)},
                "below it": {("above", other, one)},
            }
            if thing.row == there.row:
                right = "left of it" if thing.col < there.col else "right of it"
            else:
                right = "above it" if thing.row < there.row else "below it"
            be = "are" if thing.count > 1 else "is"
            text = f"Where {be} the {_name(thing)}, seen from the {_name(there)}?"
            yield _asked("relation", text, needs, right)


def _noun(thing: Thing) -> str:
    if thing.count == 1:
        return thing.shape
    return thing.shape + ("es" if thing.shape == "cross" else "s")


def _name(thing: Thing) -> str:
    return f"{thing.colour} {_noun(thing)}"


def _cell(row: int, col: int) -> str:
    return "centre" if (row, col) == (1, 1) else f"{_ROWS[row]} {_COLUMNS[col]}"
