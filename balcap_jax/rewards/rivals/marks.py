"""Answers that mark each item of a list with yes or no: criteria of a rubric, claims of a caption.

Items are shown with ids (m01, m02, ...), and the answer names each of them once: an item that a cut
or careless answer leaves out is not taken for a no.
"""

import re
from collections.abc import Sequence
from typing import Any

from balcap_jax.rewards.llm.answer_text import BadAnswer, parse_object
from balcap_jax.rewards.llm.prompts import clean

_ID = re.compile(r"m0*([1-9][0-9]{0,5})", re.IGNORECASE)
FORM = '{"marks": [{"id": "m01", "met": 1}, ...]}'  # of the answer, for instructions
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "marks": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "met": {"type": "integer", "enum": [0, 1]},
                },
                "required": ["id", "met"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["marks"],
    "additionalProperties": False,
}


def listed(items: Sequence[str], *, name: str) -> list[dict[str, str]]:
    """Items with their ids, for a request.

    Args:
      name: what an item is called there.
    """
    return [{"id": f"m{place:02d}", name: clean(item)} for place, item in enumerate(items, start=1)]


def marks(text: str, count: int) -> tuple[bool, ...]:
    """The mark of each of `count` items, in their order.

    Raises:
      BadAnswer: an item has none or two, a mark is neither 0 nor 1, or it is of an item beyond
        them.
    """
    answer = parse_object(text, ("marks",)).get("marks")
    if not isinstance(answer, list):
        raise BadAnswer("no list 'marks'")
    found: dict[int, bool] = {}
    for item in answer:
        place, met = _mark(item)
        if place > count:
            raise BadAnswer("a mark of an item that does not exist")
        if place in found:
            raise BadAnswer("an item marked twice")
        found[place] = met
    if len(found) < count:
        raise BadAnswer("an item without a mark")
    return tuple(found[place] for place in range(1, count + 1))


def _mark(item: Any) -> tuple[int, bool]:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        raise BadAnswer("a mark without the id of its item")
    match = _ID.fullmatch(item["id"].strip())
    if match is None:
        raise BadAnswer("the id of an item that does not exist")
    met = item.get("met")
    if not isinstance(met, int) or met not in (0, 1):  # true and false are 1 and 0
        raise BadAnswer("a mark that is neither 0 nor 1")
    return int(match[1]), bool(met)
