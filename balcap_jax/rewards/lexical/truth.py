"""How likely a statement about a photo is true, given its references and boxes.

References tell a small part of what a photo shows, so that "not mentioned" is no "wrong". A
statement is therefore one of three: *confirmed* by what is known; *contradicted* by it (another
colour, sex, posture or number of the same thing, a word that a reference denies, a COCO class
without a box); or *open*, and then its chance depends on what kind of statement it is: scenery is
there more often than an object that no reference mentions, and a size is seldom wrong.
"""

from functools import lru_cache

from balcap_jax.rewards.lexical.evidence import CONFIRMING, Evidence, kinds, relate, same_family
from balcap_jax.rewards.lexical.generality import is_anything
from balcap_jax.rewards.lexical.statements import Statement
from balcap_jax.rewards.lexical.vocabulary import (
    COCO_CLASSES,
    COLOURS,
    FEMALE,
    MALE,
    PERSONS,
    POSTURES,
    RELATIVE,
    SCENERY,
    SPELLINGS,
    STATIVE,
    YOUNG,
)
from balcap_jax.rewards.lexical.wordnet import opposites, photo_senses, senses, synonyms

# Chances that a statement is true. docs/judges.md says how they were set and how little hangs on
# their exact values.
CONFIRMED = 0.97
ANYTHING = 0.5  # words for anything tell neither right nor wrong
DOUBT = 0.08  # what is left of it when one reference tells of a thing; n leave an n-th of it
THING = {"specific": 0.4, "sibling": 0.16, "none": 0.15}
SCENERY_OPEN = 0.2
CONTRADICTED = 0.07
ATTRIBUTE_OPEN, COLOUR_OPEN, RELATIVE_OPEN = 0.6, 0.55, 0.8
RELATIVE_TOLD = 0.7  # of the chance of any other attribute
ACTION_OPEN, STATIVE_OPEN, MOVE_OPEN, POSTURE_OPEN = 0.5, 0.65, 0.3, 0.45
NUMBER_OPEN = 0.4
APART = 0.8  # two confirmed things that no reference tells of together


def chance(statement: Statement, evidence: Evidence) -> float:
    """The probability, from 0 to 1, that `statement` is true of the photo."""
    if statement.negated:
        positive = statement._replace(negated=False)
        if (statement.head, statement.value) in evidence.denied:
            return CONFIRMED
        return 1 - chance(positive, evidence)
    return _CHANCES[statement.kind](statement, evidence)


def is_open(statement: Statement, evidence: Evidence) -> bool:
    """Whether `statement` is about a thing that references neither tell of nor speak against: they
    leave out most of a photo.
    """
    return any(
        evidence.known(thing).relation not in CONFIRMING
        and not is_anything(thing)
        and not is_absent(thing, evidence)
        for thing in (statement.head, statement.other)
        if thing
    )


def _thing(s: Statement, evidence: Evidence) -> float:
    return of_thing(s.head, evidence)


def of_thing(thing: str, evidence: Evidence) -> float:
    """The chance that `thing` is in the photo."""
    relation, _, witnesses = evidence.known(thing)
    if is_absent(thing, evidence):
        return CONTRADICTED
    if is_anything(thing):
        return ANYTHING
    if relation in CONFIRMING:
        return 1 - DOUBT / max(1, witnesses)
    if relation == "none" and is_scenery(thing):
        return SCENERY_OPEN
    return THING[relation]


def is_absent(thing: str, evidence: Evidence) -> bool:
    """Whether the references speak against `thing`, or it would have a box and has none."""
    relation = evidence.known(thing).relation
    if (thing, "") in evidence.denied and relation != "same":
        return True
    if thing in PERSONS and _other_sex(thing, evidence):
        return True
    unboxed = evidence.closed and is_coco_class(thing)
    return unboxed and relation in ("sibling", "none") and not is_anything(thing)


def _other_sex(thing: str, evidence: Evidence) -> bool:
    """Whether persons of the age of `thing` are known, of the other sex alone: beside a woman, a
    child may be a boy.
    """
    known = {other for other in evidence.things if (other in YOUNG) == (thing in YOUNG)}
    for mine, others in ((MALE, FEMALE), (FEMALE, MALE)):
        if thing in mine:
            return not known.isdisjoint(others) and known.isdisjoint(mine)
    return False


