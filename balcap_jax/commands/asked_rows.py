"""What commands share that ask a model about every row of a data file, in chunks, resumably."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, BinaryIO, TypeVar

from balcap_jax.config.sections import DataConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.images import ImageLike
from balcap_jax.data.photos import Photos
from balcap_jax.data.rows import CAPTIONS, BadRowError, Row
from balcap_jax.data.sources import open_rows
from balcap_jax.errors import UserError
from balcap_jax.runs.folder import disk_errors, read_jsonl
from balcap_jax.runs.progress import training_progress
from balcap_jax.storage.paths import is_remote

T = TypeVar("T")

# Fields of a row that are written from what was read of it.
_OWN = ("image", "prompt", "id", "boxes", "units")
_CHUNKS = 4  # calls in a chunk, times the calls under way at once: few wait at its end


def opened(path: Path, *, max_bad_images: int) -> Photos:
    """The rows of a data file with their images.

    Raises:
      UserError: the data cannot be read.
    """
    rows = open_rows(DataConfig(path=str(path)), path, split="train")
    return Photos(rows, name=str(path), max_bad_images=max_bad_images)


def good_rows(source: Photos) -> Iterator[tuple[int, Row]]:
    """(index, row) of all rows; those that are none are counted when they are asked for."""
    for index in range(len(source)):
        with suppress(BadRowError):
            yield index, source.row(index)


def values_of(
    row: Row, *, caption: str, folder: Path, without: Sequence[str] = ()
) -> dict[str, Any]:
    """A row of data as a row of a .jsonl file in `folder`.

    Args:
      caption: in place of its reference.
      without: names of further columns that are left out.

    Raises:
      UserError: the image is in no file of its own.
    """
    others = [text for text in row.references if text != row.reference]
    boxes = [{"label": label, "box": sides} for label, *sides in row.boxes]
    left_out = {*CAPTIONS, *_OWN, *without}
    return {
        "image": _path_from(row.image, folder=folder),
        "caption": caption,
        "id": row.id,
        "prompt": list(row.messages) or row.prompt,
        **({"references": others} if others else {}),
        **({"boxes": boxes} if boxes else {}),
        **({"units": row.units} if row.units else {}),
        **{name: value for name, value in row.columns.items() if name not in left_out},
    }


def _path_from(image: ImageLike, *, folder: Path) -> str:
    """The path of an image as a row in `folder` names it; links stay links.

    Raises:
      UserError: the image is in no file of its own.
    """
    if not isinstance(image, str | PurePath):
        raise UserError(
            "The images of these data are in no files of their own, and the rows of a .jsonl file "
            "name files; write them to a folder with a .jsonl file first."
        )
    if is_remote(image):
        return str(image)
    path, start = Path(os.path.abspath(image)), Path(os.path.abspath(folder))
    return str(path.relative_to(start) if path.is_relative_to(start) else path)


def ask_all(
    source: Photos,
    missing: Sequence[int],
    ask: Callable[[Sequence[Example]], Sequence[T | None]],
    add: Callable[[Example, T], None],
    *,
    at_once: int,
) -> int:
    """Asks for the missing examples chunk by chunk and adds what comes; how many did not.

    Examples whose image or row is bad are left out, and counted by `source`.

    Args:
      missing: places of the examples in `source`.
      ask: many at once; None for what has no answer.
      at_once: calls that may be under way.
    """
    lost = seen = 0
    with training_progress("images", len(missing)) as advance:
        for part in _chunks(missing, _CHUNKS * at_once):
            examples = [example for i in part if (example := source.exactly(i)) is not None]
            for example, answer in zip(examples, ask(examples), strict=True):
                if answer is None:
                    lost += 1
                else:
                    add(example, answer)
            seen += len(part)
            advance(seen, f"{lost} without an answer" if lost else "")
            if lost == seen:  # nobody is there
                return len(missing)
    return lost


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def complain(lost: int, count: int, *, what: str, reasons: str) -> None:
    """Raises a UserError where some of `count` images have no answer."""
    if lost:
        raise UserError(
            f"{lost} of {count} images have no {what} ({reasons}); what was made is kept: fix "
            "the judge.* settings or the server, and run the same command again."
        )


def cut_torn(file: BinaryIO, path: Path) -> None:
    """Cuts off what stands behind the last whole line of a file that is appended to.

    Raises:
      UserError: the disk refuses it.
    """
    file.seek(0)
    end = 0
    while (line := file.readline()).endswith(b"\n"):
        end += len(line)
    with disk_errors(path):
        file.truncate(end)


def whole_rows(
    path: Path, file: BinaryIO, *, what: str, needs: str, keep: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Some fields of the rows of an earlier start by their ids; a torn last row is cut off.

    Args:
      file: of `path`, open for appending.
      what: the file is of, for messages.
      needs: a field that every row of such a file has.
      keep: the fields.

    Raises:
      UserError: it is no such file, or has an id twice.
    """
    lines: dict[str, int] = {}
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or needs not in row:
            raise UserError(f"{path} is not a file of {what}; give another OUT.")
        if (first := lines.setdefault(row["id"], number)) != number:
            raise UserError(
                f"{path} has the id {row['id']!r} twice, in the lines {first} and {number}; remove "
                "one of them or give another OUT."
            )
        found[row["id"]] = {name: row[name] for name in keep if name in row}
    cut_torn(file, path)
    return found
