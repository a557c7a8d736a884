"""`balcap data check`: what a data file holds, and what is wrong with it."""

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePath
from typing import NamedTuple

from PIL import Image
from rich import box
from rich.table import Table

from balcap_jax.commands.data_facts import (
    Checked,
    Seen,
    answers_of,
    caption_facts,
    conversation_facts,
)
from balcap_jax.config.judge import CheckConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.images import BadImageError, ImageLike, Part, Pixels, image_key, open_image
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.data.sources import detect, open_rows
from balcap_jax.data.tar_files import is_tars
from balcap_jax.errors import UserError
from balcap_jax.runs.progress import training_progress
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import as_path, is_remote

_LONG = 256  # words of a caption from which on it is told; policies are seldom given more tokens
_SHOWN = 3  # examples of a problem
_SMALL = 64 * 64  # pixels that an image is decoded to, to see whether it can be


class Problem(NamedTuple):
    """One thing that is wrong, how often, and the first places."""

    what: str
    count: int
    examples: tuple[str, ...]


class Found(NamedTuple):
    """What a check has found.

    Attributes:
      facts: what the data hold, by name.
      problems: what is wrong with them, nothing for good data.
    """

    facts: dict[str, str]
    problems: list[Problem]


def check_data(config: CheckConfig) -> Found:
    """Reads every row and every image of the data, and of the held-out data where they are named.

    Raises:
      UserError: the data cannot be opened at all.
    """
    data = replace(config.data, path=config.file)
    problems = _Problems()
    facts: dict[str, str] = {}
    supervised = config.task == "sft"
    read = partial(_read, data, problems=problems, conversations=supervised)
    train = read(config.file, split=data.split)
    kind = data.format
    if kind == "auto":
        kind = "webdataset" if is_tars(config.file) else detect(fetched(config.file))
    facts |= (conversation_facts if supervised else caption_facts)(train, kind=kind)
    (_compare_answers if supervised else _compare)(train, problems)
    _find_copies(train, problems)
    if data.heldout_path or data.heldout_split:
        path = data.heldout_path or config.file
        heldout = read(path, split=data.heldout_split or data.split, held_out=True)
        facts["held out"] = f"{len(heldout)} rows"
        _find_leaks(train, heldout, problems)
    return Found(facts, problems.listed())


def table(found: Found) -> Table:
    """The facts and the problems for people."""
    rendered = Table(box=box.SIMPLE, show_header=False)
    rendered.add_column(no_wrap=True)
    rendered.add_column(overflow="fold")
    for name, value in found.facts.items():
        rendered.add_row(name, value)
    rendered.add_section()
    for problem in found.problems:
        more = ", ..." if problem.count > len(problem.examples) else ""
        rendered.add_row(f"{problem.count} {problem.what}", f"{', '.join(problem.examples)}{more}")
    if not found.problems:
        rendered.add_row("nothing is wrong", "")
    return rendered


