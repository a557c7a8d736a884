"""What a run leaves to read: one row of numbers per step, sampled captions, seconds per stage.

`metrics.jsonl` is the truth; TensorBoard files repeat its numbers.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from balcap_jax.rewards.verdicts import Assertion, Verdict
from balcap_jax.runs import disk_errors, read_jsonl, to_json, write_jsonl_atomic

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


def b_capscore_of(row: dict[str, Any]) -> float:
    """Harmonic mean, times 100, of the mean rewards of a step: what the best checkpoint is best
    in.
    """
    means = np.array(
        [row[name] for name in row if name.startswith("reward/") and name.endswith("/mean")]
    )
    if not means.size or not (means > 0).all():  # NaN, too, is not above 0
        return 0.0
    return float(100.0 * len(means) / (1.0 / means).sum())


def reward_metrics(
    names: Sequence[str],
    before_mask: Float[np.ndarray, "b g k"],
    after_mask: Float[np.ndarray, "b g k"],
) -> dict[str, float]:
    """Per reward `name`, under `reward/<name>/`:

    `mean`, `std` over the captions with a signal, before the length mask; `constant_groups`, the
    share of groups with a signal whose rewards after the mask are all the same, so that they teach
    nothing; `masked`, the share of captions with a signal whose reward the mask changed;
    `no_signal`, the share of captions the judge gave none (NaN before the mask).

    A share or mean of nothing is NaN.
    """
    row = {}
    for k, name in enumerate(names):
        raw, kept = before_mask[..., k], after_mask[..., k]
        signal = ~np.isnan(raw)
        row |= {
            f"reward/{name}/mean": _mean(raw[signal]),
            f"reward/{name}/std": _std(raw[signal]),
            f"reward/{name}/constant_groups": _constant_groups(kept),
            # NaN != x, so a reward that the mask dropped counts as changed.
            f"reward/{name}/masked": _mean((raw != kept)[signal]),
            f"reward/{name}/no_signal": _mean(~signal),
        }
    return row


def length_metrics(
    lengths: Num[np.ndarray, "b g"],
    reference_lengths: Num[np.ndarray, " b"],
    words: Num[np.ndarray, "b g"],
    truncated: Bool[np.ndarray, "b g"],
) -> dict[str, Any]:
    """Lengths of the sampled captions: `rho/mean`, `rho/std`, `rho/hist`, `words`, `truncated`.

    rho = length / reference length, in the unit of the mask; as there, a reference of length 0
    counts as 1. `rho/hist` counts the captions up to each of `RHO_EDGES`, and above the last.
    `truncated` is the share that hit the token limit.
    """
    rho = (lengths / np.maximum(reference_lengths, 1)[:, None]).reshape(-1)
    return {
        "rho/mean": _mean(rho),
        "rho/std": _std(rho),
        "rho/hist": rho_histogram(rho),
        "words": _mean(words),
        "truncated": _mean(truncated),
    }


def rho_histogram(rho: Num[np.ndarray, " n"]) -> list[int]:
    """Counts per bin `(lower, upper]` of `RHO_EDGES`, the last bin open; sums to n."""
    bins = np.searchsorted(np.asarray(RHO_EDGES), rho, side="left")
    return np.bincount(bins, minlength=len(RHO_EDGES) + 1).tolist()


def _mean(values: Num[np.ndarray, "..."] | Bool[np.ndarray, "..."]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else np.nan


def _std(values: Num[np.ndarray, "..."]) -> float:
    return float(values.std(dtype=np.float64)) if values.size else np.nan


def _constant_groups(rewards: Float[np.ndarray, "b g"]) -> float:
    signal = ~np.isnan(rewards)
    highest = np.where(signal, rewards, -np.inf).max(axis=1)
    lowest = np.where(signal, rewards, np.inf).min(axis=1)
    return _mean((highest == lowest)[signal.any(axis=1)])


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


def without_wall_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` without the fields that differ between two equal runs."""
    return {name: value for name, value in row.items() if not name.startswith(WALL_CLOCK)}


def caption_row(
    *,
    id: str,  # noqa: A002
    caption: str,
    reference: str,
    references: Sequence[str] = (),
    rewards: Mapping[str, float | np.floating],
    verdict: Verdict | None,
    units: Sequence[str],
    rho: float | np.floating,
    image: str | None = None,
) -> dict[str, Any]:
    """One judged caption as samples.jsonl and evaluation/*.jsonl hold it.

    Args:
      reference: whose length is the unit of rho.
      references: all of a photo that has several; the units may come from any of them.
      rewards: per name, NaN (written as null) where there is no signal.
      verdict: None where the judge failed.
      units: the reference units, in the order of `verdict.covered`.
      image: path of its picture, relative to the run's folder.
    """
    return {
        "id": id,
        "caption": caption,
        "reference": reference,
        **({"references": list(references)} if references else {}),
        "rewards": {name: float(value) for name, value in rewards.items()},
        "verdict": None if verdict is None else _verdict_row(verdict, units),
        "words": len(caption.split()),
        "rho": float(rho),
        "image": image,
    }


def assertion_row(assertion: Assertion) -> dict[str, Any]:
    """An assertion as files hold it; its chance and weight only where precision is made of them."""
    row = {
        "text": assertion.text,
        "verified": assertion.verified,
        "pointable": assertion.pointable,
    }
    if assertion.chance is not None:
        row |= {"chance": assertion.chance, "weight": assertion.weight}
    return row


def _verdict_row(verdict: Verdict, units: Sequence[str]) -> dict[str, Any]:
    assert len(units) == len(verdict.covered), (len(units), len(verdict.covered))
    return {
        "assertions": [assertion_row(a) for a in verdict.assertions],
        "units": list(units),
        "covered": list(verdict.covered),
        **({"unit_weights": list(verdict.unit_weights)} if verdict.unit_weights else {}),
        "clarity": verdict.clarity,
        "fluency": verdict.fluency,
        "coherency": verdict.coherency,
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


class Stopwatch:
    """Seconds per stage of a step: `with watch.stage("rollout"): ...`.

    The caller blocks on device results inside the stage, or the time shows up in the next one.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._began = clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`, also when the block raises."""
        began = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - began

    def lap(self, *, tokens: int, steps: int = 1) -> dict[str, float]:
        """`seconds/<stage>` and `seconds/step` of one step, and `tokens_per_second`, since the last
        lap; starts anew.

        `seconds/step` is the whole time, so what exceeds the sum of the stages was spent outside.

        Args:
          tokens: caption tokens sampled, or learned from, in this lap.
          steps: steps of this lap; the seconds are means over them.
        """
        now = self._clock()
        whole = now - self._began
        row = {f"seconds/{name}": seconds / steps for name, seconds in self._seconds.items()}
        row["seconds/step"] = whole / steps
        row["tokens_per_second"] = tokens / whole if whole > 0 else np.nan
        self._seconds, self._began = {}, now
        return row


def peak_memory_mb() -> float:
    """The most memory this process has had resident, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # macOS says bytes
