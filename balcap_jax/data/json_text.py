"""JSON of rows, read so that nothing in it is silently lost: what is no row has one reason."""

import json
from collections.abc import Iterable
from typing import Any

DEEPEST = 100  # levels; no row of data is deeper, and what writes rows goes down level by level


class DuplicateKeyError(ValueError):
    """An object has a key twice, of which JSON readers would drop one."""

    def __init__(self, key: str):
        super().__init__(f"it has {json.dumps(key)} twice")


def read_json(text: str) -> Any:
    """The value in `text`.

    Raises:
      ValueError: it is not JSON, an object has a key twice, a number has more digits than Python
        reads, or it is nested deeper than `DEEPEST` levels; the message says which.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise ValueError(_too_deep())
    return value


def duplicate_key(pairs: Iterable[tuple[str, Any]]) -> str | None:
    """The first key that comes twice; None if none does."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return None


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold it, which knows no half of a character (such as \\ud83d alone)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise DuplicateKeyError(duplicate_key(pairs) or "")
    return values


def _too_deep() -> str:
    return f"it is nested deeper than {DEEPEST} levels"


def _depth(value: Any) -> int:
    """Levels of lists and objects, counted level by level: deep ones must not end the counting."""
    depth, level = 0, [value]
    while level:
        level = [
            child
            for item in level
            if isinstance(item, list | dict)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        depth += 1
    return depth - 1
