"""What TRL and verl pass to reward functions, in the forms in which it comes.

What is in no known form is refused: a mistake in the columns must not look like a bad caption.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.runs import safe_json

# Columns of references, the first that a row has counts.
REFERENCES = ("references", "captions", "reference", "caption")
# Where a ground truth of verl has them.
_TRUTHS = ("target", "targets", *REFERENCES, "ground_truth", "answer", "answers", "solution")


class Row(NamedTuple):
    """A completion with what is known of its photo.

    Attributes:
      caption: None for a turn that says nothing.
      references: none where the row has none.
      labels: of known objects.
    """

    caption: str | None
    references: tuple[str, ...]
    labels: tuple[str, ...]


def rows_of(completions: Any, columns: Mapping[str, Any]) -> list[Row]:
    """The arguments of a call in TRL's way, an entry per completion.

    Raises:
      UserError: the completions or one of the columns that are read are in no known form.
    """
    completions = listed(completions, "completions")
    count = len(completions)
    given = {name: column_of(columns.get(name), name, count) for name in (*REFERENCES, "boxes")}
    rows = []
    for i, completion in enumerate(completions):
        found = (
            texts_of(given[name][i], where=f'row {i} of the column "{name}"') for name in REFERENCES
        )
        references = next((texts for texts in found if texts), ())
        labels = labels_of(given["boxes"][i], where=f'row {i} of the column "boxes"')
        rows.append(Row(text_of(completion, where=f"completion {i}"), references, labels))
    return rows


def listed(values: Any, name: str) -> Sequence:
    """An argument of one entry per completion.

    Raises:
      UserError: it is a single text, or nothing that has places.
    """
    values = plain(values)
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__getitem__"):
        raise UserError(
            f"{name} is {shown(values)}, which must be a list with an entry for each completion; "
            "give it so."
        )
    return values


def column_of(value: Any, name: str, count: int) -> Sequence:
    """A column as one entry per completion; None for each where there is no such column."""
    if value is None:
        return [None] * count
    value = plain(value)
    if isinstance(value, str | Mapping) or not hasattr(value, "__len__") or len(value) != count:
        raise UserError(
            f'the column "{name}" is {shown(value)}, which must be a list with one entry for each '
            f"of the {count} completions; give it so."
        )
    return value


def text_of(completion: Any, *, where: str) -> str | None:
    """A completion as text: TRL gives chat messages for chat prompts. None for a turn that says
    nothing, because it only calls a tool.

    Raises:
      UserError: it is neither.
    """
    value = plain(completion)
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        content = value[-1].get("content")
        if isinstance(content, str):
            return content
        if content is None and ("role" in value[-1] or "content" in value[-1]):
            return None
        if isinstance(content, list) and all(map(_is_part, content)):
            return "".join(part["text"] for part in content if part.get("type") == "text")
    raise UserError(
        f"{where} is {shown(value)}, which must be a text or a list of messages like "
        '{"role": "assistant", "content": "A dog."}; give it so.'
    )


def _is_part(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        return False
    return value["type"] != "text" or isinstance(value.get("text"), str)


def truth_of(value: Any) -> Any:
    """The references of a ground truth of verl, out of the dictionary that may hold them.

    Raises:
      UserError: a dictionary has them under no known name.
    """
    value = decoded(plain(value))
    if not isinstance(value, Mapping):
        return value
    for name in _TRUTHS:
        if not _is_missing(value.get(name)):
            return decoded(value[name])
    if value.keys() & set(_TRUTHS):
        return None
    raise UserError(
        f"ground_truth is {shown(value)}, a dictionary without references; put them under "
        '"target", as a text or a list of texts.'
    )


def decoded(value: Any) -> Any:
    """What stands in a JSON text, as data sets in Parquet keep dictionaries and lists: no caption
    is one.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        with suppress(ValueError):
            return safe_json.loads(value)
    return value


def texts_of(value: Any, *, where: str) -> tuple[str, ...]:
    """References from a text, a list or an array of texts; none for None, NaN and blank ones.

    Raises:
      UserError: it is in none of these forms.
    """
    value = plain(decoded(value))
    if _is_missing(value):
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(
        isinstance(text, str) or _is_missing(text) for text in texts
    ):
        raise UserError(
            f"{where} is {shown(value)}, which must be a text or a list of texts; give the "
            "references so."
        )
    return tuple(text for text in texts if isinstance(text, str) and text.strip())


def labels_of(value: Any, *, where: str) -> tuple[str, ...]:
    """Labels from a list of boxes; none for None.

    Raises:
      UserError: a box is in no known form.
    """
    value = plain(decoded(value))
    if _is_missing(value):
        return ()
    if isinstance(value, Mapping) and isinstance(plain(value.get("label")), list):
        value = plain(value["label"])  # a list of objects, as `datasets` keeps it
    labels = [_label(box) for box in value] if isinstance(value, list) else [None]
    if not all(isinstance(label, str) and label.strip() for label in labels):
        raise UserError(
            f'{where} is {shown(value)}, which must be a list of labels, of {{"label": ...}} or '
            "of [label, left, top, right, bottom]; give the boxes so."
        )
    return tuple(labels)


def _label(box: Any) -> Any:
    box = plain(box)
    if isinstance(box, Mapping):
        return box.get("label")
    return box[0] if isinstance(box, list) and box else box


def plain(value: Any) -> Any:
    """Arrays and columns of tables, also those of one text, and tuples as lists and texts."""
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "iloc"):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