def _attribute(s: Statement, evidence: Evidence) -> float:
    thing = of_thing(s.head, evidence)
    aliases = evidence.aliases(s.head)
    if any((alias, s.value) in evidence.denied for alias in aliases):
        return CONTRADICTED
    told = set().union(*(evidence.modifiers.get(alias, ()) for alias in aliases))
    if s.value in RELATIVE:  # what is small beside one thing is large beside another
        thing *= RELATIVE_TOLD
    if any(alike(s.value, other) for other in told):
        return thing
    if s.value in COLOURS and told & COLOURS:
        return thing * 0.3
    if any(alike(s.value, word) for word in evidence.lemmas):
        return thing * 0.95
    if told & RELATIVE and any(set(senses(o, "a")) & opposites(s.value, "a") for o in told):
        return thing * 0.3
    if s.value in COLOURS:
        return thing * COLOUR_OPEN
    return thing * (RELATIVE_OPEN if s.value in RELATIVE else ATTRIBUTE_OPEN)


@lru_cache(maxsize=1 << 16)
def alike(one: str, other: str) -> bool:
    """Whether two modifiers or verbs say the same."""
    if one == other or same_family(one, other):
        return True
    return synonyms(one, other, "a") or synonyms(one, other, "v")


def _number(s: Statement, evidence: Evidence) -> float:
    thing = of_thing(s.head, evidence)
    meant = ("same", "specific", "general")
    boxes = sum(n for label, n in evidence.boxes.items() if relate(label, s.head) in meant)
    told = set().union(*(evidence.numbers.get(a, ()) for a in evidence.aliases(s.head)))
    if s.value in told or (boxes and _count(s.value, boxes)):
        return thing
    exact = {int(n) for n in told if n.isdigit()}
    # "One dog" is no lie where there are two, and things of any kind are not counted.
    if (boxes or exact) and s.value != "1" and not is_anything(s.head):
        known = exact | ({boxes} if boxes else set())
        if s.value == "many":
            return thing * (0.9 if max(known) > 2 else 0.3)
        return thing * 0.3
    return thing * NUMBER_OPEN


def _count(value: str, boxes: int) -> bool:
    return boxes >= 3 if value == "many" else value == str(boxes)


def _action(s: Statement, evidence: Evidence) -> float:
    things = min(of_thing(t, evidence) for t in (s.head, s.other) if t)
    told = [a for a in evidence.actions if relate(s.head, a.head) not in ("sibling", "none")]
    if any(alike(s.value, a.value) for a in told):
        same = not s.other or any(
            not a.other or relate(s.other, a.other) not in ("sibling", "none")
            for a in told if alike(s.value, a.value)
        )  # fmt: skip
        return things * (1.0 if same else 0.85)
    if any(alike(s.value, word) for word in evidence.lemmas):
        return things * 0.9
    postures = {POSTURES[a.value] for a in told if a.value in POSTURES}
    if s.value in POSTURES and postures and POSTURES[s.value] not in postures:
        return things * 0.3
    if POSTURES.get(s.value) == "move":
        return things * MOVE_OPEN
    if s.value in POSTURES:
        return things * POSTURE_OPEN
    return things * (STATIVE_OPEN if s.value in STATIVE else ACTION_OPEN)


def _relation(s: Statement, evidence: Evidence) -> float:
    things = min(of_thing(s.head, evidence), of_thing(s.other, evidence))
    if evidence.together(s.head, s.other):
        return things
    return things * APART


_CHANCES = {
    "thing": _thing,
    "attribute": _attribute,
    "number": _number,
    "action": _action,
    "relation": _relation,
}


@lru_cache(maxsize=1 << 16)
def is_scenery(thing: str) -> bool:
    """What stands around the subject of a photo, such as ground, sky, walls, buildings."""
    return bool(kinds(thing) & _scenery())


@lru_cache(maxsize=1)
def _scenery() -> frozenset[int]:
    return frozenset(s for word in SCENERY for s in photo_senses(word)[:1])


@lru_cache(maxsize=1 << 16)
def is_coco_class(thing: str) -> bool:
    """Whether `thing` is one of the classes that COCO's boxes name."""
    return thing in _COCO or any(relate(thing, name) == "same" for name in COCO_CLASSES)


_COCO = frozenset(SPELLINGS.get(name, name) for name in COCO_CLASSES)
