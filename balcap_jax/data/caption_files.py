"""Images with reference captions from a JSONL file, one JSON object per line:

    {"image": "photos/1.jpg", "caption": "A red car ..."}

See docs/data.md for what else a row may hold.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.images import BadImageError, open_image
from balcap_jax.data.photos import CHECKED, Photos
from balcap_jax.data.row_index import RowTexts, head, index_lines
from balcap_jax.data.rows import Row
from balcap_jax.errors import UserError

__all__ = ["BadImageError", "CaptionFile", "CaptionRows", "open_image"]


# What reward functions get in another form: the image itself, and prompts.
NOT_COLUMNS = ("image", "prompt")


class CaptionFile(Photos):
    """The examples of a JSONL file in its order; see `Photos` for bad images."""

    def __init__(self, path: str | Path, *, max_bad_images: int = 0):
        super().__init__(CaptionRows(Path(path)), name=str(path), max_bad_images=max_bad_images)


class CaptionRows(Sequence[Row]):
    """The rows of a JSONL file, each parsed when it is asked for; blank lines are passed over.

    Attributes:
      path: the file.
      images: the folder that relative paths of images start from.
    """

    def __init__(self, path: Path, *, images: Path | None = None):
        """Finds the lines, and checks the first `CHECKED` of them, whose ids must differ.

        Raises:
          UserError: the file cannot be read, is empty, has an id twice, or a line is not a row.
        """
        self.path = path
        self.images = path.parent if images is None else images
        # A file of another kind may be one line of gigabytes: told before it is searched.
        if head(path)[:1] == b"[":
            raise UserError(
                f"{path} is a JSON array, where one JSON object per line is expected; give it with "
                "--data.format llava or write a .jsonl file."
            )
        self._texts = RowTexts(path, index_lines(path))
        if not len(self._texts):
            raise UserError(
                f'The data file {path} holds no rows; write one {{"image": ..., "caption": ...}} '
                "per line."
            )
        seen: set[str] = set()
        for index in range(min(len(self), CHECKED)):
            row = self[index]
            if row.id in seen:
                raise UserError(
                    f"The data file {path} has the id {row.id!r} twice; give each row its own id."
                )
            seen.add(row.id)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Row `index`.

        Raises:
          UserError: the line is not a row.
        """
        number = int(self._texts.index.numbers[index])
        where = f"{self.path}, line {number}"
        values = _object(self._texts[index], where=where)
        return _row(values, where=where, images=self.images, id_=f"{self.path.stem}-{number:06d}")


def _object(line: str, *, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is not JSON ({error}); write one JSON object per line."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a JSON object; write {{...}} with its fields.")
    return values


def _row(values: dict[str, Any], *, where: str, images: Path, id_: str) -> Row:
    captions = _captions(values, where=where)
    if "image" not in values:
        raise UserError(
            f'{where} has no "image", which every row must have; add it or remove the line.'
        )
    image = rows.text(values["image"], name="image", where=where)
    given = values.get("prompt")
    prompt, messages = (PROMPT, ()) if given is None else rows.prompt(given, where=where)
    given = values.get("id")
    if not isinstance(given, str | int | None):
        raise UserError(f'{where} has "id": {rows.shown(given)}; give a text or a number.')
    boxes, units = values.get("boxes"), values.get("units")
    return Row(
        id=id_ if given is None else str(given),
        image=images / image,
        prompt=prompt,
        reference=values.get("caption") or rows.longest(captions),
        scene=_scene(values.get("scene"), where=where),
        references=captions if len(captions) > 1 else (),
        boxes=rows.boxes(boxes, where=where) if boxes else (),
        units=rows.texts(units, name="units", where=where) if units else (),
        messages=messages,
        columns={name: value for name, value in values.items() if name not in NOT_COLUMNS},
    )


def _captions(values: dict[str, Any], *, where: str) -> tuple[str, ...]:
    """All captions of a row: "caption" first, then "captions" and "references", each text once."""
    found: list[str] = []
    if values.get("caption") is not None:
        found.append(rows.text(values["caption"], name="caption", where=where))
    for name in ("captions", "references"):
        if values.get(name) is not None:
            found += rows.texts(values[name], name=name, where=where)
    if not found:
        raise UserError(
            f'{where} has no "caption" and no "captions", of which every row must have one; add '
            "it or remove the line."
        )
    return tuple(dict.fromkeys(found))


def _scene(value: Any, *, where: str) -> Any:
    if value is None:
        return None
    from balcap_jax.scenes.world import Scene

    try:
        return Scene.from_json(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
