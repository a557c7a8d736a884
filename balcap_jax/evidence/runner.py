"""Runs cells in processes, several at once, within a budget of time.

Whoever holds a cell's lock computes it, so that several runners can share a folder; what was killed
is taken up again by the next one.
"""

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from balcap_jax.config.base import to_dict
from balcap_jax.errors import UserError
from balcap_jax.evidence.cell_run import DONE, STOPPED, TAKEN
from balcap_jax.evidence.files import CELL, CELLS, EVIDENCE, LOG, RESULT, STARTS, read_json
from balcap_jax.evidence.plan import Planned
from balcap_jax.runs.cores import usable_cores
from balcap_jax.runs.folder import disk_errors, write_json_atomic
from balcap_jax.runs.jax_setup import computes_on_cpu
from balcap_jax.runs.stopwatch import available_memory

# Seconds of a step before any cell has told: of ours on two cores, and of TRL's.
_GUESS = {"train": 0.6, "trl": 4.0}
_MEMORY = 3e9  # bytes of a cell of the default size, and some to spare
COMMAND = (sys.executable, "-m", "balcap_jax.evidence.cell_run")
_LOOK = 0.2  # seconds between looks at the processes
_LAST = 60.0  # seconds in which a cell that is stopped may save itself


@dataclass
class Outcome:
    """What a call of `run_cells` came to, by titles of cells.

    Attributes:
      done: cells that have a result now, those of earlier calls among them.
      left: those that the budget did not reach, or that were stopped and saved.
      taken: those that another runner is computing.
      failed: with the last line of their log.
    """

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class _Running:
    planned: Planned
    process: subprocess.Popen
    place: int
    started: float


def default_jobs() -> int:
    """One for each core where cores compute cells, no more than memory holds: with two cores a cell
    takes more than half the time that it takes with one.
    """
    if not computes_on_cpu():
        return 1
    memory = available_memory()
    most = 1 if memory is None else int(memory / _MEMORY)
    return max(1, min(usable_cores(), most))


