"""What a run writes while it goes: a row of numbers per step, sampled captions.

`metrics.jsonl` is the truth; TensorBoard files repeat its numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balcap_jax.runs.folder import disk_errors, read_jsonl, to_json, write_jsonl_atomic

# Upper edges of the rho histogram; one more bin holds what is above the last.
RHO_EDGES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0)

# What differs between two equal runs: never compared, never part of the state.
WALL_CLOCK = (
    "seconds/",
    "tokens_per_second",
    "peak_memory_mb",
    "device_idle_share",
    "judge/",
)


class JsonlLog:
    """A JSONL file that grows by whole rows, each with its `step`, and survives kill -9."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            self._rewrite(read_jsonl(self.path))  # drops the torn last row
        self._open()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes all rows at once and flushes.

        Raises:
          UserError: the disk is full.
        """
        with disk_errors(self.path):
            self._file.write("".join(to_json(row) + "\n" for row in rows))
            self._file.flush()

    def truncate_to(self, step: int) -> None:
        """Removes the rows past `step`, as one atomic replacement of the file."""
        self._file.close()
        rows = read_jsonl(self.path)
        kept = [row for row in rows if row["step"] <= step]
        if len(kept) < len(rows):
            self._rewrite(kept)
        self._open()

    def close(self) -> None:
        """Closes the file; every row is on disk already."""
        self._file.close()

    def _rewrite(self, rows: Sequence[dict]) -> None:
        write_jsonl_atomic(self.path, rows)

    def _open(self) -> None:
        with disk_errors(self.path):
            self._file = self.path.open("a", encoding="utf-8")


class MetricsLog:
    """`metrics.jsonl` of a run, one row per step, and TensorBoard files under `tensorboard/`.

    Args:
      folder: the run's folder.
      tensorboard: whether to write TensorBoard files too.
    """

    def __init__(self, folder: str | Path, *, tensorboard: bool = True):
        self._log = JsonlLog(Path(folder) / "metrics.jsonl")
        self._events = Path(folder) / "tensorboard" if tensorboard else None
        self._writer = None
        self._purge_step: int | None = None

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Appends `{"step": step, **row}`; NaN is written as null. Values are numbers or lists."""
        self._log.append([{"step": step, **row}])
        if self._events is not None:
            self._write_events(step, row)

    def truncate_to(self, step: int) -> None:
        """Forgets the rows past `step`, so that a resumed run's file equals an unbroken one's."""
        self._log.truncate_to(step)
        self._purge_step = step + 1

    def close(self) -> None:
        """Ends the TensorBoard thread."""
        self._log.close()
        if self._writer is not None:
            self._writer.close()

    def _write_events(self, step: int, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            # Imported and opened at the first row: the import is slow, and only now is it known
            # from which step on TensorBoard must forget an earlier attempt.
            from tensorboardX import SummaryWriter  # noqa: PLC0415

            with disk_errors(self._events):
                self._writer = SummaryWriter(str(self._events), purge_step=self._purge_step)
        for name, value in row.items():
            if np.ndim(value) == 0:
                self._writer.add_scalar(name, float(value), step)
            else:
                self._writer.add_histogram_raw(name, **_raw_histogram(value), global_step=step)


def _raw_histogram(counts: Sequence[int]) -> dict[str, Any]:
    """The rho histogram as TensorBoard takes it; the open bin ends at twice its lower edge."""
    edges = np.array([*RHO_EDGES, 2 * RHO_EDGES[-1]])
    counts = np.asarray(counts, np.float64)
    middles = (np.array([0.0, *edges[:-1]]) + edges) / 2
    return {
        "min": 0.0,
        "max": float(edges[-1]),
        "num": float(counts.sum()),
        "sum": float((counts * middles).sum()),
        "sum_squares": float((counts * middles**2).sum()),
        "bucket_limits": edges.tolist(),
        "bucket_counts": counts.tolist(),
    }


class SampleLog:
    """`samples.jsonl` of a run: some captions of some steps with their verdicts."""

    def __init__(self, folder: str | Path):
        self._log = JsonlLog(Path(folder) / "samples.jsonl")

    def log(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows made by `caption_row`, each with its step."""
        self._log.append([{"step": step, **row} for row in rows])

    def truncate_to(self, step: int) -> None:
        """Forgets the captions past `step`."""
        self._log.truncate_to(step)

    def close(self) -> None:
        """Closes the file."""
        self._log.close()


class NoLog:
    """In place of both on the processes that do not write."""

    def log(self, step: int, row: object) -> None:
        """Writes nothing."""

    def truncate_to(self, step: int) -> None:
        """Forgets nothing."""

    def close(self) -> None:
        """Closes nothing."""


def without_wall_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` without the fields that differ between two equal runs."""
    return {name: value for name, value in row.items() if not name.startswith(WALL_CLOCK)}
