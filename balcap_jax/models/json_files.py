"""JSON files of a model folder, which anybody may have written: whole, once, not too deep."""

from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.runs import safe_json

# The deepest published file has 9 levels; far below where a reader's stack ends.
DEPTH = 64
# The largest published tokenizer.json has 33 MB.
BYTES = 512 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: the file cannot be read, holds no JSON object, names an entry twice, or is nested
        deeper than `DEPTH`.
    """
    try:
        if path.stat().st_size > BYTES:
            raise ValueError(f"larger than {BYTES >> 20} MB")
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, MemoryError) as error:
        raise UserError(
            f"{path} must be a JSON file but is not ({reason_of(error)}); restore it."
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold a JSON object, not a {type(content).__name__}; restore it."
        )
    return content


def parse_json(text: str | bytes) -> Any:
    """What `text` holds.

    Raises:
      ValueError: it is no JSON, an object has an entry twice, or it is nested too deep.
    """
    return safe_json.loads(text, unique=True, depth=DEPTH)


def reason_of(error: BaseException) -> str:
    """The first line of what `error` says, for a sentence of ours."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return printable(lines[0]).rstrip(".") if lines else type(error).__name__


def printable(text: str, limit: int = 160) -> str:
    """`text` without control characters and lone surrogates, cut to `limit` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text.strip()[: 2 * limit])
    return clean if len(clean) <= limit else f"{clean[: limit - 3]}..."


def shown(value: Any) -> str:
    """`value` as in Python, short enough for a sentence."""
    return printable(repr(value), 80)
