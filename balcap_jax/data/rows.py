"""A row of a data file, and the checks that all kinds of files share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from balcap_jax.data.examples import Box
from balcap_jax.errors import UserError

if TYPE_CHECKING:
    from balcap_jax.scenes.world import Scene


class Row(NamedTuple):
    """What a file says about one image, checked; see `Example`.

    Attributes:
      image: path of the image, or the bytes of its file.
    """

    id: str
    image: Path | bytes
    prompt: str
    reference: str
    scene: "Scene | None" = None
    references: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    units: tuple[str, ...] = ()


def longest(captions: Sequence[str]) -> str:
    """The caption of most words, the first of these: the one that tells most of the image."""
    return max(captions, key=lambda caption: len(caption.split()))


def text(value: Any, *, name: str, where: str) -> str:
    """`value` if it is a text that is not empty.

    Raises:
      UserError: it is not.
    """
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f'{where} has "{name}": {shown(value)}, which must be a text that is not empty; fix '
            "it or remove the row."
        )
    return value


def texts(value: Any, *, name: str, where: str) -> tuple[str, ...]:
    """`value` as a tuple if it is a list of texts, none of them empty.

    Raises:
      UserError: it is not.
    """
    if not isinstance(value, list) or not value:
        raise UserError(
            f'{where} has "{name}": {shown(value)}, which must be a list of texts; fix it or '
            "remove the row."
        )
    return tuple(text(item, name=name, where=where) for item in value)


def boxes(value: Any, *, where: str) -> tuple[Box, ...]:
    """Boxes from a list of `{"label": "dog", "box": [left, top, right, bottom]}`.

    Raises:
      UserError: an entry is not like that, or not from 0 to 1 with left < right and top < bottom.
    """
    if not isinstance(value, list):
        value = [value]
    found = []
    for item in value:
        try:
            left, top, right, bottom = (float(side) for side in item["box"])
            label = item["label"]
            ok = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            ok &= isinstance(label, str) and bool(label.strip())
        except (KeyError, TypeError, ValueError):
            ok = False
        if not ok:
            raise UserError(
                f'{where} has the box {shown(item)}, which must be like {{"label": "dog", "box": '
                "[left, top, right, bottom]} in shares of width and height from 0 to 1; fix or "
                "remove it."
            )
        found.append(Box(label, left, top, right, bottom))
    return tuple(found)


def shown(value: Any) -> str:
    """The beginning of `value` as JSON, for messages."""
    return json.dumps(value, ensure_ascii=False, default=str)[:80]
