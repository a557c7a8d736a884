"""Lists of facts as DeCapBench's judge is asked for them and answers them."""

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from balcap_jax.rewards.llm.answer_text import BadAnswer
from balcap_jax.runs import safe_json

_LONGEST = 200_000  # characters of a list; Python's own parser may end the process on more
_MARK = "```json"


def listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a request holds them: a fenced block with one row in each line."""
    lines = "".join(f"  {json.dumps(dict(row), ensure_ascii=False)},\n" for row in rows)
    return f"{_MARK}[\n{lines}]\n```"


def parsed(answer: str) -> list[dict[str, Any]]:
    """The rows in an answer, read as the official code does: what stands after the last ```json, as
    Python first, which takes a comma after the last row, then as JSON, which takes null.

    Raises:
      BadAnswer: they cannot be read, or are no list of objects that have a text "fact".
    """
    if len(answer) > _LONGEST:
        raise BadAnswer("a list that is too long")
    rest = answer.rpartition(_MARK)[2]
    fenced = rest.partition("```")[0].strip("\n")
    whole = rest.strip("`").strip().strip("\n").replace("\n", "")
    tries: tuple[tuple[Callable[[str], Any], str], ...] = (
        (ast.literal_eval, fenced),
        (ast.literal_eval, whole),
        (safe_json.loads, whole),
        (safe_json.loads, whole.replace("`", "")),
    )
    for read, text in tries:
        try:
            return _rows(read(text.strip() if read is ast.literal_eval else text))
        except BadAnswer:
            raise
        # Of a text that anybody wrote Python's parser raises these; the last for deep brackets.
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    raise BadAnswer("no list of facts")


def _rows(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BadAnswer("no list of facts")
    for row in value:
        if not (isinstance(row, dict) and isinstance(row.get("fact"), str)):
            raise BadAnswer("a row without a fact")
    return value


def extracted(answer: str) -> list[dict[str, Any]]:
    """The facts of a caption, each with its relevance.

    Raises:
      BadAnswer: as `parsed`, or a fact has no relevance.
    """
    return _with(parsed(answer), "relevance")


def judged(answer: str, *, field: str, facts: Sequence[str]) -> list[tuple[str, Any]]:
    """(fact, value of `field`) of each row of an answer about `facts`.

    Raises:
      BadAnswer: as `parsed`, a row has no such field, or the rows are not of exactly these facts.
    """
    rows = _with(parsed(answer), field)
    if {row["fact"] for row in rows} != set(facts):
        raise BadAnswer("a list of other facts than those that were given")
    return [(row["fact"], _value(row[field])) for row in rows]


def _with(rows: list[dict[str, Any]], field: str) -> list[dict[str, Any]]:
    if any(field not in row for row in rows):
        raise BadAnswer(f"a fact without {field}")
    return rows


def _value(value: Any) -> Any:
    """What can be looked up; a list or an object names no oracle fact and verifies nothing."""
    return value if isinstance(value, int | float | str | None) else str(value)
