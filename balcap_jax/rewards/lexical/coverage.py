"""Reference units of a photo and which of them a caption covers.

The units are the things, attributes and actions that the references tell, each once. A word covers
a unit that it means or is a kind of; a more general word ("a person" for a skateboarder) does not.

Several references tell more than one person would, so a caption is asked for as much as one of them
tells on average, whichever units these are. And they do not tell all: as often as a reference tells
what no other one does, the next person does, too (the estimate of Good and Turing for the unseen).
So what a caption tells beyond the references counts by its chance to be true, but no more than this
share allows for the units that it does cover: who covers nothing gains nothing by guessing.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from balcap_jax.rewards.lexical.evidence import Evidence, relate
from balcap_jax.rewards.lexical.statements import Reading, Statement, read
from balcap_jax.rewards.lexical.truth import alike, chance
from balcap_jax.rewards.lexical.wordnet import frequency
from balcap_jax.rewards.lexical.words import is_known

_COVERING = frozenset({"same", "part", "derived", "specific"})
_KINDS = ("thing", "attribute", "action")
_COMMON = 30_000  # uses of a word in WordNet's texts that leave it nothing to say


class Unit(NamedTuple):
    """A reference unit.

    Attributes:
      text: in words.
      statements: what it takes to cover it; a unit in foreign words has none.
      weight: how much it says.
    """

    text: str
    statements: tuple[Statement, ...]
    weight: float


class Asked(NamedTuple):
    """What a caption is asked to tell.

    Attributes:
      units: what the references tell, each once.
      amount: weight of covered units from which on nothing is missing; None: all of them.
      unseen: share, by weight, of what one reference tells that no other one does; 0 where there
        is one reference.
      known: what all of them tell.
    """

    units: tuple[Unit, ...]
    amount: float | None = None
    unseen: float = 0.0
    known: "Told | None" = None


def asked_by(references: Sequence[str]) -> Asked:
    """What `references` ask for."""
    tell = tuple(told(read(text)) for text in references)
    own = [units_of(t.statements) for t in tell]
    units = tuple(
        unit for at, found in enumerate(own) for unit in found if not _covered(unit, tell[:at])
    )
    total = sum(unit.weight for found in own for unit in found)
    if len(tell) < 2 or not total:
        return Asked(units)
    alone = sum(
        unit.weight
        for at, found in enumerate(own)
        for unit in found
        if not _covered(unit, tell[:at] + tell[at + 1 :])
    )
    known = told(reading for text in references for reading in read(text))
    distinct = known._replace(statements=tuple(dict.fromkeys(known.statements)))
    return Asked(units, total / len(tell), alone / total, distinct)


def units_of(statements: Iterable[Statement]) -> tuple[Unit, ...]:
    """A unit per thing, attribute and action."""
    return tuple(
        Unit(s.text, (s,), weight(s))
        for s in dict.fromkeys(statements)
        if s.kind in _KINDS and not s.negated
    )


def _covered(unit: Unit, texts: Iterable["Told"]) -> bool:
    return any(covers(text, unit) for text in texts)


def beyond(
    statements: Iterable[Statement], asked: Asked, covered: float, evidence: Evidence
) -> float:
    """The weight of what a caption that covers units of weight `covered` tells beyond the
    references, as far as it is likely and one person would.
    """
    if asked.amount is None or asked.known is None or not covered:
        return 0.0
    likely = sum(
        unit.weight * chance(unit.statements[0], evidence)
        for unit in units_of(statements)
        if not covers(asked.known, unit)
    )
    of_covered = covered * asked.unseen / (1 - asked.unseen) if asked.unseen < 1 else likely
    return min(likely, of_covered, asked.unseen * asked.amount)


def stored_units(texts: Sequence[str]) -> tuple[Unit, ...]:
    """Units that come with the data, in words; each counts the same."""
    return tuple(
        Unit(text, tuple(s for reading in read(text) for s in reading.statements), 1.0)
        for text in texts
    )


class Told(NamedTuple):
    """What a caption tells: its statements, and the lemmas of its nouns, verbs and adjectives."""

    statements: tuple[Statement, ...]
    words: frozenset[str]


def told(readings: Iterable[Reading]) -> Told:
    """All that `readings` tell."""
    readings = tuple(readings)
    return Told(
        tuple(s for reading in readings for s in reading.statements),
        frozenset(
            word.lemma
            for reading in readings
            for word in reading.sentence.words
            if word.tag in ("NOUN", "VERB", "ADJ") and is_known(word.text)
        ),
    )


def covers(caption: Told, unit: Unit) -> bool:
    """Whether at least half of what `unit` says is told."""
    if not unit.statements:
        return False
    found = sum(_covers(caption, wanted) for wanted in unit.statements)
    return 2 * found >= len(unit.statements)


def _covers(caption: Told, wanted: Statement) -> bool:
    if wanted.kind in ("attribute", "action") and not wanted.negated:
        # People put one thing in many ways, "a man in white", "wearing a white shirt", "skis" and
        # "skiing": the word decides, whatever it is said of.
        return any(alike(word, wanted.value) for word in caption.words)
    return any(_says(s, wanted) for s in caption.statements)


def _says(told: Statement, wanted: Statement) -> bool:
    if told.negated != wanted.negated or relate(told.head, wanted.head) not in _COVERING:
        return False
    if wanted.kind == "thing":
        return told.kind == "thing"
    if wanted.kind == "relation":
        joins = told.kind in ("relation", "action")
        return joins and relate(told.other, wanted.other) in _COVERING
    return told.kind == wanted.kind and alike(told.value, wanted.value)


def weight(statement: Statement) -> float:
    """How much a statement says: more where its word is rare, as in CIDEr; about 1 on average.

    The word is the thing itself, the attribute or the verb.
    """
    named = statement.kind in ("thing", "number", "relation")
    return rarity(statement.head if named else statement.value)


@lru_cache(maxsize=1 << 16)
def rarity(word: str) -> float:
    """From 0.2 for the most common words to 2 for words that WordNet's texts do not have."""
    uses = sum(frequency(word, part) for part in ("n", "v", "a"))
    return max(1.0, math.log(_COMMON / (1 + uses))) / 5
