"""`balcap score`: precision, recall, linguistic quality and b-CapScore of captions from anywhere.

Rows stream from one JSONL file to another, in order. What is written is whole rows only, so the
same command goes on after any death of the process; rows that failed are then asked again.
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich import box
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from balcap_jax.commands.appended import appended, lock
from balcap_jax.commands.score_rows import JUDGE_FIELDS, Input, Known, Line, Scorer, own
from balcap_jax.config.commands import ScoreConfig
from balcap_jax.config.sections import REWARDS
from balcap_jax.data.json_text import is_encodable
from balcap_jax.errors import UserError
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.judges import make_judge
from balcap_jax.rewards.verdicts import Judge, MeteredJudge
from balcap_jax.runs.folder import disk_errors, plain, to_json
from balcap_jax.runs.progress import console
from balcap_jax.storage.local import edited_locally, fetched


def score(config: ScoreConfig) -> dict[str, float | int]:
    """Judges the rows of `config.input` into `config.output`.

    Returns:
      Means of the rewards and `b_capscore` in 0..100 over all rows that have them, the number of
      `rows`, how many have a score (`scored`), and how many ended with an `errors` text.

    Raises:
      UserError: a file cannot be read or written, the output belongs to another input or judge, or
        another process is writing it.
    """
    with edited_locally(config.output) as output:
        return _score(config, fetched(config.input), output)


def _score(config: ScoreConfig, here: Path, output: Path) -> dict[str, float | int]:
    """`score` from and to files of this machine; `config` has the names that people know."""
    totals = Totals()
    with _judge(config) as judge, _opened(here, named=config.input) as source:
        known = None if config.data is None else Known(config.data)
        # Paths in a pipe start from where the command runs.
        scorer = Scorer(judge, config, known, config.input.parent if here.is_file() else Path())
        lines = source.lines()
        with appended(output, what="OUTPUT") as held:
            if _has_failed(held):
                target = _asked_again(lines, held, output, totals, scorer)
            else:
                target = held
                _go_on(lines, held, totals, scorer)
            with target, _progress(source) as show:
                while batch := list(itertools.islice(lines, config.batch_size)):
                    scored = scorer.scored(batch)
                    with disk_errors(output):
                        _write(target, scored)
                    for row in scored:
                        totals.add(row)
                    show()
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
        self.rows = self.errors = self.scored = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one written row."""
        self.rows += 1
        self.errors += row["error"] is not None
        self.scored += not _failed(row)
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
            "scored": self.scored,
            "errors": self.errors,
        }


# Rows out -----------------------------------------------------------------------------------------


def _write(target: BinaryIO, scored: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows, all at once and for good."""
    target.write(b"".join(_written(row) for row in scored))
    target.flush()
    os.fsync(target.fileno())


def _written(row: Mapping[str, Any]) -> bytes:
    line = to_json(row) + "\n"
    if not is_encodable(line):  # half of a character in a field that is not judged: as an escape
        line = json.dumps(plain(row), allow_nan=False) + "\n"
    return line.encode()


# Going on -----------------------------------------------------------------------------------------


def _failed(row: Mapping[str, Any]) -> bool:
    """Whether a written row has no score at all."""
    return all(row[name] is None for name in (*REWARDS, "b_capscore"))


def _has_failed(held: BinaryIO) -> bool:
    held.seek(0)
    while (raw := held.readline()).endswith(b"\n"):
        try:
            if _failed(json.loads(raw)):
                return True
        except (ValueError, KeyError, TypeError):
            return False  # told by `_go_on`
    return False


def _go_on(lines: Iterator[Line], held: BinaryIO, totals: Totals, scorer: Scorer) -> None:
    """Passes over the input rows whose scores are written; a torn last line is cut off.

    Raises:
      UserError: a written row is not the scored row of this input and judge.
    """
    end = 0
    for _, raw, row in _pairs(lines, held, scorer):
        totals.add(row)
        end += len(raw)
    held.truncate(end)
    held.seek(end)


def _asked_again(
    lines: Iterator[Line], held: BinaryIO, output: Path, totals: Totals, scorer: Scorer
) -> BinaryIO:
    """As `_go_on`, and rows that failed are judged again: a new file takes the place of `held` once
    it has all rows.

    Raises:
      UserError: as `_go_on`.
    """
    beside = output.with_name(f".{output.name}.again")
    pairs = _pairs(lines, held, scorer)
    with disk_errors(output):
        new = beside.open("w+b")
    try:
        while batch := list(itertools.islice(pairs, scorer.config.batch_size)):
            failed = [i for i, (_, _, row) in enumerate(batch) if _failed(row)]
            again = dict(zip(failed, scorer.scored([batch[i][0] for i in failed]), strict=True))
            with disk_errors(output):
                for i, (_, raw, row) in enumerate(batch):
                    totals.add(again.get(i, row))
                    new.write(_written(again[i]) if i in again else raw)
        with disk_errors(output):
            new.flush()
            os.fsync(new.fileno())
            lock(new, output, what="OUTPUT")
            beside.replace(output)
    except BaseException:
        new.close()
        beside.unlink(missing_ok=True)
        raise
    return new


def _pairs(
    lines: Iterator[Line], held: BinaryIO, scorer: Scorer
) -> Iterator[tuple[Line, bytes, dict[str, Any]]]:
    """(line of the input, its written row as it stands there, the same read) of each written row.

    Raises:
      UserError: a written row is not the scored row of its line. One that failed may be of a line
        that has been corrected since.
    """
    held.seek(0)
    number = 0
    while (raw := held.readline()).endswith(b"\n"):
        number += 1
        line = next(lines, None)
        try:
            row = json.loads(raw)
            judge = {name: row.get(name) for name in JUDGE_FIELDS.values() if name in row}
            same = line is not None
            if same and not _failed(row):
                told = scorer.told(line)
                same = all(row[name] == line.row[name] for name in own(line.row))
                same = same and told.get("data_digest") == row.get("data_digest")
            # What a whole row must have.
            Totals().add(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            same, judge = False, scorer.judge
        if judge != scorer.judge:
            raise UserError(
                f"{scorer.config.output} row {number} was scored by {_named(judge)}, and now it is "
                f"{_named(scorer.judge)}: one file holds the scores of one judge; give another "
                "OUTPUT, or the judge it had."
            )
        if not same:
            raise UserError(
                f"{scorer.config.output} row {number} is not what --judge "
                f"{scorer.config.judge.kind} writes of {scorer.config.input}"
                f"{'' if scorer.config.data is None else f' with --data {scorer.config.data}'}, so "
                "the command cannot go on with it; give another OUTPUT or remove the file."
            )
        yield line, raw, row


def _named(judge: Mapping[str, Any]) -> str:
    """A judge in words."""
    words = {
        "judge": "the judge",
        "judge_version": "version",
        "judge_model": "model",
        "judge_prompts": "prompts",
        "judge_settings": "settings",
    }
    return ", ".join(f"{words[name]} {value}" for name, value in judge.items()) or "no judge"


@contextmanager
def _opened(path: Path, *, named: Path) -> Iterator[Input]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(
            f"{named} cannot be read ({error.strerror}); name a .jsonl file as INPUT."
        ) from error
    with file:
        yield Input(file, path)


@contextmanager
def _progress(source: Input) -> Iterator[Callable[[], None]]:
    """A bar over the bytes of the input, on a terminal."""
    columns = (
        TextColumn("scoring"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("scoring", total=source.size, completed=source.done)
        yield lambda: bar.update(task, completed=source.done)
