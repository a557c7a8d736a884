"""Captions -> the statements that a model is asked about, each in words that stand by themselves.

The reader of the lexical judge finds things, with all that stands before them, and what is said of
them. What it leaves out is in no statement, so the sentence is then asked whole as well.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from balcap_jax.rewards.lexical.pointing import describes, is_nowhere
from balcap_jax.rewards.lexical.statements import Reading, Statement, read

_SURE = 0.5  # chance of describing from which on a sentence counts in full
_NOWHERE = 0.3  # what a quality or a feeling keeps, which nobody can point at
# Tags of words that say something.
_CONTENT = frozenset({"NOUN", "ADJ", "NUM", "VERB", "NEG", "PREP"})
# "The picture shows ...": nothing is said of what it shows.
_ABOUT = frozenset(
    """image picture photo photograph scene view shot show depict feature display see have include
    contain visible place of in on at with to""".split()
)
_LONGEST = 40  # words of a sentence that is asked whole; of a longer one the first


class Asked(NamedTuple):
    """A statement of a caption.

    Attributes:
      text: as it is asked.
      pointable: in [0, 1], how far it points at something in the image.
    """

    text: str
    pointable: float


@lru_cache(maxsize=1 << 14)
def statements(caption: str) -> tuple[Asked, ...]:
    """The distinct statements of a caption, in order; what another one says as well is left out.

    A caption of signs alone has one statement, itself; an empty one has none.
    """
    found: dict[str, Asked] = {}
    for reading in read(caption):
        sentence = " ".join(reading.sentence.text.split()[:_LONGEST])
        pointable = min(1.0, describes(sentence) / _SURE)
        for text, nowhere in _of_sentence(reading, sentence):
            kept = Asked(text, pointable * (_NOWHERE if nowhere else 1.0))
            found.setdefault(text.lower(), kept)
    if not found and caption.strip():
        return (Asked(" ".join(caption.split()[:_LONGEST]), 0.0),)
    return tuple(asked for text, asked in found.items() if not _entailed(text, found))


def _of_sentence(reading: Reading, sentence: str) -> Iterator[tuple[str, bool]]:
    """(text, whether it names what is nowhere) of each statement."""
    names = {s.head: s.text for s in reading.statements if s.kind == "thing"}
    told = {word for text in names.values() for word in text.split()}
    for s in reading.statements:
        told |= {*s.head.split(), *s.value.split(), *s.other.split()}
    left_out = any(
        word.tag in _CONTENT and not {word.text, word.lemma} & (told | _ABOUT)
        for word in reading.sentence.words
    )
    if not reading.statements or any(s.negated for s in reading.statements):
        # "No dog" says the contrary of what its parts say.
        yield sentence, False
        return
    for s in reading.statements:
        text = _text(s, names)
        if text:
            yield text, is_nowhere(s.head)
    if left_out:
        yield sentence, False


def _text(s: Statement, names: dict[str, str]) -> str:
    """Its words, things by their full names; "" for what a full name says already."""
    head, other = names.get(s.head, s.head), names.get(s.other, s.other)
    if s.kind == "thing":
        return s.text
    if s.kind in ("attribute", "number"):
        known = s.value in head.split() or s.kind == "number"
        return "" if known else f"{head} is {s.value}"
    if s.kind == "relation":
        return f"{head} {s.value} {other}"
    verb = s.text.removeprefix(f"{s.head} ").removesuffix(f" {s.other}" if s.other else "")
    return " ".join(filter(None, (head, verb, other)))


def _entailed(text: str, others: dict[str, Asked]) -> bool:
    """Whether a name has a fuller one of the same thing: "red car" beside "small red car"."""
    words = text.split()
    return any(
        len(other.split()) > len(words) and _is_name(words, other.split()) for other in others
    )


def _is_name(words: list[str], fuller: list[str]) -> bool:
    """Whether the words are the end of a fuller name, in this order, some of it left out."""
    if words[-1] != fuller[-1]:
        return False
    left = iter(fuller)
    return all(word in left for word in words) and not any(
        word in _NO_NAME for word in (*words, *fuller)
    )


# A name has none of these; in "a cat is on the red car" the car is one of two things.
_NO_NAME = frozenset(
    """is are a an the there in on at of with to by near above below behind under over left right
    inside beside front top bottom""".split()
)
