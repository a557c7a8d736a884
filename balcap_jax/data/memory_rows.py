"""Rows in memory: a list of dicts, a `datasets.Dataset`, or anything with a length and places."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.caption_files import NOT_COLUMNS
from balcap_jax.data.images import ImageLike
from balcap_jax.data.photos import CHECKED
from balcap_jax.data.rows import Row
from balcap_jax.errors import UserError

_CAPTIONS = ("caption", "captions", "reference", "references")
_IMAGES = ("image", "images")


class MemoryRows(Sequence[Row]):
    """The rows of a data set in memory, each checked when it is asked for.

    A row is a mapping with `image` (a PIL image, a uint8 array, a path, the bytes of a file, or
    what `datasets` makes of one; or `images`, a list of one), any of `caption`, `reference` (a
    text) and `captions`, `references` (lists of texts), `prompt` (a text or messages in chat form),
    `id`, `boxes`, `units`; anything else is a column for reward functions.
    """

    def __init__(self, data: Any, *, name: str):
        """
        Args:
          name: what messages call the data.

        Raises:
          UserError: it has no length or places, is empty, one of its first rows is none, or two of
            these have one id.
        """
        if isinstance(data, Mapping) or not (
            hasattr(data, "__len__") and hasattr(data, "__getitem__")
        ):
            raise UserError(
                f"{name} is a {type(data).__name__}, which must be a list of rows, a data set with "
                "__len__ and __getitem__, or the path of a data file; give one of them."
            )
        if not len(data):
            raise UserError(f"{name} is empty; give at least one row.")
        self._data, self._name = data, name
        seen: set[str] = set()
        for index in range(min(len(self), CHECKED)):
            id_ = self[index].id
            if id_ in seen:
                raise UserError(f"{name} has the id {id_!r} twice; give each row its own id.")
            seen.add(id_)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Row `index`.

        Raises:
          UserError: it is not a row.
        """
        where = f"{self._name}, row {index}"
        values = self._data[index]
        if not isinstance(values, Mapping):
            raise UserError(
                f"{where} is a {type(values).__name__}, which must be a dict with an image; make "
                "it one."
            )
        given = values.get("prompt")
        prompt, messages = (PROMPT, ()) if given is None else rows.prompt(given, where=where)
        captions = _captions(values, where=where)
        boxes, units = values.get("boxes"), values.get("units")
        id_ = values.get("id")
        return Row(
            id=f"row-{index:06d}" if id_ is None else str(id_),
            image=_image(values, where=where),
            prompt=prompt,
            reference=rows.longest(captions) if captions else "",
            references=captions if len(captions) > 1 else (),
            boxes=rows.boxes(list(boxes), where=where) if boxes else (),
            units=rows.texts(list(units), name="units", where=where) if units else (),
            messages=messages,
            columns={
                name: value
                for name, value in values.items()
                if name not in (*NOT_COLUMNS, "images") and isinstance(name, str)
            },
        )


def _captions(values: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    """All captions of a row, each text once; none is fine where no judge needs them."""
    found: list[str] = []
    for name in _CAPTIONS:
        value = values.get(name)
        if isinstance(value, str):
            found.append(rows.text(value, name=name, where=where))
        elif value is not None:
            listed = value.tolist() if isinstance(value, np.ndarray) else value
            listed = list(listed) if isinstance(listed, tuple) else listed
            found += rows.texts(listed, name=name, where=where)
    return tuple(dict.fromkeys(found))


def _image(values: Mapping[str, Any], *, where: str) -> ImageLike:
    given = [values[name] for name in _IMAGES if values.get(name) is not None]
    image = given[0] if given else None
    if isinstance(image, list | tuple):
        if len(image) != 1:
            raise UserError(
                f"{where} has {len(image)} images, and a caption is of one; give a row per image."
            )
        image = image[0]
    if isinstance(image, Mapping):  # as `datasets` keeps an image that it shall not decode
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        image = Path(image)
    if not isinstance(image, Path | bytes | Image.Image | np.ndarray):
        raise UserError(
            f'{where} has a {type(image).__name__} as "image", which must be a PIL image, a uint8 '
            "array, a path or the bytes of an image file; give one of them."
        )
    return image
