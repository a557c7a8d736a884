"""From the text of an answer to its JSON object: repaired where there is one way to."""

import json
import re
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from balcap_jax.runs import safe_json

_FENCE = re.compile(r"```[a-zA-Z]*\s(.*?)```", re.DOTALL)
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(\s*[}\]])', re.DOTALL)
# Where thoughts begin and end, in the words of the models that write them into their answers.
_THOUGHTS_BEGIN = re.compile(
    r"<(think|thinking|thought|reasoning|seed:think)>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|"
    r"<\|channel\|>analysis<\|message\|>"
)
_THOUGHTS_END = re.compile(
    r"</(think|thinking|thought|reasoning|seed:think)>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|"
    r"<\|channel\|>final<\|message\|>"
)
_OBJECT = re.compile(r'\{\s*["}]')  # other braces are prose
_MOST_OBJECTS = 100  # in one answer, before it is no answer


class BadAnswer(Exception):  # noqa: N818
    """An answer that cannot be used; the message is the reason, in our words alone."""


def parse_object(text: str, fields: Collection[str] = ()) -> dict[str, Any]:
    """The one JSON object in `text` that has the `fields`; a single one without them, too.

    Repaired, because there is one way to: thoughts before it, a code fence or prose around it, also
    with braces, commas before a closing bracket, raw newlines in texts. An answer with two such
    objects, a repeated field, or an end that is missing is refused; so are single quotes, whose
    ends are a guess.

    Raises:
      BadAnswer: there is not exactly one whole object.
    """
    body = text.removeprefix("\ufeff").strip()
    if body.startswith('"'):  # the object as a JSON string
        with suppress(ValueError):
            body = str(safe_json.loads(body)).strip()
    if not body.startswith(("{", "`")):  # inside an object the mark would be a quote
        body = without_thoughts(body)
    fenced = _FENCE.findall(body)
    if len(fenced) == 1 and not body.startswith("{"):
        body = fenced[0].strip()
    found = _objects(body)
    if not found:
        raise BadAnswer("JSON that is cut or broken" if "{" in body else "no JSON object")
    whole = [item for item in found if all(field in item for field in fields)]
    if len(whole or found) > 1:
        raise BadAnswer("more than one JSON object")
    return (whole or found)[0]


def without_thoughts(text: str) -> str:
    """An answer without the thoughts that stand before it.

    Raises:
      BadAnswer: they have no end, so that there is no answer.
    """
    body = text.strip()
    if (end := _THOUGHTS_END.search(body)) is not None:
        return body[end.end() :].strip() or body
    if _THOUGHTS_BEGIN.match(body):
        raise BadAnswer("thoughts without an end")
    return body


def _objects(body: str) -> list[dict[str, Any]]:
    """The JSON objects in a text that are in no other one."""
    found: list[dict[str, Any]] = []
    for _ in range(_MOST_OBJECTS):
        if (begin := _OBJECT.search(body)) is None:
            return found
        item, body = _decoded(body[begin.start() :])
        if item:
            found.append(item)
    raise BadAnswer("more than one JSON object")


def _decoded(text: str) -> tuple[dict[str, Any], str]:
    """The object with which a text begins, and what is behind it."""
    try:
        try:
            item, end = _DECODER.raw_decode(text)
        except json.JSONDecodeError:
            text = _TRAILING_COMMA.sub(lambda match: match[1] or match[2], text)
            item, end = _DECODER.raw_decode(text)
        _check_depth(item)
    except RecursionError:
        raise BadAnswer(_DEEP) from None
    except ValueError as error:
        reason = str(error)  # Python's own speak of lines and columns, or of digits
        raise BadAnswer(reason if reason in _REASONS else "JSON that is cut or broken") from None
    return item, text[end:]


_DEEP = "JSON nested too deeply"
_REASONS = ("a field given twice", "a number that is none", _DEEP)


def _check_depth(item: Any) -> None:
    try:
        safe_json.check_depth(item)
    except ValueError:
        raise ValueError(_DEEP) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field given twice")
    return fields


def _no_constant(_: str) -> None:
    raise ValueError("a number that is none")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, strict=False)
