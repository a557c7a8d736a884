"""JSON that others wrote: no text ends the program, and nothing in it is silently lost."""

import json
from collections.abc import Iterable
from typing import Any

# Far below where Python's parser gives up (about 1000, less in deep calls): who walks through the
# value afterwards, or writes it again, needs room of its own.
MAX_DEPTH = 100


class DuplicateKeyError(ValueError):
    """An object has a key twice, of which JSON readers would drop one."""

    def __init__(self, key: str):
        super().__init__(f"it has {json.dumps(key)} twice")


def loads(
    text: str | bytes, *, strict: bool = True, unique: bool = False, depth: int = MAX_DEPTH
) -> Any:
    """The value of a JSON text.

    Args:
      strict: refuse raw newlines and other control characters in strings.
      unique: refuse objects that have a key twice.
      depth: levels of lists and objects that are accepted.

    Raises:
      ValueError: it is no JSON, nested deeper than `depth`, or holds a number with too many digits;
        the message is short. `DuplicateKeyError` for a key. Nothing else is raised, whatever the
        text.
    """
    try:
        value = json.loads(text, strict=strict, object_pairs_hook=_once if unique else None)
    except RecursionError:
        raise ValueError(_too_deep(depth)) from None
    check_depth(value, depth)
    return value


def check_depth(value: Any, depth: int = MAX_DEPTH) -> None:
    """Refuses lists and objects nested deeper than `depth` levels.

    Counted level by level: deep ones must not end the counting.

    Raises:
      ValueError: they are.
    """
    level = [value]
    for _ in range(depth):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise ValueError(_too_deep(depth))


def duplicate_key(pairs: Iterable[tuple[str, Any]]) -> str | None:
    """The first key that comes twice; None if none does."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise DuplicateKeyError(duplicate_key(pairs) or "")
    return values


def _too_deep(depth: int) -> str:
    return f"it is nested deeper than {depth} levels"
