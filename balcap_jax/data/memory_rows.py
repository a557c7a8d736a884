"""Rows in memory: a list of dicts, a `datasets.Dataset`, or anything with a length and places."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.conversations import Conversation, check_shown, row_of, talk_of
from balcap_jax.data.images import ImageLike
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.data.seen_ids import SeenIds
from balcap_jax.errors import UserError, described

_IMAGES = ("image", "images")


class MemoryRows(Sequence[Row]):
    """The rows of a data set in memory, each checked when it is asked for.

    A row is a mapping with `image` (a PIL image, a uint8 array, a path, the bytes of a file, or
    what `datasets` makes of one; or `images`, a list of one), any of `caption`, `reference` (a
    text) and `captions`, `references` (lists of texts), `prompt` (a text or messages in chat form),
    `id`, `boxes`, `units`, `scene`; anything else is a column for reward functions.
    """

    def __init__(self, data: Any, *, name: str, conversations: bool = False):
        """
        Args:
          conversations: rows may have `messages` with answers, LLaVA's `conversations`, TRL's
            `completion` or `questions` in place of captions, and show several `images`; for
            supervised training.
          name: what messages call the data.

        Raises:
          UserError: it has no length or places, is empty, or has an id twice, where all ids can be
            read without the images; otherwise the second row of an id is told when it is read.
        """
        # A table gives columns by their names, and a text its characters.
        other = isinstance(data, Mapping | str | bytes | bytearray) or hasattr(data, "iloc")
        if other or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise UserError(
                f"{name} is a {type(data).__name__}, which must be a list of rows, a data set with "
                f"__len__ and __getitem__, or the path of a data file; {_remedy(data)}."
            )
        if not len(data):
            raise UserError(f"{name} is empty; give at least one row.")
        self._data, self._name, self._conversations = data, name, conversations
        self._seen = SeenIds(name)
        for index, id_ in enumerate(_ids(data)):
            try:
                self._seen.check(_id(id_, index, where=name), index)
            except BadRowError:
                continue  # told with its row

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Row `index`.

        Raises:
          BadRowError: it is not a row.
          UserError: another row had its id.
        """
        where = f"{self._name}, row {index}"
        values = self._at(index, where=where)
        if not isinstance(values, Mapping):
            raise BadRowError(
                where,
                f"is a {type(values).__name__}, which must be a dict with an image; make it one.",
            )
        talk = talk_of(values, where=where) if self._conversations else None
        if talk is not None:
            return self._conversation(talk, values, index, where=where)
        if self._conversations and not rows.missing(values.get("questions")):
            return self._questions(values, index, where=where)
        given = values.get("prompt")
        prompt, messages = (PROMPT, ()) if rows.missing(given) else rows.prompt(given, where=where)
        lenient = _lenient(values)
        captions = rows.captions(lenient, names=rows.CAPTIONS, where=where)
        if self._conversations and not captions:
            raise BadRowError(
                where,
                'has no caption, "messages", "conversations" or "completion", so there is no '
                "answer to learn; add one or remove the row.",
            )
        id_ = _id(values.get("id"), index, where=where)
        self._seen.check(id_, index)
        return Row(
            id=id_,
            image=_image(values, where=where),
            prompt=prompt,
            reference=rows.reference_of(lenient, captions),
            scene=rows.scene(values.get("scene"), where=where),
            references=captions if len(captions) > 1 else (),
            boxes=rows.boxes(values.get("boxes"), where=where),
            units=rows.units(values.get("units"), where=where),
            messages=messages,
            columns={
                name: value
                for name, value in values.items()
                if name not in (*rows.NOT_COLUMNS, "images") and isinstance(name, str)
            },
        )

    def _at(self, index: int, *, where: str) -> Any:
        try:
            return self._data[index]
        except Exception as error:  # the user's code may raise anything
            raise BadRowError(
                where, f"cannot be read ({described(error)}); fix it or remove the row."
            ) from error

    def _questions(self, values: Mapping[str, Any], index: int, *, where: str) -> Row:
        id_ = _id(values.get("id"), index, where=where)
        self._seen.check(id_, index)
        image = _image(values, where=where)
        return rows.question_row(values, id_=id_, image=image, where=where)

    def _conversation(
        self, talk: Conversation, values: Mapping[str, Any], index: int, *, where: str
    ) -> Row:
        images = [image_of(image, where=where) for image in _images(values)]
        check_shown(talk, len(images), where=where)
        id_ = _id(values.get("id"), index, where=where)
        self._seen.check(id_, index)
        return row_of(talk, id_=id_, images=images)


def _remedy(data: Any) -> str:
    if hasattr(data, "iloc"):
        return 'give one of them, of a pandas table table.to_dict("records")'
    if isinstance(data, Mapping) and data and not rows.missing(next(iter(data))):
        return f"give one of its parts, such as data[{next(iter(data))!r}]"
    return (
        "give one of them" if isinstance(data, Mapping) else "give one of them, such as list(data)"
    )


def _ids(data: Any) -> Sequence[Any]:
    """All ids of the data where they can be read without the images; none elsewhere."""
    if isinstance(data, list | tuple):
        return [row.get("id") if isinstance(row, Mapping) else None for row in data]
    if "id" in (getattr(data, "column_names", None) or ()):  # `datasets`
        return data["id"]
    return ()


def _id(value: Any, index: int, *, where: str) -> str:
    return rows.identity(value, where=where) or f"row-{index:06d}"


def _lenient(values: Mapping[str, Any]) -> dict[str, Any]:
    """The captions of a row with a text for a list of one, and the other way round."""
    found: dict[str, Any] = {}
    for name in rows.CAPTIONS:
        value, plural = rows.listed(values.get(name)), f"{name.removesuffix('s')}s"
        if rows.missing(value):
            continue
        if name == plural and isinstance(value, str):
            value = [value]
        if isinstance(value, list) and isinstance(found.get(plural), list):
            value = [*found[plural], *value]
        found[plural if isinstance(value, list) or name == plural else name] = value
    return found


def _given(values: Mapping[str, Any]) -> Any:
    """What a row has as its image or images; None where it has none."""
    given = (values[name] for name in _IMAGES if not rows.missing(values.get(name)))
    return next(given, None)


def _images(values: Mapping[str, Any]) -> list[Any]:
    given = _given(values)
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _image(values: Mapping[str, Any], *, where: str) -> ImageLike:
    image = _given(values)
    if isinstance(image, list | tuple):
        if len(image) != 1:
            raise BadRowError(
                where, f"has {len(image)} images, and a caption is of one; give a row per image."
            )
        image = image[0]
    return image_of(image, where=where)


def image_of(image: Any, *, where: str) -> ImageLike:
    """What a row gives as an image, in the forms that can be opened.

    Raises:
      BadRowError: it is none of them.
    """
    if isinstance(image, Mapping):  # as `datasets` keeps an image that it shall not decode
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if isinstance(image, str):
        image = Path(rows.text(image, name="image", where=where))
    if not isinstance(image, Path | bytes | Image.Image | np.ndarray):
        raise BadRowError(
            where,
            f'has a {type(image).__name__} as "image", which must be a PIL image, a uint8 array, a '
            "path or the bytes of an image file; give one of them.",
        )
    return image
