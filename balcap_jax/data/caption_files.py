"""Images with reference captions from a JSONL file, one JSON object per line:

    {"image": "photos/1.jpg", "caption": "A red car ..."}

See docs/data.md for what else a row may hold.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balcap_jax.data import rows
from balcap_jax.data.conversations import Conversation, check_shown, row_of, talk_of
from balcap_jax.data.images import BadImageError, open_image
from balcap_jax.data.json_text import read_json
from balcap_jax.data.line_ids import LineIds
from balcap_jax.data.photos import Photos
from balcap_jax.data.row_index import RowTexts, head, index_lines
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.errors import UserError

__all__ = ["BadImageError", "CaptionFile", "CaptionRows", "open_image"]


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

    def __init__(self, path: Path, *, images: Path | None = None, conversations: bool = False):
        """Finds the lines, whose ids must differ.

        Args:
          conversations: rows may be `messages` with answers, see `MemoryRows`.

        Raises:
          UserError: the file cannot be read, is empty, or has an id twice.
        """
        self.path, self._conversations = path, conversations
        self.images = path.parent if images is None else images
        # A file of another kind may be one line of gigabytes: told before it is searched.
        if head(path)[:1] == b"[":
            raise UserError(
                f"{path} is a JSON array, where one JSON object per line is expected; give it with "
                "--data.format llava or write a .jsonl file."
            )
        ids = LineIds(path.stem)
        self._texts = RowTexts(path, index_lines(path, each=ids.read))
        if not len(self._texts):
            raise UserError(
                f'The data file {path} holds no rows; write one {{"image": ..., "caption": ...}} '
                "per line."
            )
        twice = ids.twice(self._texts)
        if twice is not None:
            id_, first, second = twice
            raise UserError(
                f"The data file {path} has the id {id_!r} twice, in the lines {first} "
                f"and {second}; give each row its own id."
            )

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Row `index`.

        Raises:
          BadRowError: the line is not a row.
        """
        number = int(self._texts.index.numbers[index])
        where = f"{self.path}, line {number}"
        values = json_object(self._texts.raw(index), where=where)
        id_ = f"{self.path.stem}-{number:06d}"
        talk = talk_of(values, where=where) if self._conversations else None
        if talk is not None:
            return _conversation(talk, values, where=where, images=self.images, id_=id_)
        if self._conversations and not rows.missing(values.get("questions")):
            return _questions(values, where=where, images=self.images, id_=id_)
        return _row(values, where=where, images=self.images, id_=id_)


def json_object(line: bytes, *, where: str) -> dict[str, Any]:
    """The object on a line of a file.

    Raises:
      BadRowError: it is none, or has a key twice.
    """
    try:
        values = read_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRowError(
            where,
            f"is not UTF-8 text ({error.reason} at byte {error.start} of the line); write the file "
            "in UTF-8.",
        ) from error
    except ValueError as error:
        raise BadRowError(
            where, f"is not JSON ({error}); write one JSON object per line."
        ) from error
    if not isinstance(values, dict):
        raise BadRowError(where, "is not a JSON object; write {...} with its fields.")
    return values


def _conversation(
    talk: Conversation, values: dict[str, Any], *, where: str, images: Path, id_: str
) -> Row:
    given = values.get("images", values.get("image"))
    given = given if isinstance(given, list) else [] if rows.missing(given) else [given]
    check_shown(talk, len(given), where=where)
    return row_of(
        talk,
        id_=rows.identity(values.get("id"), where=where) or id_,
        images=[
            rows.image_path(images, rows.text(image, name="images", where=where)) for image in given
        ],
    )


def _questions(values: dict[str, Any], *, where: str, images: Path, id_: str) -> Row:
    return rows.question_row(
        values,
        id_=rows.identity(values.get("id"), where=where) or id_,
        image=rows.image_path(images, rows.text(values.get("image"), name="image", where=where)),
        where=where,
    )


def _row(values: dict[str, Any], *, where: str, images: Path, id_: str) -> Row:
    if "conversations" in values and not values.keys() & set(rows.CAPTIONS):
        raise BadRowError(
            where,
            'has "conversations" in place of a caption; give a file of such rows, one per line or '
            "as an array, with --data.format llava.",
        )
    captions = rows.captions(values, names=rows.CAPTIONS, where=where)
    if not captions:
        raise BadRowError(
            where,
            'has no "caption" and no "captions", of which every row must have one; add it or '
            "remove the line.",
        )
    if "image" not in values:
        raise BadRowError(
            where, 'has no "image", which every row must have; add it or remove the line.'
        )
    image = rows.text(values["image"], name="image", where=where)
    row = rows.caption_row(
        values, captions, id_=id_, image=rows.image_path(images, image), where=where
    )
    return row._replace(scene=rows.scene(values.get("scene"), where=where))