class _Problems:
    """Problems by what they are, in the order in which they were met."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, what: str, example: str, *, count: int = 1) -> None:
        self._counts[what] += count
        if len(self._examples[what]) < _SHOWN:
            self._examples[what].append(example)

    def listed(self) -> list[Problem]:
        return [
            Problem(what, count, tuple(self._examples[what]))
            for what, count in self._counts.items()
        ]


def _read(
    data: DataConfig,
    path: str,
    *,
    split: str,
    problems: _Problems,
    conversations: bool,
    held_out: bool = False,
) -> list[Checked]:
    try:
        rows = open_rows(data, as_path(path), split=split, conversations=conversations)
    except UserError as error:
        if " twice" not in str(error) and " two " not in str(error):
            raise
        problems.add("ids or names that come twice", str(error))
        return []
    where = "held-out " if held_out else ""
    for reason, count in getattr(rows, "skipped", {}).items():
        problems.add(f"{where}rows or entries that are of no use", f"{count} {reason}", count=count)
    good = list(_good_rows(rows, problems, where=where))
    return list(_checked(good, problems, pixels=data.max_file_pixels, where=where))


def _good_rows(rows: Sequence[Row], problems: _Problems, *, where: str) -> Iterator[Row]:
    for place in range(len(rows)):
        try:
            yield rows[place]
        except BadRowError as error:
            problems.add(f"{where}rows that are none", str(error))
        except UserError as error:  # an id of data whose ids are only seen with their rows
            problems.add(f"{where}ids or names that come twice", str(error))


def _checked(
    rows: Sequence[Row], problems: _Problems, *, pixels: int, where: str
) -> Iterator[Checked]:
    with (
        training_progress("images", len(rows)) as advance,
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
    ):
        images = (image for row in rows for image in row.all_images)
        looked = pool.map(lambda image: (image, *_look(image, pixels=pixels)), images)
        for number, row in enumerate(rows, start=1):
            seen = []
            for image, size, format_, reason in islice(looked, len(row.all_images)):
                if reason is not None:
                    problems.add(f"{where}images that are bad: {reason}", _name(image, row))
                key = f"bad {number}" if reason else image_key(image)
                seen.append(Seen(image, key, size, format_))
            yield Checked(row, tuple(seen))
            advance(number, "")


def _look(image: ImageLike, *, pixels: int) -> tuple[tuple[int, int] | None, str, str | None]:
    """(size as stored, format, why it is bad)."""
    try:
        open_image(image, pixels=Pixels(most=_SMALL, in_file=pixels))
    except BadImageError as error:
        return None, "", str(error)
    if isinstance(image, Part):
        image = image.read()
    elif isinstance(image, str | PurePath) and is_remote(image):
        image = as_path(image).read_bytes()
    if isinstance(image, bytes | str | PurePath):
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.size, opened.format or "", None
    size = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    return tuple(size), "in memory", None  # type: ignore[return-value]


def _compare(checked: Sequence[Checked], problems: _Problems) -> None:
    """What is wrong with good rows for rewards, alone and beside one another."""
    rows_of: defaultdict[str, list[Row]] = defaultdict(list)
    for item in checked:
        rows_of[item.images[0].key].append(item.row)
        texts = item.row.all_references
        if not any(text.strip() for text in texts):
            problems.add("rows without a caption", item.row.id)
        longest = max(len(text.split()) for text in texts)
        if longest > _LONG:
            problems.add(f"captions above {_LONG} words", f"{item.row.id} ({longest} words)")
    for rows in rows_of.values():
        if len(rows) > 1:
            problems.add(
                "images in several rows", f"{_name(rows[0].image, rows[0])} in {_ids(rows)}"
            )


def _compare_answers(checked: Sequence[Checked], problems: _Problems) -> None:
    """The same for given answers, where an image may come with several conversations."""
    alike: defaultdict[tuple, list[Row]] = defaultdict(list)
    for item in checked:
        row = item.row
        if not all(answer.strip() for answer in answers_of(row)):
            problems.add("rows without an answer", row.id)
        # Messages hold dicts and lists; their text stands for them.
        said = (row.prompt, repr(row.messages), answers_of(row), row.turns)
        alike[(*(image.key for image in item.images), *said)].append(row)
    for rows in alike.values():
        if len(rows) > 1:
            problems.add("rows that come twice", _ids(rows), count=len(rows) - 1)


def _find_copies(checked: Sequence[Checked], problems: _Problems) -> None:
    for same in _same_content(_files(checked)):
        problems.add("images of the same content under several paths", " = ".join(same))


def _find_leaks(train: Sequence[Checked], heldout: Sequence[Checked], problems: _Problems) -> None:
    keys = {image.key for item in train for image in item.images}
    for item in heldout:
        for seen in item.images:
            if seen.key in keys:
                problems.add("held-out images that are trained on", _name(seen.image, item.row))
    files = _files(heldout) - keys
    for same in _same_content(files | _files(train)):
        if files & set(same) and not files >= set(same):
            problems.add("held-out images that are trained on", " = ".join(same))


def _files(checked: Iterable[Checked]) -> set[str]:
    """Paths of the images that are files and can be read."""
    return {
        seen.key
        for item in checked
        for seen in item.images
        if isinstance(seen.image, str | PurePath)
        and not is_remote(seen.image)  # all of them would be read once more
        and seen.size is not None
    }


def _same_content(paths: Iterable[str]) -> Iterator[list[str]]:
    """Paths of files of equal bytes; only files of one length are read."""
    by_length: defaultdict[int, list[str]] = defaultdict(list)
    for path in sorted(paths):
        by_length[Path(path).stat().st_size].append(path)
    for alike in by_length.values():
        if len(alike) < 2:
            continue
        by_digest: defaultdict[str, list[str]] = defaultdict(list)
        for path in alike:
            with Path(path).open("rb") as file:
                by_digest[hashlib.file_digest(file, "sha256").hexdigest()].append(path)
        yield from (same for same in by_digest.values() if len(same) > 1)


def _name(image: ImageLike, row: Row) -> str:
    return str(image) if isinstance(image, str | PurePath | Part) else f"the image of {row.id}"


def _ids(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return " ".join(row.id for row in rows[:_SHOWN]) + more
