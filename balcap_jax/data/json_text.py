"""JSON of rows: what is no row has one reason."""

from typing import Any

from balcap_jax.errors import UserError
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


def json_lines(text: str, *, name: str, remedy: str) -> list[Any]:
    """The value of each line that is not empty.

    Args:
      name, remedy: of the text, for the error.

    Raises:
      UserError: a line is not JSON.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(read_json(line))
            except ValueError as error:
                raise UserError(f"{name}, line {number} is not JSON ({error}); {remedy}.") from None
    return rows
