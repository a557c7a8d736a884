"""`balcap score`: precision, recall, linguistic quality and b-CapScore of captions from anywhere.

Rows stream from one JSONL file to another, in order. What is written is whole rows only, so the
same command goes on after any death of the process.
"""

import fcntl
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from rich import box
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from balcap_jax.config.commands import ScoreConfig
from balcap_jax.config.sections import PROMPT, REWARDS
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.examples import Box, Example
from balcap_jax.data.images import BadImageError, open_image
from balcap_jax.data.rows import Row
from balcap_jax.errors import UserError
from balcap_jax.reporting.rows import assertion_row
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.judges import make_judge
from balcap_jax.rewards.verdicts import Judge, MeteredJudge, Verdict
from balcap_jax.runs.folder import disk_errors, to_json
from balcap_jax.runs.progress import console

_NO_IMAGE = Image.new("RGB", (1, 1))  # these judges read and do not look
_WRITTEN = frozenset({*REWARDS, "judge", "b_capscore", "assertions", "units", "error"})
_LONGEST_ERROR = 300  # characters


def score(config: ScoreConfig) -> dict[str, float | int]:
    """Judges the rows of `config.input` into `config.output`.

    Returns:
      Means of the rewards and `b_capscore` in 0..100 over all rows that have them, the number of
      `rows`, and how many ended with an `errors` text.

    Raises:
      UserError: a file cannot be read or written, the output belongs to another input or judge, or
        another process is writing it.
    """
    known = {} if config.data is None else {row.id: row for row in CaptionRows(config.data)}
    totals = Totals()
    with (
        _judge(config) as judge,
        _opened(config.input) as source,
        _appended(config.output) as target,
    ):
        rows = _rows(source)
        with disk_errors(config.output):
            _go_on(rows, target, totals, config)
        with _progress(config.input) as show:
            show(source.tell())
            while batch := list(itertools.islice(rows, config.batch_size)):
                scored = _scored(judge, config, batch, known)
                with disk_errors(config.output):
                    target.write("".join(to_json(row) + "\n" for row in scored).encode())
                    target.flush()
                    os.fsync(target.fileno())
                for row in scored:
                    totals.add(row)
                show(source.tell())
    return totals.summary()


@contextmanager
def _judge(config: ScoreConfig) -> Iterator[Judge]:
    judge = make_judge(config.judge, data=config.data)
    try:
        yield judge
    finally:
        if isinstance(judge, MeteredJudge):
            judge.close()


def table(summary: dict[str, float | int]) -> Table:
    """The summary for people."""
    rendered = Table(box=box.SIMPLE)
    columns = (*REWARDS, "b_capscore", "rows", "errors")
    for column in columns:
        rendered.add_column(column.replace("b_capscore", "b-CapScore"), justify="right")
    cells = [summary[column] for column in columns]
    rendered.add_row(*(f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells))
    return rendered


class Totals:
    """Running sums of the scores, so that no row has to be kept."""

    def __init__(self) -> None:
        self.sums = dict.fromkeys(REWARDS, 0.0)
        self.counts = dict.fromkeys(REWARDS, 0)
        self.rows = self.errors = 0

    def add(self, row: dict[str, Any]) -> None:
        """Counts one written row."""
        self.rows += 1
        self.errors += row["error"] is not None
        for name in REWARDS:
            if row[name] is not None:
                self.sums[name] += row[name]
                self.counts[name] += 1

    def summary(self) -> dict[str, float | int]:
        """NaN where there is nothing to average."""
        means = [self.sums[n] / self.counts[n] if self.counts[n] else math.nan for n in REWARDS]
        return {
            **{name: 100 * mean for name, mean in zip(REWARDS, means, strict=True)},
            "b_capscore": 100 * float(harmonic_mean(np.array(means))),
            "rows": self.rows,
            "errors": self.errors,
        }


# Rows in ------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of the input: its row, or why it is invalid."""

    row: dict[str, Any]
    error: str | None


def _rows(source: BinaryIO) -> Iterator[Line]:
    """Every line that is not blank. `readline` keeps `tell` right, which iteration does not."""
    for number in itertools.count(1):
        raw = source.readline()
        if not raw:
            return
        if raw.strip():
            yield _line(raw, number)


def _line(raw: bytes, number: int) -> Line:
    try:
        row = json.loads(raw)
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return Line({"line": number}, f"line {number} cannot be read ({error})")
    if not isinstance(row.get("caption"), str):
        return Line(row, f'line {number} has no text "caption"')
    return Line(row, None)


def _example(row: dict[str, Any], config: ScoreConfig, known: dict[str, Row]) -> Example:
    """What a row says of its image, with what the data file knows of its id.

    Raises:
      ValueError: a field is not as it should be, the id is unknown, or the judge looks at images
        and there is none; the message says so.
    """
    references = row.get("references") or []
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise ValueError('"references" must be a list of texts')
    scene, id_ = None, str(row.get("id", ""))
    if known:
        if id_ not in known:
            raise ValueError(f"the data file has no id {id_!r}")
        references = references or list(known[id_].references or [known[id_].reference])
        scene = known[id_].scene
    if not references and scene is None:
        raise ValueError("there is no reference to judge by")
    image = _NO_IMAGE if config.judge.kind != "llm" else _image(row, config, known)
    return Example(
        id_, image, PROMPT, references[0], scene, tuple(references),
        tuple(_box(box) for box in row.get("boxes") or ()), _units(row.get("units")),
    )  # fmt: skip


