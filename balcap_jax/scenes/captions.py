"""Captions of scenes: true references in varied sentences, and a corpus with the faults of real
captioners.

Faults come on two levels. What is told can be wrong: the writer is handed a misperceived scene
(invented things, wrong attributes, things left out) and describes that truthfully. How it is told
can be wrong: meta-commentary, repetition, list-like fragments, captions far too short or too
long.
"""

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

from balcap_jax.scenes import language as words
from balcap_jax.scenes.world import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, random_scene

SHORTEST, LONGEST = 30, 90  # words of a reference


# Phrases ----------------------------------------------------------------------------------------


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _noun(rng: random.Random, thing: Thing) -> str:
    singular, plural = rng.choice(words.SHAPE_WORDS[thing.shape])
    return plural if thing.count > 1 else singular


def _full(rng: random.Random, thing: Thing, *, texture: bool = True) -> str:
    """A first mention with every attribute: "a large striped red circle"."""
    parts, after = [], ""
    if thing.size != "medium" and thing.count == 1:
        parts.append(rng.choice(words.SIZE_WORDS[thing.size]))
    if texture and thing.texture != "plain":
        if rng.random() < 0.5:
            parts.append(rng.choice(words.TEXTURE_WORDS[thing.texture]))
        else:
            after = " " + rng.choice(words.TEXTURE_PHRASES[thing.texture])
    parts += [rng.choice(words.COLOUR_WORDS[thing.colour]), _noun(rng, thing)]
    if thing.count > 1:
        return " ".join((words.PLURAL_NUMBERS[thing.count], *parts)) + after
    article = "an" if parts[0][0] in "aeiou" else "a"
    return " ".join((article, *parts)) + after


def _known(rng: random.Random, thing: Thing) -> str:
    """A later mention: "the red circle"; colour and shape name one thing of a scene."""
    return f"the {thing.colour} {_noun(rng, thing)}"


def _is(thing: Thing) -> str:
    return "are" if thing.count > 1 else "is"


def _stands(rng: random.Random, thing: Thing) -> str:
    verb = rng.choice(
        ("sit", "stand", "rest", "appear", "be", "be placed", "be visible", "can be seen")
    )
    if verb.startswith("be"):
        return _is(thing) + verb[2:]
    if verb == "can be seen":
        return verb
    return verb if thing.count > 1 else verb + "s"


def _place(rng: random.Random, row: int, col: int) -> str:
    fitting = [c for c in words.PLACE_PHRASES if c[0] in (None, row) and c[1] in (None, col)]
    exact = [c for c in fitting if None not in c]
    return rng.choice(words.PLACE_PHRASES[rng.choice(exact or fitting)])


def _relation(rng: random.Random, a: Thing, b: Thing) -> str | None:
    """A true relation phrase of a to b, None when they share row and column."""
    names = []
    if a.col != b.col:
        names.append("left" if a.col < b.col else "right")
    if a.row != b.row:
        names.append("above" if a.row < b.row else "below")
    return rng.choice(words.RELATION_PHRASES[rng.choice(names)]) if names else None


# References -------------------------------------------------------------------------------------


def _introduce(
    rng: random.Random,
    scene: Scene,
    thing: Thing,
    known: list[Thing],
    related: set[frozenset[Thing]],
) -> list[str]:
    """Sentences that mention a thing for the first time; the pair it is related to joins
    `related`.
    """
    late_texture = thing.texture != "plain" and rng.random() < 0.25
    name = _full(rng, thing, texture=not late_texture)
    place = _place(rng, thing.row, thing.col)
    partner = rng.choice(known) if known else None
    relation = _relation(rng, thing, partner) if partner else None
    if thing.inside is not None and scene.things[thing.inside] in known:
        holder = _known(rng, scene.things[thing.inside])
        told = rng.choice((
            f"{_capital(name)} {_is(thing)} inside {holder}.",
            f"Inside {holder}, there {_is(thing)} {name}.",
            f"{_capital(holder)} {rng.choice(words.RELATION_PHRASES['contains'])} {name}.",
        ))  # fmt: skip
    elif thing.behind is not None and scene.things[thing.behind] in known:
        front = _known(rng, scene.things[thing.behind])
        told = rng.choice((
            f"{_capital(name)} {_is(thing)} partly hidden behind {front}.",
            f"Behind {front}, there {_is(thing)} {name}.",
            f"{_capital(front)} is in front of {name}.",
            f"{_capital(front)} partly covers {name}.",
        ))  # fmt: skip
    elif partner is not None and relation is not None and rng.random() < 0.6:
        other = _known(rng, partner)
        related.add(frozenset((thing, partner)))
        told = rng.choice((
            f"{_capital(relation)} {other}, there {_is(thing)} {name}.",
            f"{_capital(name)} {_stands(rng, thing)} {relation} {other}.",
            f"{_capital(name)} {_is(thing)} {place}, {relation} {other}.",
        ))  # fmt: skip
    else:
        told = rng.choice((
            f"{_capital(name)} {_stands(rng, thing)} {place}.",
            f"{_capital(place)}, there {_is(thing)} {name}.",
            f"There {_is(thing)} {name} {place}.",
            f"The {rng.choice(('image', 'picture', 'scene'))} shows {name} {place}.",
        ))  # fmt: skip
    if not late_texture:
        return [told]
    texture = rng.choice(words.TEXTURE_WORDS[thing.texture])
    return [told, f"{_capital(_known(rng, thing))} {_is(thing)} {texture}."]


