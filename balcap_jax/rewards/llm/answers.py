"""From the text of an answer to findings: parsed, repaired where there is one way to, checked.

What is checked: the form, that every assertion is made of words of the caption, that the ids of
units exist, that scores lie in their range. An answer that fails is refused as a whole, because
what is left of it would be another verdict than the model's.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from balcap_jax.rewards.llm.prompts import MAX_SCORE, Part, clean
from balcap_jax.rewards.verdicts import Assertion, Verdict

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)\n?\s*```", re.DOTALL)
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(\s*[}\]])', re.DOTALL)
_WORD = re.compile(r"\w+")


class BadAnswer(Exception):  # noqa: N818
    """An answer that cannot be used; the message is the reason, in our words alone."""


class Findings(NamedTuple):
    """What one answer holds of a verdict; None for what its part does not ask."""

    assertions: tuple[Assertion, ...] | None = None
    covered: tuple[bool, ...] | None = None
    scores: tuple[float, float, float] | None = None


def parse_object(text: str) -> dict[str, Any]:
    """The one JSON object in `text`.

    Repaired, because there is one way to: thoughts before it (`<think>`), a code fence or prose
    around it, commas before a closing bracket. An answer with two objects, a repeated field, or an
    end that is missing is refused.

    Raises:
      BadAnswer: there is not exactly one whole object.
    """
    body = text.removeprefix("\ufeff").strip()
    if not body.startswith(("{", "`")):  # thoughts; inside an object the mark would be a quote
        body = body.partition("</think>")[2].strip() or body
    fenced = _FENCE.findall(body)
    if len(fenced) == 1:
        body = fenced[0].strip()
    start = body.find("{")
    if start < 0:
        raise BadAnswer("no JSON object")
    body = _TRAILING_COMMA.sub(lambda match: match[1] or match[2], body[start:])
    try:
        found, end = _DECODER.raw_decode(body)
    except RecursionError:
        raise BadAnswer("JSON nested too deeply") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise BadAnswer("JSON that is cut or broken") from None
        raise BadAnswer(str(error)) from None
    if "{" in body[end:]:
        raise BadAnswer("more than one JSON object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field given twice")
    return fields


def _no_constant(_: str) -> None:
    raise ValueError("a number that is none")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def findings(part: Part, text: str, *, caption: str, units: int) -> Findings:
    """What the answer `text` to `part` says of `caption`.

    Args:
      caption: as the policy wrote it; it is cleaned here as it was for the request.
      units: how many reference units the example has.

    Raises:
      BadAnswer: the answer breaks the form or says what cannot be.
    """
    fields = part.schema["properties"]
    answer = parse_object(text)
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
    """The reference units of an answer.

    Raises:
      BadAnswer: there are none, or one is not about what the reference says.
    """
    units = parse_object(text).get("units")
    if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
        raise BadAnswer("no list of texts 'units'")
    texts = tuple(dict.fromkeys(clean(unit) for unit in units))
    if not any(texts):
        raise BadAnswer("no units")
    said = set(_words(clean(reference)))
    for unit in texts:
        words = _words(unit)
        if not words or 2 * sum(_said(word, said, reference) for word in words) < len(words):
            raise BadAnswer("a unit that the reference does not state")
    return texts


def _said(word: str, words: set[str], text: str) -> bool:
    """By character where words are not set apart by spaces."""
    return word in words or (not word.isascii() and 2 * sum(c in text for c in word) > len(word))


def new_caption(text: str) -> str:
    """The rewritten reference of an answer.

    Raises:
      BadAnswer: there is none.
    """
    caption = parse_object(text).get("caption")
    if not isinstance(caption, str) or not clean(caption):
        raise BadAnswer("no text 'caption'")
    return clean(caption)


# Parts of an answer ------------------------------------------------------------------------------


def _assertions(listed: Any, caption: str) -> tuple[Assertion, ...]:
    if not isinstance(listed, list):
        raise BadAnswer("assertions that are no list")
    said = clean(caption)
    if len(listed) > max(len(_words(said)), len(said) // 2):
        raise BadAnswer("more assertions than the caption can hold")
    found = []
    for item in listed:
        if not isinstance(item, dict) or not {"quote", "verified", "pointable"} <= item.keys():
            raise BadAnswer("an assertion without its fields")
        quote, verified, pointable = item["quote"], item["verified"], item["pointable"]
        if not (
            isinstance(quote, str) and isinstance(verified, bool) and isinstance(pointable, bool)
        ):
            raise BadAnswer("an assertion with fields of another type")
        if not grounded(quote, said):
            raise BadAnswer("an assertion that the caption does not make")
        found.append(Assertion(clean(quote), verified, pointable))
    return tuple(found)


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
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _covered(listed: Any, units: int) -> tuple[bool, ...]:
    if not isinstance(listed, list):
        raise BadAnswer("covered ids that are no list")
    ids = {_whole(item) for item in listed}
    if not ids <= set(range(units)):
        raise BadAnswer("the id of a unit that does not exist")
    return tuple(i in ids for i in range(units))


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
