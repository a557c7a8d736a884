"""From the text of an answer to findings: parsed, repaired where there is one way to, checked.

What is checked: the form, that every assertion is made of words of the caption, that the ids of
units exist, that scores lie in their range. A verdict that fails is refused as a whole, because
what is left of it would be another than the model's; of a list of units the bad ones are left out.

By hand and not with pydantic: the form is four lines, and the rest of the checks compare texts.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from balcap_jax.rewards.lexical.words import (
    AUXILIARIES,
    CONJUNCTIONS,
    DETERMINERS,
    NEGATIONS,
    PREPOSITIONS,
    PRONOUNS,
    QUANTIFIERS,
    RELATIVES,
)
from balcap_jax.rewards.llm.answer_text import BadAnswer, parse_object
from balcap_jax.rewards.llm.prompts import clean
from balcap_jax.rewards.llm.questions import MAX_SCORE, Part
from balcap_jax.rewards.verdicts import Assertion, Verdict

_WORD = re.compile(r"\w+")
# Behind a sentence; not in "3.5 m", and what is copied as it stands may go beyond one.
_ENDS = re.compile(r"[.!?;]+[\"'”’)]*\s+|[。！？]")
_UNIT_ID = re.compile(r"u0*([1-9][0-9]{0,5})", re.IGNORECASE)  # u01, also written u1
_ESCAPE = re.compile(r"\\+u00[0-9a-f]{2}", re.IGNORECASE)  # of the request, copied as a text
# Words that state nothing alone, and those that a repetition may have more or less of.
_STOP_WORDS = (
    DETERMINERS | QUANTIFIERS | PREPOSITIONS | CONJUNCTIONS | RELATIVES | PRONOUNS | AUXILIARIES
    | NEGATIONS | {"to", "s", "t"}
)  # fmt: skip
_FILLERS = frozenset("a an the there is are was were".split())


class Findings(NamedTuple):
    """What one answer holds of a verdict; None for what its part does not ask."""

    assertions: tuple[Assertion, ...] | None = None
    covered: tuple[bool, ...] | None = None
    scores: tuple[float, float, float] | None = None


def findings(part: Part, text: str, *, caption: str, units: int) -> Findings:
    """What the answer `text` to `part` says of `caption`.

    Args:
      caption: as the policy wrote it; it is cleaned here as it was for the request.
      units: how many reference units the example has.

    Raises:
      BadAnswer: the answer breaks the form or says what cannot be.
    """
    fields = part.schema["properties"]
    answer = parse_object(text, fields)
    if missing := [name for name in fields if name not in answer]:
        raise BadAnswer(f"no field {missing[0]!r}")
    return Findings(
        assertions=_assertions(answer["assertions"], caption) if "assertions" in fields else None,
        covered=_covered(answer["covered"], units) if "covered" in fields else None,
        scores=_scores(answer) if "clarity" in fields else None,
    )


def verdict_of(parts: Sequence[Findings]) -> Verdict:
    """The findings of all parts together."""
    assertions, covered, scores = (
        next(value for value in values if value is not None) for values in zip(*parts, strict=True)
    )
    clarity, fluency, coherency = scores
    return Verdict(assertions, covered, clarity, fluency, coherency)


def unit_texts(text: str, *, reference: str) -> tuple[str, ...]:
    """The reference units of an answer, without those that the reference does not state and those
    that repeat another.

    Raises:
      BadAnswer: there are none, or more than half are not about what the reference says.
    """
    units = parse_object(text, ("units",)).get("units")
    if not isinstance(units, list) or not units:
        raise BadAnswer("no list of texts 'units'")
    stated: dict[tuple[str, ...], str] = {}
    bad = 0
    for unit in units:
        if isinstance(unit, str) and _states(reference, clean(unit)):
            stated.setdefault(_gist(unit), clean(unit))
        else:
            bad += 1
    if 2 * bad > len(units):
        raise BadAnswer("units that the reference does not state")
    return tuple(stated.values())


def _states(reference: str, unit: str) -> bool:
    """Whether the words of `unit` that say something are, for a half or more, the reference's."""
    told = _content(unit)
    said = _folded(clean(reference))
    words = set(_words(said))
    return bool(told) and 2 * sum(_said(word, words, said) for word in told) >= len(told)


def _said(word: str, words: set[str], text: str) -> bool:
    """By the beginning, of words that end in another way; by character where words are not set
    apart by spaces.
    """
    if word in words or (not word.isascii() and 2 * sum(c in text for c in word) > len(word)):
        return True
    sizes = ((max(3, min(len(word), len(other)) - 1), other) for other in words)
    return any(len(word) >= size and word[:size] == other[:size] for size, other in sizes)


def new_caption(text: str) -> str:
    """The rewritten reference of an answer.

    Raises:
      BadAnswer: there is none.
    """
    caption = parse_object(text, ("caption",)).get("caption")
    if not isinstance(caption, str) or not clean(caption):
        raise BadAnswer("no text 'caption'")
    return clean(caption)