def _sign_sentence(rng: random.Random, scene: Scene) -> str:
    assert scene.sign is not None
    place, text = _place(rng, scene.sign.row, scene.sign.col), scene.sign.text
    return rng.choice((
        f'A sign {place} reads "{text}".',
        f'The word "{text}" is written {place}.',
        f'{_capital(place)}, there is a sign that says "{text}".',
    ))  # fmt: skip


def _background_sentence(rng: random.Random, scene: Scene) -> str:
    phrase, short = words.BACKGROUND_PHRASES[scene.background]
    plain = phrase.startswith("a plain")  # "is plain white", but "against a plain white background"
    predicate = short if rng.random() < 0.5 or plain else phrase
    noun = phrase if rng.random() < 0.6 or plain else short
    return rng.choice((
        f"The background is {predicate}.",
        f"Everything is set against {noun}.",
        f"The scene is set against {noun}.",
        f"The background is {predicate}." if plain else f"The background shows {noun}.",
    ))  # fmt: skip


def _extra_relation(rng: random.Random, scene: Scene, related: set[frozenset[Thing]]) -> str | None:
    """A sentence on a pair that is not in `related` yet; None where the drawn pair has none."""
    a, b = rng.sample(scene.things, 2) if len(scene.things) > 1 else (None, None)
    if a is None or b is None or frozenset((a, b)) in related:
        return None
    relation = _relation(rng, a, b)
    if relation is None:
        return None
    related.add(frozenset((a, b)))
    return f"{_capital(_known(rng, a))} {_stands(rng, a)} {relation} {_known(rng, b)}."


def describe(rng: random.Random, scene: Scene, *, shortest: int = SHORTEST) -> list[str]:
    """True sentences on a scene: every thing with its attributes, the sign, the background,
    relations.

    Relations are added until `shortest` words are reached or nothing new is left to tell.
    """
    # A holder or a front comes before what it holds or hides; clusters in reading order, as people
    # mostly tell them, and far easier to learn than any order.
    leads = [t for t in scene.things if t.inside is None and t.behind is None]
    leads.sort(key=lambda thing: (thing.row, thing.col))
    told: list[str] = []
    known: list[Thing] = []
    related: set[frozenset[Thing]] = set()
    for lead in leads:
        told += _introduce(rng, scene, lead, known, related)
        known.append(lead)
        index = scene.things.index(lead)
        for thing in scene.things:
            if index in (thing.inside, thing.behind):
                told += _introduce(rng, scene, thing, known, related)
                known.append(thing)
    if scene.sign is not None:
        told.insert(rng.choice((0, len(told))), _sign_sentence(rng, scene))
    background = _background_sentence(rng, scene)
    told.insert(rng.choice((0, len(told))), background)
    for _ in range(12):
        if sum(words.words_in(sentence) for sentence in told) >= shortest:
            break
        extra = _extra_relation(rng, scene, related)
        if extra is not None:
            told.append(extra)
    return told


def reference_caption(scene: Scene) -> str:
    """The reference of a scene: 30 to 90 words, a function of the scene alone.

    A scene with little to tell (one cluster) has the longest of 20 tries where none has 30 words.
    """
    rng = random.Random(f"reference/{scene}")
    tries = []
    for _ in range(20):
        caption = " ".join(describe(rng, scene))
        if SHORTEST <= words.words_in(caption) <= LONGEST:
            return caption
        tries.append(caption)
    return max(tries, key=words.words_in)


# The fault corpus -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FaultRates:
    """Share of captions (attributes: share of things) that have a fault. Each is drawn on its
    own.
    """

    invented: float = 0.35
    wrong_attribute: float = 0.10
    omission: float = 0.40
    meta: float = 0.50
    repetition: float = 0.30
    fragments: float = 0.30
    too_short: float = 0.15
    too_long: float = 0.12


