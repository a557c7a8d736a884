"""Sentences -> atomic statements: things, their attributes and numbers, actions and relations.

A shallow reading: noun phrases are found by their tags, and each verb and preposition joins the
phrases beside it. It never fails; what it cannot place makes no statement.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from balcap_jax.rewards.lexical.vocabulary import ANYBODY, SPELLINGS
from balcap_jax.rewards.lexical.wordnet import senses
from balcap_jax.rewards.lexical.words import BE, NUMBERS, Sentence, Word, sentences

Kind = Literal["thing", "attribute", "number", "action", "relation"]

# "A group of people": how many, not what.
GROUPS = frozenset(
    """group bunch herd pair couple lot crowd row line series set number variety array assortment
    collection pile stack cluster flock team bit piece slice type kind sort part portion side top
    front back edge middle bottom end body stretch patch""".split()
)
_MANY = frozenset(
    """group bunch herd lot crowd row series number variety array assortment collection cluster
    flock""".split()
)
# The picture itself and places in it: naming them tells nothing of what it shows.
FRAME = frozenset(
    """image photograph scene view shot background foreground frame close-up closeup
    front side top left right center middle corner bottom back setting area part edge""".split()
)
# Words that their adjectives stand behind.
_FIRST = frozenset("something anything everything nothing".split()) | ANYBODY
_VAGUE = frozenset("several few various multiple numerous many".split())
# "A snow covered slope": the slope is what the phrase is about.
_COMPOUND = frozenset("covered filled lined topped shaped colored".split())
_AT_CAMERA = frozenset("at for to toward towards from".split())  # looks, poses, turns away
_PHRASE = frozenset({"DET", "QUANT", "NUM", "ADJ", "NOUN", "POSS"})


class Statement(NamedTuple):
    """One atomic statement in dictionary forms.

    Attributes:
      kind: what it says of `head`.
      text: in plain words, for people.
      head: the thing that it is about.
      value: the attribute, the number, the verb or the preposition; "" for a thing.
      other: the second thing of a relation or an action, or "".
      negated: says that it is not so.
    """

    kind: Kind
    text: str
    head: str
    value: str = ""
    other: str = ""
    negated: bool = False


class Phrase(NamedTuple):
    """A noun phrase: its head, the modifiers before it, and how many it names."""

    head: str
    modifiers: tuple[str, ...]
    number: str  # "", "2", "many"
    negated: bool
    text: str


class Reading(NamedTuple):
    """A sentence with the statements it makes."""

    sentence: Sentence
    statements: tuple[Statement, ...]


@lru_cache(maxsize=1 << 14)
def read(text: str) -> tuple[Reading, ...]:
    """The sentences of `text` with their statements."""
    return tuple(Reading(s, tuple(_statements(s.words))) for s in sentences(text))


def _statements(words: tuple[Word, ...]) -> Iterator[Statement]:
    subject: Phrase | None = None  # of the next verb
    latest: Phrase | None = None  # the phrase right before
    verb: Word | None = None
    preposition: Word | None = None
    negated = False
    at = 0
    while at < len(words):
        word = words[at]
        phrase, used = _phrase(words, at)
        if phrase is not None:
            at += used
            phrase = phrase._replace(negated=phrase.negated or (negated and verb is None))
            camera = phrase.head == "camera" and preposition and preposition.text in _AT_CAMERA
            if phrase.head in FRAME or camera:  # "a photo of a man holding": the man holds
                if preposition and verb is not None and verb.tag == "VERB" and subject:
                    yield _action(subject, verb, None, negated=negated)  # "poses for a photo"
                latest = phrase if latest is None else latest
                verb = preposition = None
                continue
            yield from _of_phrase(phrase)
            if preposition is not None:
                if verb is not None and verb.tag == "VERB" and subject is not None and latest:
                    yield _action(subject, verb, None, negated=negated)  # "dogs run through grass"
                if latest is not None and latest.head not in FRAME:
                    yield _relation(latest, preposition, phrase, negated=negated)
                elif verb is not None and subject is not None:
                    if verb.tag == "VERB":
                        yield _action(subject, verb, phrase, negated=negated)
                    else:  # "the clock is on a street corner"
                        yield _relation(subject, preposition, phrase, negated=negated)
            elif verb is not None and subject is not None:
                if verb.text in BE:
                    yield _is(subject, phrase, negated=negated)
                else:
                    yield _action(subject, verb, phrase, negated=negated)
            if subject is None or (preposition is None and verb is None):
                subject = phrase
            verb, preposition, latest, negated = None, None, phrase, False
            continue
        if _is_compound(words, at):
            at += 1
            continue
        if word.tag == "VERB" or (word.tag == "AUX" and word.text in BE):
            if verb is not None and verb.tag == "VERB" and subject is not None:
                yield _action(subject, verb, None, negated=negated)
            verb, preposition = word, None
            latest = latest if word.tag == "VERB" else None
        elif word.tag == "ADJ" and verb is not None and subject is not None:
            yield _attribute(subject, word.lemma, negated=negated)
        elif word.tag in ("PREP", "TO"):
            if verb is None or preposition is None:
                preposition = word
            if word.text == "without":
                negated = True
        elif word.tag == "NEG":
            negated = True
        elif word.tag in ("CONJ", ","):
            preposition = preposition if word.text in ("and", "or", ",") and latest else None
            if word.tag == "," or word.text not in ("and", "or"):
                if verb is not None and verb.tag == "VERB" and subject is not None:
                    yield _action(subject, verb, None, negated=negated)
                verb = preposition = None
        at += 1
    if verb is not None and verb.tag == "VERB" and subject is not None:
        yield _action(subject, verb, None, negated=negated)


def _phrase(words: tuple[Word, ...], start: int) -> tuple[Phrase | None, int]:
    """The noun phrase that opens at `start`, and how many words it has; None where none opens."""
    stop = start
    negated = False
    while stop < len(words):
        word = words[stop]
        opens = word.text == "no" or (word.tag == "VERB" and _modifies(words, start, stop))
        joins = word.text == "and" and _joins_adjectives(words, start, stop)
        comma = word.tag == "," and _joins_adjectives(words, start, stop)
        if word.tag not in _PHRASE and not opens and not joins and not comma:
            break
        if word.tag in ("DET", "QUANT") and stop > start and words[stop - 1].tag == "NOUN":
            break
        negated |= word.text == "no"
        stop += 1
    nouns = [at for at in range(start, stop) if words[at].tag == "NOUN"]
    if not nouns:
        return None, 0
    stop = nouns[-1] + 1
    inside = words[start:stop]
    head, modifiers = _head([w for w in inside if w.tag in ("ADJ", "NOUN", "VERB")])
    number = _number(inside)
    if head in GROUPS and stop + 1 < len(words) and words[stop].text == "of":
        whole, used = _phrase(words, stop + 1)
        if whole is not None:
            many = "2" if head in ("pair", "couple") else "many" if head in _MANY else ""
            merged = whole._replace(
                modifiers=whole.modifiers, number=whole.number or many,
                text=f"{' '.join(w.text for w in inside)} of {whole.text}",
            )  # fmt: skip
            return merged, stop - start + 1 + used
    text = " ".join(w.text for w in inside if w.tag not in ("DET", ","))
    return Phrase(head, modifiers, number, negated, text), stop - start


def _modifies(words: tuple[Word, ...], start: int, at: int) -> bool:
    """A participle within a phrase: "the parked cars"."""
    return (
        at > start
        and words[at - 1].tag in ("DET", "ADJ", "NUM", "QUANT")
        and not words[at].text.endswith("s")
        and at + 1 < len(words)
        and words[at + 1].tag in ("NOUN", "ADJ")
    )


def _is_compound(words: tuple[Word, ...], at: int) -> bool:
    """The participle of "a snow covered slope"."""
    return (
        words[at].text in _COMPOUND
        and 0 < at < len(words) - 1
        and words[at - 1].tag == "NOUN"
        and words[at + 1].tag in ("NOUN", "ADJ")
    )


def _joins_adjectives(words: tuple[Word, ...], start: int, at: int) -> bool:
    """The "and" or comma of "a black and white photo", "a tall, old tree"."""
    if not start < at < len(words) - 1 or words[at - 1].tag != "ADJ":
        return words[at].text == "and" and [w.text for w in words[at - 1 : at + 2]] == [
            "black", "and", "white",
        ]  # fmt: skip
    return words[at + 1].tag == "ADJ"


def _head(words: list[Word]) -> tuple[str, tuple[str, ...]]:
    """The head with its modifiers; two nouns that WordNet knows as a pair are one word."""
    *before, last = words
    if before and before[0].lemma in _FIRST:  # "something red"
        return before[0].lemma, tuple(w.lemma for w in words[1:])
    modifiers = [w.lemma for w in before]
    head = last.lemma
    if before and senses(f"{before[-1].lemma} {head}", "n"):
        pair = f"{modifiers.pop()} {head}"
        head = SPELLINGS.get(pair, pair)
    elif head in FRAME and before and before[-1].tag == "NOUN":  # "a street scene", "a dirt area"
        head = modifiers.pop()
    return head, tuple(modifiers)


def _number(words: tuple[Word, ...]) -> str:
    for word in words:
        if word.tag == "NUM":
            return str(NUMBERS.get(word.text, word.text))
        if word.text in _VAGUE:
            return "many"
    return ""


# Statements of what was found ---------------------------------------------------------------------


def _of_phrase(phrase: Phrase) -> Iterator[Statement]:
    no = phrase.negated
    yield Statement("thing", phrase.text, phrase.head, negated=no)
    for modifier in phrase.modifiers:
        yield _attribute(phrase, modifier, negated=no)
    if phrase.number:
        text = f"{phrase.number} {phrase.head}"
        yield Statement("number", text, phrase.head, phrase.number, negated=no)


def _attribute(phrase: Phrase, value: str, *, negated: bool) -> Statement:
    text = f"{phrase.head} is {'not ' if negated else ''}{value}"
    return Statement("attribute", text, phrase.head, value, negated=negated)


def _is(subject: Phrase, phrase: Phrase, *, negated: bool) -> Statement:
    return _attribute(subject, phrase.head, negated=negated)


def _action(subject: Phrase, verb: Word, other: Phrase | None, *, negated: bool) -> Statement:
    there = other.head if other else ""
    text = " ".join(filter(None, (subject.head, "not" * negated, verb.text, there)))
    return Statement("action", text, subject.head, verb.lemma, there, negated)


def _relation(left: Phrase, word: Word, right: Phrase, *, negated: bool) -> Statement:
    text = f"{left.head} {word.text} {right.head}"
    return Statement("relation", text, left.head, word.text, right.head, negated)
