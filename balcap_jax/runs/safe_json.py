"""JSON that others wrote, read so that no text ends the program."""

import json
from typing import Any

# Far below where Python's parser gives up (about 1000, less in deep calls): who walks through the
# value afterwards, or writes it again, needs room of its own.
MAX_DEPTH = 100


def loads(text: str | bytes, *, strict: bool = True) -> Any:
    """The value of a JSON text.

    Args:
      strict: refuse raw newlines and other control characters in strings.

    Raises:
      ValueError: it is no JSON, nested deeper than MAX_DEPTH, or holds a number with too many
        digits; the message is short. Nothing else is raised, whatever the text.
    """
    try:
        value = json.loads(text, strict=strict)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Refuses lists and dictionaries nested deeper than MAX_DEPTH.

    Raises:
      ValueError: they are.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise ValueError("JSON nested too deeply")
