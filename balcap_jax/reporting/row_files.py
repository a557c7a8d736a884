"""A run's files read back: a row of the wrong shape is one sentence, never half a report."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from balcap_jax.errors import UserError
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.storage.paths import AnyPath


class Rule(NamedTuple):
    """What a field may hold, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: `step`, and by name a number, null, or a list of numbers.

    Raises:
      UserError: a line is not JSON or not such a row.
    """
    return _read(path, _metrics_problem)


def read_captions(path: AnyPath) -> list[dict[str, Any]]:
    """The rows of evaluation/*.jsonl, as `caption_row` makes them.

    Raises:
      UserError: a line is not JSON or not such a row, or has the id of another one.
    """
    rows = _read(path, lambda row: _problem(row, _CAPTION))
    lines: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        if (first := lines.setdefault(row["id"], number)) != number:
            raise UserError(
                f"{path} has the id {row['id']!r} twice, in the lines {first} and {number}; remove "
                "one of them or restore the file."
            )
    return rows


def read_summary(path: AnyPath) -> dict[str, Any] | None:
    """summary.json; None where there is none yet, or none of both evaluations.

    Raises:
      UserError: it is not JSON, or a score in it is not a number.
    """
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); restore the file, or remove it to report without it."
        ) from error
    problem = "is not an object" if not isinstance(summary, dict) else None
    sides = {} if problem else {w: summary[w] for w in ("before", "after") if w in summary}
    problem = problem or next((p for when in sides if (p := _scores_problem(when, sides))), None)
    if problem:
        raise UserError(f"{path} {problem}; restore the file, or remove it to report without it.")
    return summary if len(sides) == 2 else None


def _read(path: AnyPath, problem_of: Callable[[Any], str | None]) -> list[dict[str, Any]]:
    rows = read_jsonl(path)
    for number, row in enumerate(rows, start=1):
        problem = problem_of(row)
        if problem is not None:
            raise UserError(
                f"{path}, line {number} {problem}; remove that line or restore the file."
            )
    return rows


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _is_text(value: Any) -> bool:
    """Also half of a surrogate pair, which JSON can say, is no text: no file can hold it."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _list_of(rule: Rule, words: str) -> Rule:
    return Rule(words, lambda value: isinstance(value, list) and all(map(rule.holds, value)))


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.words} or null", lambda value: value is None or rule.holds(value))


_NUMBER = Rule("a number", _is_number)
_COUNT = Rule(
    "a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63
)
_TEXT = Rule("a text", _is_text)
_TRUTH = Rule("true or false", lambda value: isinstance(value, bool))
_TEXTS = _list_of(_TEXT, "a list of texts")
_SCORES = Rule(
    "an object of numbers and nulls",
    lambda v: (
        isinstance(v, dict)
        and all(map(_is_text, v))
        and all(map(_or_null(_NUMBER).holds, v.values()))
    ),
)
_ASSERTION = {"text": _TEXT, "verified": _TRUTH, "pointable": _TRUTH, "chance": _or_null(_NUMBER)}
_VERDICT = {
    "assertions": _list_of(
        Rule("", lambda value: _problem(value, _ASSERTION) is None), "a list of assertions"
    ),
    "units": _TEXTS,
    "covered": _list_of(_TRUTH, "a list of true and false"),
}
_CAPTION = {
    "id": _TEXT,
    "caption": _TEXT,
    "reference": _TEXT,
    "references": _or_null(_TEXTS),
    "rewards": _SCORES,
    "verdict": Rule("a verdict or null", lambda v: v is None or _is_verdict(v)),
    "words": _COUNT,
    "rho": _or_null(_NUMBER),
    "image": _or_null(_TEXT),
}
_OPTIONAL = ("references", "image", "chance")


def _problem(row: Any, fields: Mapping[str, Rule]) -> str | None:
    """What is wrong with a row, as the rest of a sentence; `_OPTIONAL` fields may be absent."""
    if not isinstance(row, dict):
        return f"is {_quoted(row)}, not an object"
    for name, rule in fields.items():
        if name not in row:
            if name in _OPTIONAL:
                continue
            return f'has no "{name}"'
        if not rule.holds(row[name]):
            return f'has {_quoted(row[name])} as "{name}", which must be {rule.words}'
    return None


def _is_verdict(value: Any) -> bool:
    good = _problem(value, _VERDICT) is None
    return good and len(value["units"]) == len(value["covered"])


def _metrics_problem(row: Any) -> str | None:
    problem = _problem(row, {"step": _COUNT})
    if problem is not None:
        return problem
    value = Rule(
        "a number, null or a list of numbers",
        lambda v: v is None or _is_number(v) or (isinstance(v, list) and all(map(_is_number, v))),
    )
    return _problem(row, dict.fromkeys((f for f in row if f != "step"), value))


def _scores_problem(when: str, sides: Mapping[str, Any]) -> str | None:
    return _problem(sides, {when: _SCORES})


def _quoted(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