# Parts of an answer ------------------------------------------------------------------------------


def _assertions(listed: Any, caption: str) -> tuple[Assertion, ...]:
    """The assertions, each once: a judge that repeats one says no more of the caption."""
    if not isinstance(listed, list):
        raise BadAnswer("assertions that are no list")
    said = clean(caption)
    if not listed and _words(said):
        raise BadAnswer("no assertion of a caption with words")
    if len(listed) > max(len(_words(said)), len(said) // 2):
        raise BadAnswer("more assertions than the caption can hold")
    found: dict[tuple[tuple[str, ...], bool, bool], Assertion] = {}
    for item in listed:
        if not isinstance(item, dict) or not {"quote", "verified", "pointable"} <= item.keys():
            raise BadAnswer("an assertion without its fields")
        quote, verified, pointable = item["quote"], item["verified"], item["pointable"]
        if not (
            isinstance(quote, str) and isinstance(verified, bool) and isinstance(pointable, bool)
        ):
            raise BadAnswer("an assertion with fields of another type")
        if not _made(quote, said):
            quote = _ESCAPE.sub(" ", quote)
        if not _made(quote, said):
            raise BadAnswer("an assertion that no sentence of the caption makes")
        if not _content(quote):
            if not _is_sentence(quote, said):
                raise BadAnswer("an assertion that states nothing")
            pointable = False  # "There." points at nothing, whatever the judge says
        # The findings belong to it: some judges quote a whole sentence for each of its facts.
        name = (_gist(quote), verified, pointable)
        found.setdefault(name, Assertion(clean(quote), verified, pointable))
    return tuple(found.values())


def _is_sentence(quote: str, caption: str) -> bool:
    """Whether the caption sets the words apart, as a new policy does ("There. A."): then they are
    a remark, which the judge is to list.
    """
    inner = re.escape(_folded(clean(quote)).strip(" .!?;:"))
    return re.search(rf"(^|[.!?;:]\s*){inner}\s*([.!?;:]|$)", _folded(caption)) is not None


def _made(quote: str, caption: str) -> bool:
    """Whether `quote` is made of words of one sentence of `caption`, or is copied as it stands:
    words picked from two sentences say what neither does.
    """
    if any(grounded(quote, sentence) for sentence in _ENDS.split(caption)):
        return True
    inner, outer = _words(quote), _words(caption)
    starts = range(len(outer) - len(inner) + 1)
    return bool(inner) and any(outer[i : i + len(inner)] == inner for i in starts)


def grounded(quote: str, caption: str) -> bool:
    """Whether `quote` is made of words of `caption`, in their order; case and signs do not count.

    Languages without spaces between words are compared by character.
    """
    inner, outer = _words(quote), _words(caption)
    if not inner:
        return False
    rest = iter(outer)
    if all(word in rest for word in inner):
        return True
    return not quote.isascii() and "".join(inner) in "".join(outer)


def _words(text: str) -> list[str]:
    return _WORD.findall(_folded(text))


def _folded(text: str) -> str:
    """`text` in one spelling: its composed form, without case."""
    return unicodedata.normalize("NFKC", text).casefold()


def _content(text: str) -> list[str]:
    """The words that say something."""
    return [word for word in _words(text) if word not in _STOP_WORDS]


def _gist(text: str) -> tuple[str, ...]:
    """What two texts share of which one repeats the other."""
    return tuple(word for word in _words(text) if word not in _FILLERS)


def _covered(listed: Any, units: int) -> tuple[bool, ...]:
    if not isinstance(listed, list):
        raise BadAnswer("covered ids that are no list")
    places = [_place(item) for item in listed]
    if not set(places) <= set(range(units)):
        raise BadAnswer("the id of a unit that does not exist")
    if len(set(places)) < len(places):
        raise BadAnswer("the id of a unit given twice")
    return tuple(i in places for i in range(units))


def _place(id_: Any) -> int:
    """The place of a unit, from 0, by its id."""
    if not isinstance(id_, str):  # counted from 0, from 1, or a flag per unit?
        raise BadAnswer("a number or flag where the id of a unit belongs")
    match = _UNIT_ID.fullmatch(id_.strip())
    return int(match[1]) - 1 if match else -1


def _scores(answer: dict[str, Any]) -> tuple[float, float, float]:
    scores = tuple(_whole(answer[name]) for name in ("clarity", "fluency", "coherency"))
    if not all(0 <= score <= MAX_SCORE for score in scores):
        raise BadAnswer("a score out of range")
    return tuple(score / MAX_SCORE for score in scores)  # type: ignore[return-value]


def _whole(value: Any) -> int:
    """A whole number, also where it is written 7.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise BadAnswer("a text or a fraction where a whole number belongs")
    return value
