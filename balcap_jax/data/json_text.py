"""JSON of rows: what is no row has one reason."""

from typing import Any

from balcap_jax.runs import safe_json
from balcap_jax.runs.safe_json import DuplicateKeyError, duplicate_key

__all__ = ["DuplicateKeyError", "duplicate_key", "is_encodable", "read_json"]


def read_json(text: str) -> Any:
    """The value in `text`.

    Raises:
      ValueError: it is not JSON, an object has a key twice, or see `safe_json.loads`; the message
        says which.
    """
    return safe_json.loads(text, unique=True)


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold it, which knows no half of a character (such as \\ud83d alone)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
