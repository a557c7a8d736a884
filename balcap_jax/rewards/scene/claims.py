"""Reads a caption of a scene: what it claims of which thing, sentence by sentence.

Names are resolved against the scene: "a red circle" is the circle that fits best. A name that fits
no thing of its shape is an invented thing, and whatever is said of it is false.
"""

from typing import NamedTuple

from balcap_jax.scenes.language import TURNED, Lexeme, Sentence, sentences
from balcap_jax.scenes.world import Scene, Thing

# A thing's index, "sign", or (shape, colour) of something invented.
Entity = int | str | tuple[str, str]

_MODIFIERS = ("A", "THE", "NUMBER", "SIZE", "COLOUR", "TEXTURE")
_ATTRIBUTES = {"COLOUR": "colour", "TEXTURE": "texture", "TEXTURED": "texture", "SIZE": "size"}
_NOUNS = ("SHAPE", "SHAPES", "sign", "word")


# Say something of a thing, the background or a sign, and nothing without it.
_STRAY = (*_MODIFIERS[2:], "TEXTURED", "BACKGROUND", "BACKGROUND_IS", "WRITTEN")
_LONGEST_REMARK = 12  # lexemes


class Claim(NamedTuple):
    """One atomic statement.

    Attributes:
      key: what it says, independent of the words: equal keys are the same statement.
      text: in plain words, for people.
      true: of the scene.
      restated: only names again, with "the", what the caption has told before.
    """

    key: tuple
    text: str
    true: bool
    restated: bool = False


class Remark(NamedTuple):
    """Words that claim nothing of the scene: commentary, unknown words, or pieces without a
    whole.
    """

    text: str
    meta: bool


class Reading(NamedTuple):
    """One sentence as read: its claims and remarks in order, and whether its meaning is clear."""

    sentence: Sentence
    claims: tuple[Claim, ...]
    remarks: tuple[Remark, ...]
    clear: bool


# How a verdict words the relations whose names are no prepositions.
_RELATION_TEXTS = {
    "left": "is left of",
    "right": "is right of",
    "contains": "contains",
    "front": "is in front of",
}


class _Mention(NamedTuple):
    noun: str  # a shape, or "sign"
    modifiers: tuple[Lexeme, ...]
    plural: bool


def facts(claim: Claim) -> list[tuple]:
    """What a claim says, piece by piece: a place speaks of a row, a column or both."""
    kind, *rest = claim.key
    if kind != "place":
        return [claim.key]
    entity, row, col = rest
    return [(axis, entity, at) for axis, at in (("row", row), ("column", col)) if at is not None]


def read(caption: str, scene: Scene) -> list[Reading]:
    """All sentences of a caption, read against `scene`."""
    reader = _Reader(scene)
    return [reader.sentence(sentence) for sentence in sentences(caption)]


