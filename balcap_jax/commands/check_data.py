"""`balcap data check`: what a data file holds, and what is wrong with it."""

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich import box
from rich.table import Table

from balcap_jax.config.judge import CheckConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.images import BadImageError, ImageLike, Pixels, image_key, open_image
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.data.sources import detect, open_rows
from balcap_jax.errors import UserError
from balcap_jax.runs.progress import training_progress

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
    train = _read(data, config.file, split=data.split, problems=problems)
    facts |= _facts(train, kind=data.format if data.format != "auto" else detect(Path(config.file)))
    _compare(train, problems)
    if data.heldout_path or data.heldout_split:
        path = data.heldout_path or config.file
        heldout = _read(
            data, path, split=data.heldout_split or data.split, problems=problems, held_out=True
        )
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


class _Checked(NamedTuple):
    """A row with what was seen of its image.

    Attributes:
      key: equal for rows of the same image file or the same bytes.
      size: width and height in pixels as stored; None of an image that cannot be read.
    """

    row: Row
    key: str
    size: tuple[int, int] | None
    format: str


def _read(
    data: DataConfig, path: str, *, split: str, problems: _Problems, held_out: bool = False
) -> list[_Checked]:
    try:
        rows = open_rows(data, Path(path), split=split)
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
) -> Iterator[_Checked]:
    with (
        training_progress("images", len(rows)) as advance,
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
    ):
        images = (row.image for row in rows)
        seen = pool.map(lambda image: _look(image, pixels=pixels), images)
        for number, (row, (size, format_, reason)) in enumerate(
            zip(rows, seen, strict=True), start=1
        ):
            if reason is not None:
                problems.add(f"{where}images that are bad: {reason}", _name(row))
            yield _Checked(row, image_key(row.image), size, format_)
            advance(number, "")


def _look(image: ImageLike, *, pixels: int) -> tuple[tuple[int, int] | None, str, str | None]:
    """(size as stored, format, why it is bad)."""
    try:
        open_image(image, pixels=Pixels(most=_SMALL, in_file=pixels))
    except BadImageError as error:
        return None, "", str(error)
    if isinstance(image, bytes | str | Path):
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            return opened.size, opened.format or "", None
    size = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    return tuple(size), "in memory", None  # type: ignore[return-value]


def _facts(checked: Sequence[_Checked], *, kind: str) -> dict[str, str]:
    by_image: defaultdict[str, set[str]] = defaultdict(set)
    for item in checked:
        by_image[item.key].update(item.row.references or (item.row.reference,))
    counts = Counter(len(texts - {""}) for texts in by_image.values())
    words = sorted(
        len(text.split())
        for item in checked
        for text in (item.row.references or (item.row.reference,))
    )
    prompts = Counter(item.row.prompt for item in checked)
    areas = sorted((item.size[0] * item.size[1], item.size) for item in checked if item.size)
    formats = Counter(item.format for item in checked if item.format)
    return {
        "kind": kind,
        "rows": str(len(checked)),
        "images": str(len(by_image)),
        "captions per image": _spread(sorted(counts.elements())),
        "words per caption": _spread(words),
        "prompts": f"{len(prompts)}, most often {_quoted(prompts.most_common(1))}",
        "rows with boxes": str(sum(bool(item.row.boxes) for item in checked)),
        "rows with units": str(sum(bool(item.row.units) for item in checked)),
        "rows with a scene": str(sum(item.row.scene is not None for item in checked)),
        "sizes": " ... ".join(
            f"{width} x {height}" for _, (width, height) in _ends_and_middle(areas)
        ),
        "formats": ", ".join(f"{name} {count}" for name, count in formats.most_common()),
    }


def _compare(checked: Sequence[_Checked], problems: _Problems) -> None:
    """What is wrong with good rows, alone and beside one another."""
    rows_of: defaultdict[str, list[Row]] = defaultdict(list)
    for item in checked:
        rows_of[item.key].append(item.row)
        texts = item.row.references or (item.row.reference,)
        if not any(text.strip() for text in texts):
            problems.add("rows without a caption", item.row.id)
        longest = max(len(text.split()) for text in texts)
        if longest > _LONG:
            problems.add(f"captions above {_LONG} words", f"{item.row.id} ({longest} words)")
    for rows in rows_of.values():
        if len(rows) > 1:
            problems.add("images in several rows", f"{_name(rows[0])} in {_ids(rows)}")
    for same in _same_content({item.key for item in checked if _is_file(item)}):
        problems.add("images of the same content under several paths", " = ".join(same))


def _find_leaks(
    train: Sequence[_Checked], heldout: Sequence[_Checked], problems: _Problems
) -> None:
    keys = {item.key for item in train}
    for item in heldout:
        if item.key in keys:
            problems.add("held-out images that are trained on", _name(item.row))
    files = {item.key for item in heldout if _is_file(item)} - keys
    both = files | {item.key for item in train if _is_file(item)}
    for same in _same_content(both):
        if files & set(same) and not files >= set(same):
            problems.add("held-out images that are trained on", " = ".join(same))


def _is_file(item: _Checked) -> bool:
    return isinstance(item.row.image, str | Path) and item.size is not None


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


def _name(row: Row) -> str:
    return str(row.image) if isinstance(row.image, str | Path) else f"the image of {row.id}"


def _ids(rows: Sequence[Row]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return " ".join(row.id for row in rows[:_SHOWN]) + more


def _spread(values: Sequence[int]) -> str:
    found = _ends_and_middle(values)
    return " ... ".join(map(str, dict.fromkeys(found))) if found else "none"


def _ends_and_middle(values: Sequence) -> list:
    """The least, the median and the most of sorted values."""
    return [values[0], values[len(values) // 2], values[-1]] if values else []


def _quoted(common: Sequence[tuple[str, int]]) -> str:
    return f'"{common[0][0][:60]}" ({common[0][1]})' if common else "none"
