"""The rows that ClaimDiff-RL trains on (ltl3A87/ClaimDiff-RL): a parquet file with the columns

    images        '["/photos/1.jpg"]'
    prompt        '[{"role": "user", "content": "<image> Please describe this image."}]'
    reward_model  '{"ground_truth": "the reference caption", "verifier": "gemini_caption_diff"}'
    extra_info    '{"id": "1"}'

each of them JSON in a text. The prompt is used without its image tag.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.conversations import TAG
from balcap_jax.data.json_text import read_json
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.errors import UserError

_COLUMNS = ("images", "prompt", "reward_model", "extra_info")


class ClaimDiffRows(Sequence[Row]):
    """The rows of such a file; its texts are in memory, the images are opened when their turn
    comes.

    Attributes:
      images: the folder that relative paths of images start from.
    """

    def __init__(self, path: Path, *, images: Path | None = None):
        """
        Raises:
          UserError: the file cannot be read, lacks a column, is empty, or has an id twice.
        """
        self.path = path
        self.images = path.parent if images is None else images
        self._rows = _read(path)
        lines: dict[str, int] = {}
        for number in range(1, len(self._rows) + 1):
            try:
                id_ = self._id(number, self._where(number))
            except BadRowError:
                continue  # told with its row
            if (first := lines.setdefault(id_, number)) != number:
                raise UserError(
                    f"The data file {path} has the id {id_!r} twice, in the rows {first} and "
                    f"{number}; give each row its own id."
                )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Row `index`.

        Raises:
          BadRowError: it is not a row.
        """
        number, where = index + 1, self._where(index + 1)
        values = self._rows[index]
        images = _value(values, "images", list, where=where)
        if len(images) != 1:
            raise BadRowError(
                where, f"has {len(images)} images, and a caption is of one; remove the row."
            )
        reference = _value(values, "reward_model", dict, where=where).get("ground_truth")
        given = _value(values, "prompt", list, where=where)
        asked, _ = rows.prompt(_without_tags(given), where=where) if given else (PROMPT, ())
        return Row(
            id=self._id(number, where),
            image=self.images / rows.text(images[0], name="images", where=where),
            prompt=asked,
            reference=rows.text(reference, name="ground_truth", where=where),
        )

    def _where(self, number: int) -> str:
        return f"{self.path}, row {number}"

    def _id(self, number: int, where: str) -> str:
        extra = _value(self._rows[number - 1], "extra_info", dict, where=where)
        id_ = rows.identity(extra.get("id"), where=where)
        return id_ or f"{self.path.stem}-{number:06d}"


def _read(path: Path) -> list[dict[str, Any]]:
    import pyarrow  # noqa: PLC0415  tensorflow-datasets brings it
    from pyarrow import parquet  # noqa: PLC0415

    try:
        found = parquet.read_table(path, columns=list(_COLUMNS)).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read as parquet with the columns {', '.join(_COLUMNS)} "
            f"({str(error).splitlines()[0]}); give a file of ClaimDiff-RL, or a .jsonl file."
        ) from None
    if not found or not all(name in found[0] for name in _COLUMNS):
        raise UserError(
            f"{path} has no rows with the columns {', '.join(_COLUMNS)} of ClaimDiff-RL; give such "
            "a file, or a .jsonl file."
        )
    return found


def _value(values: Mapping[str, Any], name: str, kind: type, *, where: str) -> Any:
    """A column, which is JSON in a text or the value itself."""
    value = rows.listed(values.get(name))
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError:
            value = None
    if not isinstance(value, kind):
        what = "a list" if kind is list else "an object"
        raise BadRowError(
            where, f'has a "{name}" that is no JSON of {what}; fix it or remove the row.'
        )
    return value


def _without_tags(messages: Sequence[Any]) -> list[Any]:
    """Messages in whose texts nothing stands for the image: it comes first anyway."""
    return [
        {**message, "content": message["content"].replace(TAG, "").strip()}
        if isinstance(message, Mapping) and isinstance(message.get("content"), str)
        else message
        for message in messages
    ]
