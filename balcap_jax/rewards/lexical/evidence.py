"""What is known of a photo: the statements of its references and its boxes, indexed by word."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from balcap_jax.rewards.lexical.statements import Statement, read
from balcap_jax.rewards.lexical.vocabulary import (
    ANYBODY,
    COCO_CLASSES,
    FEMALE,
    MALE,
    PERSONS,
    SPELLINGS,
    WIDER_PERSONS,
    YOUNG,
)
from balcap_jax.rewards.lexical.wordnet import ancestors, levels_up, parents, photo_senses, synonyms

# How a word stands to a known one, the closest first: the same thing; more general ("animal" where
# a dog is known), its other name ("clock tower" and "tower"), of one family ("skier" and "ski"),
# more specific ("poodle" where a dog is known), another of the same kind ("cat" where a dog is
# known), or nothing.
Relation = Literal["same", "general", "part", "derived", "specific", "sibling", "none"]
_CLOSENESS = ("same", "general", "part", "derived", "specific", "sibling", "none")
CONFIRMING = frozenset({"same", "general", "part", "derived"})
_LEVELS_GENERAL, _LEVELS_SPECIFIC = 6, 4


class Known(NamedTuple):
    """The known thing that is nearest to a word, how they relate, and how many tell of it.

    Attributes:
      witnesses: references and, as one more, the boxes that name a thing this word means.
    """

    relation: Relation
    thing: str
    witnesses: int = 0


def as_told(s: Statement) -> Statement:
    """A reference's statement, where "someone" is a person that was seen. In a caption the same
    word is true of whoever is there.
    """
    head, other = ("person" if word in ANYBODY else word for word in (s.head, s.other))
    return s if (head, other) == (s.head, s.other) else s._replace(head=head, other=other)


class Evidence:
    """References and boxes of one photo. Its questions are answered once and remembered.

    Attributes:
      references: per reference, its statements.
      things: known things; how many references name each.
      boxes: how many boxes each label has, in this package's spelling.
    """

    def __init__(self, references: Sequence[str], labels: Iterable[str] = ()):
        labels = tuple(label.lower() for label in labels)
        self.boxes = Counter(SPELLINGS.get(label, label) for label in labels)
        self.closed = bool(labels) and COCO_CLASSES.issuperset(labels)
        self.references = tuple(
            tuple(as_told(s) for reading in read(text) for s in reading.statements)
            for text in references
        )
        self.words = tuple(
            frozenset(w.lemma for reading in read(text) for w in reading.sentence.words)
            for text in references
        )
        self.lemmas = frozenset().union(*self.words)
        self.things: Counter[str] = Counter()
        self.denied: set[tuple[str, str]] = set()
        self.modifiers: dict[str, set[str]] = defaultdict(set)
        self.numbers: dict[str, set[str]] = defaultdict(set)
        self.actions: list[Statement] = []
        for found in self.references:
            self._index(found)
        self.things.update(self.boxes.keys())
        self._known: dict[str, Known] = {}

    def _index(self, statements: Sequence[Statement]) -> None:
        self.things.update({s.head for s in statements if s.kind == "thing" and not s.negated})
        for s in statements:
            if s.negated:
                self.denied.add((s.head, s.value))
            elif s.kind == "attribute":
                self.modifiers[s.head].add(s.value)
            elif s.kind == "number":
                self.numbers[s.head].add(s.value)
            elif s.kind == "action":
                self.actions.append(s)

    def known(self, thing: str) -> Known:
        """The known thing that is nearest to `thing`."""
        if thing not in self._known:
            self._known[thing] = self._nearest(thing)
        return self._known[thing]

    def _nearest(self, thing: str) -> Known:
        found = [Known(relate(thing, other), other) for other in self.things]
        best = min(found, key=lambda k: _CLOSENESS.index(k.relation), default=Known("none", ""))
        if _CLOSENESS.index(best.relation) > _CLOSENESS.index("derived"):
            family = [w for w in sorted(self.lemmas) if w == thing or same_family(thing, w)]
            if family:
                told = sum(not words.isdisjoint(family) for words in self.words)
                return Known("derived", family[0], told)
        named = {k.thing for k in found if k.relation in CONFIRMING}
        told = sum(
            any(s.kind == "thing" and s.head in named and not s.negated for s in reference)
            for reference in self.references
        )
        return best._replace(witnesses=told + (not named.isdisjoint(self.boxes)))

    def aliases(self, thing: str) -> list[str]:
        """The known things that `thing` may mean."""
        return [
            other
            for other in self.things
            if relate(thing, other) in ("same", "general", "part", "derived", "specific")
        ]

    def together(self, one: str, other: str) -> bool:
        """Whether a reference names both."""
        return any(
            any(_means(one, word) for word in words) and any(_means(other, word) for word in words)
            for words in self._things_by_reference()
        )

    def _things_by_reference(self) -> list[list[str]]:
        return [[s.head for s in found if s.kind == "thing"] for found in self.references]


@lru_cache(maxsize=1 << 18)
def can_mean(word: str, known: str) -> bool:
    """Whether whoever says `word` may mean the thing that another calls `known`: a man may be the
    surfer, and is not the girl.
    """
    if relate(word, known) in ("same", "general", "part", "derived", "specific"):
        return True
    if not is_person(word) and relate(word, known) == "sibling":
        return True
    return is_person(word) and is_person(known) and not _other_person(word, known)


@lru_cache(maxsize=1 << 16)
def is_person(noun: str) -> bool:
    """Whether a noun names a person: by sex and age, by what they do, or at all."""
    found = photo_senses(noun)[:1]
    return noun in PERSONS or bool(kinds(noun) & set(photo_senses("person")[:1]) and found)


def _other_person(one: str, other: str) -> bool:
    """A man is no woman, and a grown one no child."""
    if {one, other} <= MALE | FEMALE and (one in MALE) != (other in MALE):
        return True
    known = PERSONS - {"person", "crowd", "family", "couple"}
    return {one, other} <= known and (one in YOUNG) != (other in YOUNG)


def _means(word: str, known: str) -> bool:
    return relate(word, known) in ("same", "general", "part", "derived", "specific")


@lru_cache(maxsize=1 << 18)
def relate(word: str, known: str) -> Relation:
    """How the noun `word` of a caption stands to a noun that is known."""
    if word == known:
        return "same"
    up, down = levels_up(word, known), levels_up(known, word)
    if 0 in (up, down) or synonyms(word, known, "n"):
        return "same"
    if known in WIDER_PERSONS.get(word, ()):
        return "general"
    if down is not None and down <= _LEVELS_GENERAL:
        return "general"
    if " " in word + known and word.split()[-1] == known.split()[-1]:
        return "part"
    if same_family(word, known):
        return "derived"
    if up is not None and up <= _LEVELS_SPECIFIC:
        return "specific"
    if word in WIDER_PERSONS.get(known, ()):
        return "specific"
    return "sibling" if _above(word) & _above(known) else "none"


@lru_cache(maxsize=1 << 16)
def _above(noun: str) -> frozenset[int]:
    return frozenset(parent for s in photo_senses(noun)[:1] for parent in parents(s, "n"))


@lru_cache(maxsize=1 << 18)
def same_family(one: str, other: str) -> bool:
    """Words with one stem: "ski", "skier", "skiing". All but the last letter of the shorter word
    begin the longer one, which is longer by an ending at most.
    """
    short, long = sorted((one, other), key=len)
    stem = short[:-1] if len(short) > 4 else short
    return len(short) >= 3 and long.startswith(stem) and len(long) - len(stem) <= 4


@lru_cache(maxsize=1 << 16)
def kinds(noun: str) -> frozenset[int]:
    """Synsets that the main sense of `noun` is a kind of, itself included."""
    return frozenset(a for s in photo_senses(noun)[:1] for a in ancestors(s, "n"))
