"""Reference units of a photo and which of them a caption covers.

The units are the things, attributes and actions that the references tell, each once; words for
anything are none. A word covers a unit that it means or is a kind of; a more general word ("a
person" for a skateboarder) does not. An attribute or action is covered where a sound sentence
asserts it of a thing that can be the one that is meant.

Several references tell more than one person would, so a caption is asked for as much as one of them
tells on average, whichever units these are, and for less where each tells something else: as often
as a reference tells what no other one does, the next person does, too.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from balcap_jax.rewards.lexical.evidence import Evidence, as_told, can_mean, relate
from balcap_jax.rewards.lexical.generality import is_anything
from balcap_jax.rewards.lexical.statements import Reading, Statement, read
from balcap_jax.rewards.lexical.truth import alike
from balcap_jax.rewards.lexical.wordnet import frequency, senses

_COVERING = frozenset({"same", "part", "derived", "specific"})
_WEARS = frozenset("wear have in with of".split())  # whose the colour of a shirt is, too
_KINDS = ("thing", "attribute", "action")
# A caption that says as much as one reference does can still say more.
_ASKED = 1.6  # times what one reference tells on average
_ALONE = 0.5  # what is asked of what no other reference tells: the next person may leave it out
_SHARED = 0.5  # power of the number of references that tell a unit, in its weight
_GUESSED = 2.4  # times the square of the weight of what references do not know, over what is asked
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
      amount: weight of covered units from which on nothing is missing.
    """

    units: tuple[Unit, ...]
    amount: float


def asked_by(references: Sequence[str]) -> Asked:
    """What `references` ask for."""
    tell = tuple(_told_by(text) for text in references)
    own = [[_shared(unit, tell) for unit in units_of(statements)] for statements in tell]
    units = tuple(
        unit for at, found in enumerate(own) for unit in found if not _covered(unit, tell[:at])
    )
    if len(tell) < 2:
        return all_of(units)
    asked = sum(
        unit.weight * (1 if _covered(unit, tell[:at] + tell[at + 1 :]) else _ALONE)
        for at, found in enumerate(own)
        for unit in found
    )
    return Asked(units, _ASKED * asked / len(tell))


def all_of(units: tuple[Unit, ...]) -> Asked:
    """Nothing of `units` may be missing."""
    return Asked(units, sum(unit.weight for unit in units))


def _shared(unit: Unit, tell: Sequence[Sequence[Statement]]) -> Unit:
    """`unit` with more weight the more references tell it: what many tell is seen first."""
    tellers = sum(covers(each, unit) for each in tell)
    return unit._replace(weight=unit.weight * max(1, tellers) ** _SHARED)


def _told_by(reference: str) -> tuple[Statement, ...]:
    return tuple(map(as_told, told(read(reference))))


def units_of(statements: Iterable[Statement]) -> tuple[Unit, ...]:
    """A unit per thing, attribute and action."""
    return tuple(
        Unit(s.text, (s,), weight(s))
        for s in dict.fromkeys(statements)
        if s.kind in _KINDS and not s.negated and not is_anything(s.head)
    )


def _covered(unit: Unit, texts: Iterable[Sequence[Statement]]) -> bool:
    return any(covers(text, unit) for text in texts)


def guessed(statements: Iterable[Statement], evidence: Evidence, whole: float) -> float:
    """What a caption is asked for, beside `whole`, because it tells of things that references do
    not know. Who names many things hits some by luck, as in an exam with answers to choose from. A
    few are what one sees and others left out; many are guesses, so it grows with the square.
    """
    unknown = sum(
        unit.weight
        for unit in units_of(statements)
        if evidence.known(unit.statements[0].head).relation in ("sibling", "none")
    )
    return _GUESSED * unknown**2 / whole if whole else 0.0


def stored_units(texts: Sequence[str]) -> tuple[Unit, ...]:
    """Units that come with the data, in words; each counts the same."""
    return tuple(Unit(text, told(read(text)), 1.0) for text in texts)


def told(readings: Iterable[Reading]) -> tuple[Statement, ...]:
    """All that `readings` tell."""
    return tuple(s for reading in readings for s in reading.statements)


def covers(caption: Sequence[Statement], unit: Unit) -> bool:
    """Whether at least half of what `unit` says is told."""
    if not unit.statements:
        return False
    found = sum(_covers(caption, wanted) for wanted in unit.statements)
    return 2 * found >= len(unit.statements)


def _covers(caption: Sequence[Statement], wanted: Statement) -> bool:
    if wanted.kind in ("attribute", "action") and not wanted.negated:
        return any(_asserts(s, wanted, caption) for s in caption)
    return any(_says(s, wanted) for s in caption)


def _asserts(s: Statement, wanted: Statement, caption: Sequence[Statement]) -> bool:
    """Whether `s` says an attribute or action of the thing that is meant. People put one thing in
    many ways: "a man in white" and "wearing a white shirt", "skis" and "skiing".
    """
    if s.negated:
        return False
    if s.kind == "thing":
        if wanted.kind == "attribute" and _is_name(wanted.value):
            return relate(s.head, wanted.value) in _COVERING
        return alike(s.head, wanted.value) and any(
            _can_mean(other.head, wanted)
            for other in caption
            if other.kind == "thing" and not other.negated and other.head != s.head
        )
    if s.kind not in ("attribute", "action") or not alike(s.value, wanted.value):
        return False
    if wanted.other and s.other and not is_anything(s.other) and can_mean(s.other, wanted.other):
        return True  # who rides the wave is whoever was seen riding it
    return _can_mean(s.head, wanted) or any(
        _can_mean(owner.head, wanted)
        for owner in caption
        if owner.other == s.head and owner.value in _WEARS and not owner.negated
    )


@lru_cache(maxsize=1 << 16)
def _is_name(modifier: str) -> bool:
    """Whether a modifier is the name of a thing, as in "a banana necklace"."""
    return bool(senses(modifier, "n")) and not senses(modifier, "a")


def _can_mean(thing: str, wanted: Statement) -> bool:
    return not is_anything(thing) and can_mean(thing, wanted.head)


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
