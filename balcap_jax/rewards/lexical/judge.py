"""The offline judge: a verdict on a caption of a photo from its references and boxes, by words.

No model, no network, no image: a pure function of the caption and the example's texts. What it can
know and what it cannot is in docs/judges.md.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.data.visible_text import visible
from balcap_jax.errors import UserError
from balcap_jax.rewards.lexical.coverage import (
    Asked,
    all_of,
    asked_by,
    covers,
    guessed,
    rarity,
    stored_units,
    told,
)
from balcap_jax.rewards.lexical.evidence import CONFIRMING, Evidence, relate
from balcap_jax.rewards.lexical.generality import is_anything
from balcap_jax.rewards.lexical.language import is_sound, quality
from balcap_jax.rewards.lexical.pointing import describes, is_nowhere
from balcap_jax.rewards.lexical.statements import Reading, Statement, read
from balcap_jax.rewards.lexical.truth import chance, is_absent, is_open
from balcap_jax.rewards.verdicts import Assertion, Verdict

VERSION = "3"  # of the rules; scores of two versions are not compared
_POINTABLE = 0.5  # chance of describing from which on a sentence's statements are pointable
_NOTHING = 0.001  # weight of words for anything: it only decides where a caption has no others
_REMARK = 0.6  # weight of a sentence that has nothing but such words
_ABOUT = 1.0  # weight of what is said of a thing; a thing weighs 0.2 to 2 by its rarity
# What things, and what is said of them, keep of their weight where references leave them open: what
# is unknown is not wrong, and what is said of it says little more.
_OPEN, _ABOUT_OPEN = 0.5, 0.25
_VERIFIED = 0.6  # chance from which on a statement is called verified


class LexicalJudge:
    """Judges captions of examples that have a reference."""

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """One verdict per pair. An example without references cannot be judged: None, no signal."""
        return [
            judge(caption, _photo(example)) if _texts(example) else None
            for example, caption in zip(examples, captions, strict=True)
        ]

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """The units of the references, or those stored with the example, in words.

        Raises:
          UserError: the example has no reference.
        """
        if not _texts(example):
            raise UserError(
                f"example {example.id!r} has no reference, and the lexical judge knows no other "
                "truth; give it references, or boxes beside at least one."
            )
        return tuple(unit.text for unit in _photo(example).asked.units)


class Photo(NamedTuple):
    """What is known of a photo, read once for all its captions."""

    evidence: Evidence
    asked: Asked


@lru_cache(maxsize=4096)
def photo(
    references: tuple[str, ...], labels: tuple[str, ...] = (), units: tuple[str, ...] = ()
) -> Photo:
    """Reads references, labels of boxes, and units where they are stored."""
    references, labels, units = (
        tuple(map(visible, texts)) for texts in (references, labels, units)
    )
    asked = all_of(stored_units(units)) if units else asked_by(references)
    return Photo(Evidence(references, labels), asked)


def _texts(example: Example) -> tuple[str, ...]:
    return tuple(text for text in example.all_references if text.strip())


def _photo(example: Example) -> Photo:
    return photo(_texts(example), tuple(box.label for box in example.boxes), example.units)


def judge(caption: str, photo: Photo) -> Verdict:
    """The verdict on one caption; a pure function of its arguments."""
    caption = visible(caption)
    readings = read(caption)
    asked = photo.asked
    tells = told(reading for reading in readings if _tells(reading, photo.evidence))
    # A boy is a child, and covers none where the child is a girl.
    tells = tuple(s for s in tells if s.negated or not is_absent(s.head, photo.evidence))
    guesses = guessed((s for r in readings for s in r.statements), photo.evidence, asked.amount)
    clarity, fluency, coherency = quality(caption)
    return Verdict(
        assertions=tuple(_assertions(readings, photo.evidence)),
        covered=tuple(covers(tells, unit) for unit in asked.units),
        clarity=clarity,
        fluency=fluency,
        coherency=coherency,
        unit_weights=tuple(unit.weight for unit in asked.units),
        asked=asked.amount + guesses,
    )


def _assertions(readings: Iterable[Reading], evidence: Evidence) -> Iterable[Assertion]:
    """Each statement once. Another name for a thing told before says nothing new, nor does a more
    general one wherever it stands, and a sentence without any statement is one remark.
    """
    readings = tuple(readings)
    known: set[tuple] = set()
    things = {s.head for r in readings for s in r.statements if s.kind == "thing" and not s.negated}
    for reading in readings:
        text = reading.sentence.text
        pointable = describes(text)
        if not reading.statements:
            if (text.lower(),) not in known:
                known.add((text.lower(),))
                yield Assertion(text, verified=False, pointable=False, chance=0.0, truth=0.0)
            continue
        empty = all(is_anything(s.head) for s in reading.statements)
        for statement in reading.statements:
            key = _key(statement, evidence)
            if key not in known and not _is_wider(statement, things):
                known.add(key)
                found = _assertion(statement, evidence, pointable=pointable)
                yield found._replace(weight=_REMARK) if empty else found
                empty = False


def _is_wider(s: Statement, things: Iterable[str]) -> bool:
    """Whether a thing is named that is told by a closer name, too: "a person" beside "a girl"."""
    return (
        s.kind == "thing"
        and not s.negated
        and any(other != s.head and relate(s.head, other) == "general" for other in things)
    )


def _key(s: Statement, evidence: Evidence) -> tuple:
    """Equal for statements that say the same of this photo."""

    def name(thing: str) -> str:
        found = evidence.known(thing)
        return found.thing if found.relation in CONFIRMING and relate(
            thing, found.thing) in ("same", "general") else thing  # fmt: skip

    return s.kind, name(s.head), s.value, name(s.other) if s.other else "", s.negated


def _assertion(s: Statement, evidence: Evidence, *, pointable: float) -> Assertion:
    true = chance(s, evidence)
    # What is not there cannot be pointed at, nor can a quality or a feeling.
    nowhere = is_nowhere(s.head) or (s.negated and s.kind == "thing")
    shown = pointable >= _POINTABLE and not nowhere
    if nowhere:
        pointable *= 0.3
    return Assertion(
        text=s.text,
        verified=true >= _VERIFIED,
        pointable=shown,
        chance=true * min(1.0, pointable / _POINTABLE),
        weight=_weight(s, evidence),
        truth=true,
    )


def _weight(s: Statement, evidence: Evidence) -> float:
    """How much a statement says. Words for anything say nothing, whatever is said of them."""
    if is_anything(s.head):
        return _NOTHING
    is_unknown = is_open(s, evidence)
    if s.kind == "thing":
        return rarity(s.head) * (_OPEN if is_unknown else 1.0)
    return _ABOUT_OPEN if is_unknown else _ABOUT


def _tells(reading: Reading, evidence: Evidence) -> bool:
    """Whether a sentence can cover a unit: it is one, and it describes."""
    return _is_sound(reading, evidence) and describes(reading.sentence.text) >= _POINTABLE


def _is_sound(reading: Reading, evidence: Evidence) -> bool:
    """A sentence that does not call one thing by three names, hoping that one fits."""
    if not is_sound(reading.sentence):
        return False
    heads = {s.head for s in reading.statements if s.kind == "thing" and not s.negated}
    known = [evidence.known(head) for head in heads]
    names = Counter(k.thing for k in known if k.relation in ("same", "general"))
    return max(names.values(), default=0) < 3