def open_folder(out: Path, *, code: str) -> None:
    """Makes the folder of a study, or checks that it is one of the same code.

    Raises:
      UserError: its cells are of another code, or it is another folder that is not empty.
    """
    record = out / EVIDENCE
    if record.exists():
        then = read_json(record).get("code")
        if then != code:
            raise UserError(
                f"{out} holds cells of the code {then}, and this balcap_jax is {code}, whose "
                "numbers may differ; give another --out, or go on with the balcap_jax of then."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and holds no {EVIDENCE}; give a new folder as --out.")
    with disk_errors(out):
        for name in (CELLS, STARTS):
            (out / name).mkdir(parents=True, exist_ok=True)
    write_json_atomic(record, {"code": code, "made": time.strftime("%Y-%m-%d")})


def run_cells(
    plan: Sequence[Planned],
    out: Path,
    *,
    code: str,
    budget: float,
    jobs: int = 1,
    tell: Callable[[str], None] = lambda line: None,
    command: Sequence[str] = COMMAND,
) -> Outcome:
    """Computes the cells that have no result yet, in their order, as far as the budget goes.

    A cell that is expected to end after the budget is not begun; one that does is saved and taken
    up by the next call.

    Args:
      out: see `open_folder`.
      budget: seconds.
      jobs: cells at once, each with its share of the cores.
      command: what computes a cell; its folder and perhaps its cores come after it.

    Raises:
      KeyboardInterrupt: after Ctrl-C or SIGTERM; the cells that were running are saved.
    """
    with _terminated_like_ctrl_c():
        return _Runner(plan, out, command, code=code, budget=budget, jobs=jobs, tell=tell).run()


class _Runner:
    def __init__(
        self,
        plan: Sequence[Planned],
        out: Path,
        command: Sequence[str],
        *,
        code: str,
        budget: float,
        jobs: int,
        tell: Callable[[str], None],
    ):
        self._plan, self._out, self._code, self._command = plan, out, code, command
        self._budget, self._jobs, self._tell = budget, jobs, tell
        self._began = time.monotonic()
        self._running: list[_Running] = []
        self._open = [planned for planned in plan if not self._has_result(planned)]
        self._outcome = Outcome()
        self._seconds = self._known_seconds()

    def run(self) -> Outcome:
        try:
            while True:
                self._reap()
                while len(self._running) < self._jobs and (planned := self._next()) is not None:
                    self._start(planned)
                if not self._running:
                    break
                if self._spent() > self._budget:
                    self._tell("the budget is spent; what is running is being saved")
                    self._stop()
                    break
                time.sleep(_LOOK)
        except BaseException:
            self._stop()
            raise
        outcome = self._outcome
        outcome.done = [p.title for p in self._plan if self._has_result(p)]
        missing = [p.title for p in self._plan if not self._has_result(p)]
        outcome.taken = [title for title in outcome.taken if title in missing]
        known = {*outcome.taken, *outcome.failed}
        outcome.left = [title for title in missing if title not in known]
        return outcome

    def _next(self) -> Planned | None:
        """The first cell that is open and fits into what is left of the budget."""
        for planned in list(self._open):
            if self._has_result(planned):  # by another runner
                self._open.remove(planned)
                continue
            if self._spent() + self._expected(planned) <= self._budget:
                self._open.remove(planned)
                return planned
        return None

    def _start(self, planned: Planned) -> None:
        folder = self._folder(planned)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CELL).exists():
            write_json_atomic(folder / CELL, self._record(planned))
        place = min(set(range(self._jobs)) - {r.place for r in self._running})
        command = [*self._command, str(folder)]
        if cores := self._cores(place):
            command.append(",".join(map(str, cores)))
        with disk_errors(folder), (folder / LOG).open("ab") as log:
            # In a session of its own: Ctrl-C reaches this process alone, which stops each once; a
            # second signal would end it unsaved.
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._running.append(_Running(planned, process, place, time.monotonic()))

    def _record(self, planned: Planned) -> dict[str, Any]:
        cell = planned.cell
        return {
            "kind": cell.kind,
            "names": list(planned.names),
            "seed": cell.seed,
            "code": self._code,
            "start": cell.start_key(self._code),
            "settings": to_dict(cell.config),
        }

    def _cores(self, place: int) -> list[int]:
        """Those of one of several jobs; none named where each has all of them."""
        cores = sorted(os.sched_getaffinity(0))
        return cores[place :: self._jobs] if 1 < self._jobs <= len(cores) else []

    def _reap(self) -> None:
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                continue
            self._running.remove(running)
            title, seconds = running.planned.title, time.monotonic() - running.started
            if code == DONE:
                self._note_seconds(running.planned)
                done = sum(map(self._has_result, self._plan))
                self._tell(
                    f"{done} of {len(self._plan)} cells: {title}: {self._score(running.planned)} "
                    f"({seconds:.0f} s; {_words(self._left_seconds())} to go)"
                )
            elif code == TAKEN:
                self._outcome.taken.append(title)
            elif code != STOPPED:
                self._outcome.failed[title] = reason = self._last_line(running.planned, code)
                self._tell(f"{title} failed: {reason}")

    def _stop(self) -> None:
        """Ends what is running, saved."""
        for running in self._running:
            running.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + _LAST
        for running in self._running:
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(max(until - time.monotonic(), 0.1))
            if running.process.poll() is None:  # its checkpoints are whole all the same
                running.process.kill()
                running.process.wait()
        self._reap()

    def _score(self, planned: Planned) -> str:
        scores = read_json(self._folder(planned) / RESULT)["scores"]["after"]
        score = scores.get("b_capscore")
        return "done" if score is None else f"b-CapScore {score:.1f}"

    def _last_line(self, planned: Planned, code: int) -> str:
        lines = (self._folder(planned) / LOG).read_text("utf-8", "replace").strip().splitlines()
        if code < 0:
            return f"ended by signal {-code}"
        return lines[-1] if lines else f"ended with the exit code {code}"

    def _folder(self, planned: Planned) -> Path:
        return self._out / CELLS / planned.key

    def _has_result(self, planned: Planned) -> bool:
        return (self._folder(planned) / RESULT).exists()

    # ---- time

    def _spent(self) -> float:
        return time.monotonic() - self._began

    def _known_seconds(self) -> dict[str, list[float]]:
        """Seconds per step of the cells that are there, by kind."""
        found: dict[str, list[float]] = {}
        for planned in self._plan:
            if self._has_result(planned):
                self._note_seconds(planned, found)
        return found

    def _note_seconds(self, planned: Planned, found: dict[str, list[float]] | None = None) -> None:
        result = read_json(self._folder(planned) / RESULT)
        known = self._seconds if found is None else found
        known.setdefault(planned.cell.kind, []).append(result["seconds"] / result["steps"])

    def _expected(self, planned: Planned) -> float:
        kind = planned.cell.kind
        known = self._seconds.get(kind)
        of_step = statistics.median(known) if known else _GUESS[kind]
        return of_step * planned.cell.config.steps

    def _left_seconds(self) -> float:
        waiting = [*self._open, *(running.planned for running in self._running)]
        return sum(map(self._expected, waiting)) / self._jobs


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, too, so that cells are saved."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
