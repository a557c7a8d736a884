"""A row of a data file, and the checks that all kinds of files share."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from balcap_jax.data.examples import NO_COLUMNS, Box
from balcap_jax.data.images import ImageLike
from balcap_jax.errors import UserError

if TYPE_CHECKING:
    from balcap_jax.scenes.world import Scene


class Row(NamedTuple):
    """What a file says about one image, checked; see `Example`.

    Attributes:
      image: path of the image, the bytes of its file, or the image itself.
    """

    id: str
    image: ImageLike
    prompt: str
    reference: str
    scene: "Scene | None" = None
    references: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()
    units: tuple[str, ...] = ()
    messages: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = NO_COLUMNS


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


def prompt(value: Any, *, where: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
    """(text, messages) of a prompt that is a text, or messages in chat form; no messages for a
    text.

    Raises:
      UserError: it is neither, or no message has a text.
    """
    if isinstance(value, str):
        return text(value, name="prompt", where=where), ()
    if not isinstance(value, list | tuple) or not value or not all(map(_is_message, value)):
        raise UserError(
            f'{where} has "prompt": {shown(value)}, which must be a text or a list of messages '
            'like {"role": "user", "content": "Describe the image."}; fix it or remove the row.'
        )
    if value[-1]["role"] != "user" or not text_of(value[-1]["content"]).strip():
        raise UserError(
            f'{where} has "prompt": {shown(value)}, whose last message must be of the user and '
            "have a text; fix it or remove the row."
        )
    return text_of(value[-1]["content"]), tuple(value)


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    return isinstance(content, str) or (
        isinstance(content, list | tuple)
        and all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
    )


def text_of(content: Any) -> str:
    """The text of a message's content: a text, or parts of which some are texts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")


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