NO_FAULTS = FaultRates(0, 0, 0, 0, 0, 0, 0, 0)


class FaultyCaption(str):
    """A caption of the corpus; `faults` names what was done to it."""

    faults: frozenset[str]

    def __new__(cls, text: str, faults: frozenset[str]) -> "FaultyCaption":
        self = super().__new__(cls, text)
        self.faults = faults
        return self


def faulty_caption(scene: Scene, rng: random.Random, rates: FaultRates) -> FaultyCaption:
    """One caption of the base policy's corpus, in the style of the references, with faults at
    `rates`.
    """
    faults: set[str] = set()

    def happens(fault: str) -> bool:
        if rng.random() < getattr(rates, fault):
            faults.add(fault)
            return True
        return False

    seen = _misperceive(scene, rng, happens)
    if happens("too_short"):
        thing = rng.choice(seen.things)
        return FaultyCaption(
            " ".join(_introduce(rng, seen, thing, [], set())[:1]), frozenset(faults)
        )
    told = describe(rng, seen, shortest=rng.choice((20, SHORTEST, 40)))
    if happens("fragments"):
        told = [_fragment(rng, seen, thing) for thing in seen.things] + told[-1:]
    if happens("repetition"):
        told += rng.choices(told, k=rng.choice((1, 2)))
    if happens("meta"):
        for remark in rng.sample(words.META_SENTENCES, k=rng.choice((1, 2, 3))):
            told.insert(rng.randint(1, len(told)), remark)
    if happens("too_long"):
        told += _ramble(rng, seen, told)
    return FaultyCaption(" ".join(told), frozenset(faults))


def _misperceive(scene: Scene, rng: random.Random, happens: Callable[[str], bool]) -> Scene:
    """The scene as a poor observer sees it."""
    things = [
        _mistake(thing, rng) if happens("wrong_attribute") else thing for thing in scene.things
    ]
    sign = scene.sign
    if happens("omission"):
        free = [i for i, t in enumerate(things) if t.inside is not None or t.behind is not None]
        alone = [
            i for i in range(len(things)) if not any(i in (t.inside, t.behind) for t in things)
        ]
        if len(things) > 1 and (free or alone):
            things = _without(things, rng.choice(free or alone))
        if rng.random() < 0.5:
            sign = None
    if happens("invented"):
        looks = {(t.shape, t.colour) for t in things}
        extra = random_scene(rng).things[0]
        while (extra.shape, extra.colour) in looks:
            extra = random_scene(rng).things[0]
        things.append(dataclasses.replace(extra, inside=None, behind=None))
    return Scene(scene.background, tuple(things), sign)


def _mistake(thing: Thing, rng: random.Random) -> Thing:
    """One attribute is taken for another."""
    field, values = rng.choice((
        ("colour", tuple(COLOURS)),
        ("shape", SHAPES),
        ("texture", TEXTURES),
        ("size", SIZES),
    ))  # fmt: skip
    if thing.count > 1 and field in ("size", "texture"):
        return dataclasses.replace(
            thing, count=rng.choice([n for n in (2, 3, 4) if n != thing.count])
        )
    other = rng.choice([value for value in values if value != getattr(thing, field)])
    return dataclasses.replace(thing, **{field: other})


def _without(things: list[Thing], gone: int) -> list[Thing]:
    """The list without one thing; references to later things move up."""

    def moved(index: int | None) -> int | None:
        if index is None or index == gone:
            return None
        return index - (index > gone)

    return [
        dataclasses.replace(t, inside=moved(t.inside), behind=moved(t.behind))
        for i, t in enumerate(things)
        if i != gone
    ]


def _fragment(rng: random.Random, scene: Scene, thing: Thing) -> str:
    name = _full(rng, thing)
    for article in ("a ", "an "):
        name = name.removeprefix(article)
    return _capital(name) + rng.choice((".", f" {_place(rng, thing.row, thing.col)}."))


def _ramble(rng: random.Random, scene: Scene, told: list[str]) -> list[str]:
    """Goes on far beyond a reference: relations, remarks and repeated sentences."""
    extra: list[str] = []
    target = 2.2 * max(SHORTEST, sum(words.words_in(sentence) for sentence in told))
    while sum(words.words_in(sentence) for sentence in told + extra) < target:
        relation = _extra_relation(rng, scene, set())
        extra.append(relation or rng.choice((*words.META_SENTENCES, *told)))
    return extra