class _Reader:
    """Remembers what a caption has introduced so far."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self.introduced: list[Entity] = []

    # One sentence ------------------------------------------------------------------------------

    def sentence(self, sentence: Sentence) -> Reading:
        self.claims: list[Claim] = []
        self.subject: Entity | None = None
        self.relation: str | None = None
        self.fronted: str | None = None  # a relation that stood before any name
        self.fronted_object: Entity | None = None
        self.place: tuple | None = None  # a place that stood before any name
        self.clear = True
        lexemes, at = sentence.lexemes, 0
        idle: list[list[Lexeme]] = [[]]  # runs of lexemes that no claim used
        stray: list[str] = []
        while at < len(lexemes):
            used = self._step(lexemes, at)
            if used:
                at += used
                idle.append([])
                continue
            if lexemes[at].tag in _STRAY:
                stray.append(lexemes[at].text)
            idle[-1].append(lexemes[at])
            at += 1
        if self.relation or self.place or (self.fronted and self.fronted_object is None):
            stray.append("something without a partner")
        pieces = [
            run[start : start + _LONGEST_REMARK]
            for run in idle
            for start in range(0, len(run), _LONGEST_REMARK)
        ]
        remarks = [remark for piece in pieces if (remark := _remark(piece))]
        if stray:
            remarks.append(Remark(" ".join(stray), meta=False))
        if not self.claims and not remarks:
            remarks.append(Remark(" ".join(lexeme.text for lexeme in lexemes), meta=False))
        clear = self.clear and all(remark.meta for remark in remarks)
        return Reading(sentence, tuple(self.claims), tuple(remarks), clear)

    def _step(self, lexemes: tuple[Lexeme, ...], at: int) -> int:
        """Reads what starts at `at`; the number of lexemes used, 0 where nothing is claimed."""
        lexeme = lexemes[at]
        if lexeme.tag in (*_MODIFIERS, *_NOUNS):
            mention, used = _mention(lexemes, at)
            if mention is not None:
                self._name(self._resolve(mention))
                return used
            after_be = at > 0 and lexemes[at - 1].tag in ("is", "are", "and", ",")
            if self.subject is not None and after_be and lexeme.tag in _ATTRIBUTES:
                self._attribute(self.subject, lexeme)
                return 1
            return 0
        if lexeme.tag == "TEXTURED" and self.subject is not None:
            self._attribute(self.subject, lexeme)
            return 1
        if lexeme.tag == "IT":
            if not self.introduced:
                self.clear = False
                return 0
            self._name(self.introduced[-1])
            return 1
        if lexeme.tag in ("RELATION", "RELATES"):
            assert isinstance(lexeme.value, str)
            if self.subject is not None:
                self.relation = lexeme.value
            else:
                self.fronted, self.fronted_object = lexeme.value, None
            return 1
        if lexeme.tag == "PLACE":
            assert isinstance(lexeme.value, tuple)
            if self.subject is None:
                self.place = lexeme.value
            else:
                self._placed(self.subject, lexeme.value)
            return 1
        if lexeme.tag in ("BACKGROUND", "BACKGROUND_IS"):
            if not _after(lexemes, at, ("background", "against")):
                return 0  # "a plain white circle" tells nothing of the background
            true = lexeme.value == self.scene.background
            text = f"the background is {lexeme.text}"
            self.claims.append(Claim(("background", lexeme.value), text, true))
            return 1
        if lexeme.tag == "WRITTEN":
            if not _after(lexemes, at, ("word", "reads", "says")):
                return 0
            sign = self.scene.sign
            true = sign is not None and sign.text == lexeme.value
            text = f'the word "{lexeme.value}" is written'
            self.claims.append(Claim(("word", lexeme.value), text, true))
            return 1
        if lexeme.tag == "while":
            self.subject = self.relation = self.fronted = self.place = None
        return 0

    # Names -------------------------------------------------------------------------------------

    def _name(self, entity: Entity) -> None:
        """An entity is named: as partner of an open relation, or as the subject."""
        if self.relation is not None and self.subject is not None:
            self._related(self.subject, self.relation, entity)
            self.relation = None
        elif self.fronted is not None and self.fronted_object is None:
            self.fronted_object = entity
        else:
            self.subject = entity
            if self.fronted is not None and self.fronted_object is not None:
                self._related(entity, self.fronted, self.fronted_object)
                self.fronted = None
            if self.place is not None:
                self._placed(entity, self.place)
                self.place = None

    def _resolve(self, mention: _Mention) -> Entity:
        """The entity that a name means, with the claims that naming it makes."""
        definite = any(lexeme.tag == "THE" for lexeme in mention.modifiers)
        if mention.noun == "sign":
            entity: Entity = "sign"
        else:
            entity = self._best_thing(mention, definite=definite)
        again = entity in self.introduced
        if again:
            self.introduced.remove(entity)
        self.introduced.append(entity)
        restated = again and definite
        text = f"there is a {self._called(entity)}"
        self.claims.append(Claim(("thing", entity), text, self._exists(entity), restated))
        for lexeme in mention.modifiers:
            if lexeme.tag in _ATTRIBUTES:
                self._attribute(entity, lexeme, restated=restated)
            elif lexeme.tag in ("A", "NUMBER"):
                self._number(entity, mention, lexeme, restated=restated)
        return entity

    def _best_thing(self, mention: _Mention, *, definite: bool) -> Entity:
        said = [(_ATTRIBUTES[m.tag], m.value) for m in mention.modifiers if m.tag in _ATTRIBUTES]
        numbers = [m.value for m in mention.modifiers if m.tag in ("A", "NUMBER")]

        def fit(index: int) -> tuple:
            thing = self.scene.things[index]
            hits = sum(2 if f == "colour" else 1 for f, v in said if getattr(thing, f) == v)
            hits += sum(number == thing.count for number in numbers)
            return hits, (index in self.introduced) == definite, -index

        fitting = [i for i, thing in enumerate(self.scene.things) if thing.shape == mention.noun]
        if fitting:
            return max(fitting, key=fit)
        colour = next((str(value) for field, value in said if field == "colour"), "")
        for entity in self.introduced:  # "the star" may name "a green star", invented before
            if isinstance(entity, tuple) and entity[0] == mention.noun and not colour:
                return entity
        return (mention.noun, colour)

    def _exists(self, entity: Entity) -> bool:
        return self.scene.sign is not None if entity == "sign" else isinstance(entity, int)

    def _thing(self, entity: Entity) -> Thing | None:
        return self.scene.things[entity] if isinstance(entity, int) else None

    def _called(self, entity: Entity) -> str:
        thing = self._thing(entity)
        if thing is not None:
            return thing.shape
        return entity if isinstance(entity, str) else " ".join(entity[::-1]).strip()

    # Claims ------------------------------------------------------------------------------------

    def _attribute(self, entity: Entity, lexeme: Lexeme, *, restated: bool = False) -> None:
        field, thing = _ATTRIBUTES[lexeme.tag], self._thing(entity)
        true = thing is not None and getattr(thing, field) == lexeme.value
        if entity == "sign":
            true = self.scene.sign is not None and lexeme.value == "white"
        text = f"the {self._called(entity)} is {lexeme.value}"
        self.claims.append(Claim((field, entity, lexeme.value), text, true, restated))

    def _number(self, entity: Entity, mention: _Mention, lexeme: Lexeme, *, restated: bool) -> None:
        thing = self._thing(entity)
        if thing is None or (lexeme.tag == "A" and thing.count == 1):
            return  # "a circle" says no more than that there is one
        colours = {m.value for m in mention.modifiers if m.tag == "COLOUR"}
        alike = [
            t for t in self.scene.things
            if t.shape == thing.shape and (not colours or t.colour in colours)
        ]  # fmt: skip
        if lexeme.value is None:
            true = thing.count > 1
        else:
            true = lexeme.value in (thing.count, sum(t.count for t in alike))
        text = f"the {self._called(entity)} is there {lexeme.text.lower()} times"
        if lexeme.tag == "A":
            text = f"there is only one {self._called(entity)}"
        self.claims.append(Claim(("count", entity, lexeme.value), text, true, restated))

    def _placed(self, entity: Entity, place: tuple) -> None:
        position = self._position(entity)
        row, col = place
        true = position is not None and row in (None, position[0]) and col in (None, position[1])
        names = [("top", "middle", "bottom")[row]] if row is not None else []
        names += [("left", "middle", "right")[col]] if col is not None else []
        text = f"the {self._called(entity)} is at the {' '.join(dict.fromkeys(names))}"
        self.claims.append(Claim(("place", entity, row, col), text, true))

    def _position(self, entity: Entity) -> tuple[int, int] | None:
        thing = self._thing(entity)
        if thing is not None:
            return thing.row, thing.col
        if entity == "sign" and self.scene.sign is not None:
            return self.scene.sign.row, self.scene.sign.col
        return None

    def _related(self, subject: Entity, relation: str, other: Entity) -> None:
        phrase = _RELATION_TEXTS.get(relation, f"is {relation}")
        text = f"the {self._called(subject)} {phrase} the {self._called(other)}"
        if relation in TURNED:
            subject, relation, other = other, TURNED[relation], subject
        self.claims.append(
            Claim((relation, subject, other), text, self._holds(subject, relation, other))
        )

    def _holds(self, subject: Entity, relation: str, other: Entity) -> bool:
        here, there = self._position(subject), self._position(other)
        if here is None or there is None or subject == other:
            return False
        if relation == "left":
            return here[1] < there[1]
        if relation == "above":
            return here[0] < there[0]
        if relation == "inside":
            thing = self._thing(subject)
            return thing is not None and thing.inside == other
        assert relation == "front", relation
        hidden = self._thing(other)
        return hidden is not None and hidden.behind == subject


def _mention(lexemes: tuple[Lexeme, ...], at: int) -> tuple[_Mention | None, int]:
    """The name that starts at `at` and how many lexemes it takes; None where no noun follows."""
    end = at
    while end < len(lexemes) and lexemes[end].tag in _MODIFIERS:
        end += 1
    if end == len(lexemes) or lexemes[end].tag not in _NOUNS:
        return None, 0
    noun = lexemes[end]
    modifiers = list(lexemes[at:end])
    end += 1
    while end < len(lexemes) and lexemes[end].tag == "TEXTURED":
        modifiers.append(lexemes[end])
        end += 1
    name = str(noun.value) if noun.tag in ("SHAPE", "SHAPES") else "sign"
    return _Mention(name, tuple(modifiers), noun.tag == "SHAPES"), end - at


def _after(lexemes: tuple[Lexeme, ...], at: int, tags: tuple[str, ...]) -> bool:
    return any(lexeme.tag in tags for lexeme in lexemes[:at])


def _remark(run: list[Lexeme]) -> Remark | None:
    """What a run of unused lexemes amounts to: nothing, commentary, or words not understood."""
    if not any(lexeme.tag == "UNKNOWN" or lexeme.value == "meta" for lexeme in run):
        return None
    text = " ".join(lexeme.text for lexeme in run)
    return Remark(text, meta=not any(lexeme.tag == "UNKNOWN" for lexeme in run))