def _image(row: dict[str, Any], config: ScoreConfig, known: dict[str, Row]) -> Image.Image:
    """The image of a row; its path is relative to the input, that of the data file to that."""
    image = row.get("image")
    if isinstance(image, str) and image:
        file: Path | bytes = config.input.parent / image
    elif known:
        file = known[str(row.get("id", ""))].image
    else:
        raise ValueError('there is no "image" for the judge to look at')
    try:
        return open_image(file)
    except BadImageError as error:
        raise ValueError(f"the image {image or ''} cannot be used: {error}") from None


def _box(value: Any) -> Box:
    """A box from a list [label, left, top, right, bottom] or an object with these fields."""
    try:
        if isinstance(value, dict):
            value = [value[name] for name in Box._fields]
        label, *sides = value
        return Box(str(label), *(float(side) for side in sides))
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f'"boxes" holds {json.dumps(value)[:80]}, which is not a label with left, top, '
            "right, bottom"
        ) from None


def _units(value: Any) -> tuple[str, ...]:
    """Stored units: texts, or the {"text", "covered"} objects of a scored row."""
    texts = [unit.get("text") if isinstance(unit, dict) else unit for unit in value or ()]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError('"units" must be a list of texts')
    return tuple(texts)


# Rows out -----------------------------------------------------------------------------------------


def _scored(
    judge: Judge, config: ScoreConfig, lines: Sequence[Line], known: dict[str, Row]
) -> list[dict[str, Any]]:
    """The output rows of a batch."""
    examples: list[Example | str] = []
    for line in lines:
        try:
            examples.append(line.error or _example(line.row, config, known))
        except ValueError as error:
            examples.append(str(error))
    good = [i for i, example in enumerate(examples) if isinstance(example, Example)]
    verdicts = judge([examples[i] for i in good], [lines[i].row["caption"] for i in good])  # type: ignore[misc]
    found: dict[int, Verdict | None] = dict(zip(good, verdicts, strict=True))
    why = judge.last_failures if isinstance(judge, MeteredJudge) else ""
    return [
        {**line.row, "judge": config.judge.kind, **_scores(judge, example, found.get(i), why)}
        for i, (line, example) in enumerate(zip(lines, examples, strict=True))
    ]


def _scores(
    judge: Judge, example: Example | str, verdict: Verdict | None, why: str
) -> dict[str, Any]:
    """Scores in [0, 1] with their reasons; null, and an error, where there is no signal."""
    if isinstance(example, str) or verdict is None:
        none = "the judge gave no verdict" + (f" ({why})" if why else "")
        error = example if isinstance(example, str) else none
        nothing = dict.fromkeys((*REWARDS, "b_capscore"))
        return {**nothing, "assertions": [], "units": [], "error": error[:_LONGEST_ERROR]}
    rewards = rewards_of([verdict], REWARDS)[0]
    texts = judge.reference_units(example)
    assert len(texts) == len(verdict.covered)
    missing = [name for name, value in zip(REWARDS, rewards, strict=True) if np.isnan(value)]
    return {
        **{name: float(value) for name, value in zip(REWARDS, rewards, strict=True)},
        "b_capscore": float(harmonic_mean(rewards)),
        "assertions": [assertion_row(a) for a in verdict.assertions],
        "units": [
            {"text": text, "covered": covered}
            for text, covered in zip(texts, verdict.covered, strict=True)
        ],
        "error": f"no signal in {', '.join(missing)}" if missing else None,
    }


# Going on -----------------------------------------------------------------------------------------


def _go_on(rows: Iterator[Line], target: BinaryIO, totals: Totals, config: ScoreConfig) -> None:
    """Passes over the input rows whose scores are written; a torn last line is cut off.

    Raises:
      UserError: a written row is not the scored row of this input and judge.
    """
    target.seek(0)
    end = 0
    while (raw := target.readline()).endswith(b"\n"):
        line = next(rows, None)
        try:
            written = json.loads(raw)
            same = line is not None and written["judge"] == config.judge.kind
            same = same and all(written[name] == line.row[name] for name in _own(line.row))
            totals.add(written)
        except (ValueError, KeyError, TypeError, AttributeError):
            same = False
        if not same:
            raise UserError(
                f"{config.output} row {totals.rows or 1} is not what --judge {config.judge.kind} "
                f"writes of {config.input}, so the command cannot go on with it; give another "
                "OUTPUT or remove the file."
            )
        end = target.tell()
    target.truncate(end)
    target.seek(end)


def _own(row: dict[str, Any]) -> list[str]:
    """The fields of an input row that its scored row still has: scores take the place of others."""
    return [name for name in row if name not in _WRITTEN]


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); name a .jsonl file as INPUT."
        ) from error
    with file:
        yield file


@contextmanager
def _appended(path: Path) -> Iterator[BinaryIO]:
    """The output, held by this process alone; the lock is the kernel's and ends with it."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path} is being written by another process, and only one may; wait for it or "
                "give another OUTPUT."
            ) from None
        yield file


@contextmanager
def _progress(path: Path) -> Iterator[Any]:
    """A bar over the bytes of the input, on a terminal."""
    columns = (
        TextColumn("scoring"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=path.stat().st_size)
        yield lambda done: bar.update(task, completed=done)
