"""One run of training, whatever its task: what RL and supervised training share.

A run's folder holds everything it made; `TaskRun.restore` goes back to its last checkpoint, and the
run goes on as if it had never stopped. A task says what a step is, and what is evaluated.
"""

import dataclasses
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import jax
import optax

from balcap_jax.config.base import to_dict
from balcap_jax.config.sections import DistConfig
from balcap_jax.data.examples import Example, Source
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel import processes
from balcap_jax.parallel.sharding import BatchRows, make_mesh
from balcap_jax.rewards.function_names import RewardFunction
from balcap_jax.rl.train_state import TrainState, init_state
from balcap_jax.rl.update import check_split
from balcap_jax.runs.compilation import Compilations
from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.runs.device_rates import peak_device_bytes
from balcap_jax.runs.folder import write_json_atomic
from balcap_jax.runs.loggers import make_loggers
from balcap_jax.runs.logs import MetricsLog, NoLog, SampleLog
from balcap_jax.runs.progress import announce, training_progress, waiting
from balcap_jax.runs.step_average import StepAverage
from balcap_jax.runs.stopwatch import Stopwatch, peak_memory_mb
from balcap_jax.runs.trace import Trace
from balcap_jax.training.adapter_run import base_digest, in_bfloat16, restored_state, state_to_save
from balcap_jax.training.callbacks import Callbacks
from balcap_jax.training.checkpoint import Checkpoints, Restored
from balcap_jax.training.checkpoint_record import PARAMETERS
from balcap_jax.training.cores_as_devices import devices_of
from balcap_jax.training.interrupts import Interrupts, Stopped
from balcap_jax.training.opening import Opened, open_policy
from balcap_jax.training.same_run import check_same_run, look_at_data
from balcap_jax.training.seams import Seams
from balcap_jax.training.trained import trained_of
from balcap_jax.training.utilisation import Utilisation


class TaskRun(ABC):
    """Everything a run holds on to, and its parts as named calls.

    Attributes:
      command: that makes such runs, as `balcap COMMAND`.
      compiling: what the first step compiles, in words.
      evaluating: what an evaluation does, in words around the number of held-out examples.
    """

    command: ClassVar[str]
    compiling: ClassVar[str]
    evaluating: ClassVar[str]
    source: Source
    heldout: list[Example]
    folder: Path
    processor: Processor
    policy: VisionLanguagePolicy
    state: TrainState

    def __init__(self, config: Any, run: Path, seams: Seams, interrupts: Interrupts | None = None):
        """Opens data and policy; the folder is a run's from here on.

        Args:
          interrupts: what may end the run early; default: nothing does.

        Raises:
          UserError: a mistake in settings or data; nothing has been written then.
        """
        self.run, self.seams = run, seams
        self.config, self.step = config, 0
        self.interrupts = Interrupts() if interrupts is None else interrupts
        self.callbacks = Callbacks(seams.callbacks)
        self.started = time.perf_counter()
        self._closers: list[Callable[[], None]] = []  # of what is open, in the order of its opening
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    # ---- what a task adds

    @property
    def reads_start_again(self) -> bool:
        """Whether a resumed run still needs the weights that it started from."""
        return False

    @property
    @abstractmethod
    def images_per_step(self) -> int:
        """Of all hosts together."""

    @property
    @abstractmethod
    def micro_batches(self) -> int:
        """Parts that the batch of an update is split into."""

    @abstractmethod
    def _open_data(self) -> None:
        """Opens `source` and `heldout`, and what looks at them; may change `config`."""

    @abstractmethod
    def _make_programs(self) -> optax.GradientTransformation:
        """What runs on the devices, of the policy that is open; the optimizer of it."""

    @abstractmethod
    def _open_task(self) -> None:
        """The rest, once the folder is a run's."""

    @abstractmethod
    def train_step(self) -> tuple[dict[str, Any], Any]:
        """One step: a row of metrics, the same on all hosts, and what `_log_samples` shows."""

    @abstractmethod
    def _evaluate(self, when: str, *, between: bool) -> dict[str, Any]:
        """The held-out scores now.

        Args:
          when: a name for what else is written of them: "before", "after" or "step_000012".
          between: they are not of the beginning or the end.
        """

    @abstractmethod
    def _score_of(self, scores: Mapping[str, float]) -> float | None:
        """One number of held-out scores, the higher the better; None: they say nothing."""

    @abstractmethod
    def _log_samples(self, samples: Any) -> None:
        """Writes samples.jsonl."""

    @abstractmethod
    def _note(self, row: Mapping[str, Any]) -> str:
        """A step in a few words."""

    @abstractmethod
    def describe(self) -> list[str]:
        """What the run is going to do, in lines for the terminal."""

    def functions(self) -> tuple[RewardFunction, ...]:
        """The reward functions of the user."""
        return ()

    def _begin(self) -> None:  # noqa: B027 - most tasks have nothing there
        """What comes before the first step of a run."""

    def _read_policy(self) -> Opened:
        """The policy to start from, on the mesh."""
        return open_policy(self.config, self.mesh)

    def _extra(self) -> dict[str, Any]:
        """What a resumed run needs of the task, as JSON."""
        return {}

    def _restore_extra(self, extra: Mapping[str, Any], pending: Any) -> None:  # noqa: B027
        """Takes up what `_extra` and `_pending` gave; `step` and `state` are those of then."""

    def _pending(self) -> Any:
        """Arrays that only some checkpoints have."""
        return None

    def _pending_shapes(self, extra: Mapping[str, Any]) -> Any:
        """Their shapes in the checkpoint with this `_extra`; None where they are not wanted."""
        return None

    # ---- opening

    def _open(self) -> None:
        self.compilations, self.clock = Compilations(), DeviceClock()
        self.stopwatch = Stopwatch(mark=jax.profiler.TraceAnnotation)  # costs nothing untraced
        self._closers += [self.compilations.close, self.clock.close]
        self._open_mesh()
        self._open_data()
        self.callbacks.on_start(self)
        self.summary: dict[str, Any] = {}
        self._open_policy()
        self.seconds = 0.0  # of earlier starts of this run
        self.stopped = ""  # why the run is at its end before its last step
        self.best: float | None = None  # score of the best evaluation between steps
        self.scored: tuple[int, float | None] = (0, None)  # the last of them: step and score
        # The row of the last step, whose evaluation is not made yet.
        self.owed: dict[str, Any] | None = None
        self.data_facts: dict[str, Any] = {}
        self._open_folder()
        self._open_task()

    def _open_mesh(self) -> None:
        mesh = self.config.mesh
        self.mesh = make_mesh(
            data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor, devices=self._devices()
        )
        check_split(self.images_per_step, self.micro_batches, self.mesh)
        self.rows = BatchRows.of(self.mesh, self.images_per_step)

    def _devices(self) -> Sequence[jax.Device]:
        """What the mesh is made of."""
        return devices_of(self.config, parts=max(self.images_per_step // self.micro_batches, 1))

    def _open_policy(self) -> None:
        opened = self._read_policy()
        # With the commit that a resumed run shall start from, too.
        self.config = dataclasses.replace(self.config, model=opened.model)
        self.folder, self.processor, self.policy = opened.folder, opened.processor, opened.policy
        self.base_digest = base_digest(
            self.policy, opened.params, is_reference=self.reads_start_again
        )
        self.trained = trained_of(self.config, self.policy)  # patterns of paths
        self.utilisation = Utilisation(self.mesh, self.policy, tell=self.say)
        self.state = init_state(
            self.mesh,
            opened.params,
            self._make_programs(),
            trained=self.trained,
            keep=False,
        )

    def _open_folder(self) -> None:
        """From here on the folder holds a run; a start that failed before can be made again."""
        config = self.config
        # Which processes there are is not of the run but of this start of it.
        self.settings = settings = to_dict(dataclasses.replace(config, dist=DistConfig()))
        self.metrics = self.samples = NoLog()
        processes.on_process_zero(lambda: self._open_logs(settings))
        # Of a run that is resumed they are written once they are known to fit it.
        processes.on_process_zero(
            lambda: None if (self.run / "config.json").exists() else self._write_settings()
        )
        self.checkpoints = Checkpoints(
            self.run, keep=config.checkpoint.keep, keep_best=config.checkpoint.keep_best
        )
        self._closers.append(self.checkpoints.close)
        self.snapshots = None
        if config.checkpoint.parameters_every:
            self.snapshots = Checkpoints(self.run, name=PARAMETERS, keep=None)
            self._closers.append(self.snapshots.close)
        self.average = StepAverage()
        process = None if processes.is_alone() else jax.process_index()
        # Each on its own terminal: other processes write other traces.
        self.trace = Trace(
            self.run, config.profile, process=process, tell=announce, after=self._forget_time
        )
        self._closers.append(self.trace.close)

    def _open_logs(self, settings: dict[str, Any]) -> None:
        wanted = (*self.config.loggers, *self.seams.loggers)
        loggers = make_loggers(wanted, self.run, config=settings)
        self.metrics = MetricsLog(self.run, loggers=loggers)
        self._closers.append(self.metrics.close)
        self.samples = SampleLog(self.run)
        self._closers.append(self.samples.close)

    def _write_settings(self) -> None:
        write_json_atomic(self.run / "config.json", self.settings)

    # ---- the parts of a run

    def restore(self, which: str = "", *, anyway: bool = False) -> None:
        """Goes back to a checkpoint; a run that was killed before its first starts anew.

        Args:
          which: "best" or the number of a step; "": the newest that is intact.
          anyway: other data and settings than those of the checkpoint are wanted.

        Raises:
          UserError: there is no such checkpoint, or it is of another run: of other data, other
            settings, or past the last step.
        """
        anew = self.checkpoints.latest_step() is None and not which
        if anew:
            processes.on_process_zero(lambda: look_at_data(self))
        else:
            found = self.checkpoints.restore_intact(
                state_to_save(self.policy, self.state),
                step=self.checkpoints.find(which),
                pending_like=self._pending_shapes,
            )
            processes.on_process_zero(lambda: check_same_run(self, found, anyway=anyway))
            self._take_up(found)
        processes.on_process_zero(self._write_settings)
        self.metrics.truncate_to(self.step)
        self.samples.truncate_to(self.step)
        if anew:
            self._begin()

    def _take_up(self, found: Restored) -> None:
        """The run is where it was when `found` was saved."""
        extra = found.extra
        self.state = restored_state(self.policy, found.state, self.state)
        self.step, self.seconds = extra["step"], extra["seconds"]
        self.summary = extra["summary"]
        self.average.restore(extra.get("average", []))
        self.callbacks.restore(extra.get("callbacks", {}))
        self.best = extra.get("best")
        if extra.get("owed"):
            self.owed = self.average.last()
        if extra.get("stopped_of") == self.config.steps:  # with more steps it goes on
            self.stopped = extra.get("stopped", "")
        self._restore_extra(extra, found.pending)
        if aside := self.checkpoints.set_aside_after(self.step):
            self.say(f"the checkpoints after step {self.step} are now {', '.join(aside)}")
        if self.snapshots is not None:
            self.snapshots.set_aside_after(self.step)

    def say(self, line: str) -> None:
        """One line on the terminal of process 0."""
        announce(line, shown=processes.is_process_zero())

    def loop(self) -> None:
        """Steps until the last one, until a callback stops, or until an interrupt; saved at the end
        in any case.
        """
        shown = processes.is_process_zero()
        with (
            training_progress(
                self.command,
                self.config.steps,
                done=self.step,
                note="" if self.done else f"compiling {self.compiling}",
                shown=shown,
            ) as advance,
            self.interrupts.held(),
        ):
            self.trace.begin_at(self.step)
            with suppress(Stopped):
                while self.owed or not (self.done or self._is_interrupted()):
                    if self.owed is None:
                        self._step()
                    row = self._finish_step()
                    advance(self.step, self._note(row))
            self.trace.close()
            if self.step:
                self._save_and_wait()

    def evaluate_once(self, when: str) -> None:
        """Fills `summary[when]`, "before" or "after", unless an earlier start has done so."""
        if when in self.summary:
            return
        doing = f"{self.evaluating.format(len(self.heldout))}, {when} training"
        with waiting(doing, shown=processes.is_process_zero()):
            self.summary[when] = self._evaluate(when, between=False)
        self._forget_time()

    def _times_and_memory(self, *, tokens: int) -> dict[str, float]:
        """Of the step that ends here, the same fields on all hosts; see docs/loggers.md.

        Args:
          tokens: see `Stopwatch.lap`.
        """
        seconds = self.stopwatch.lap(tokens=tokens)
        row = {
            **seconds,
            **self.utilisation.take(seconds),
            "device_idle_share": self.clock.idle_share(),
            "peak_memory_mb": peak_memory_mb(),
            **self.checkpoints.times(),
        }
        [peak] = processes.largest([peak_device_bytes(self.mesh.local_devices)])
        return row | ({"device_memory_mb": peak / 1e6} if peak else {})

    def _forget_time(self) -> None:
        """The time since the last step counts for none."""
        self.stopwatch.lap(tokens=0)
        self.clock.idle_share()

    def _evaluate_in_between(self) -> dict[str, float]:
        """The held-out scores after this step, for its row of metrics; empty where none are due."""
        every = self.config.evaluation.every
        if not every or self.step % every:
            return {}
        scores = self._evaluate(f"step_{self.step:06d}", between=True)
        return {f"heldout/{name}": value for name, value in scores.items()}

    def _is_interrupted(self) -> bool:
        return processes.any_process(self.interrupts.stop.is_set())

    def _step(self) -> None:
        """One step without its evaluation, which it owes from here on."""
        with self.trace.step(self.step + 1):
            row, samples = self.train_step()
        self.step += 1
        self.average.add(row)
        self.owed = row
        every = self.config.sample_every
        if every and self.step % every == 0:
            with self._saved_on_error():
                self._log_samples(samples)

    def _finish_step(self) -> dict[str, Any]:
        """Evaluation, logs and checkpoint of the last step; its row.

        Raises:
          Stopped: in the evaluation, which stays owed.
        """
        assert self.owed is not None
        scores = self._evaluate_in_between()
        row, self.owed = self.owed | scores, None
        self.average.amend(scores)
        is_best = self._is_best(scores)
        self._tell(row, scores)
        if is_best or self.step % self.config.checkpoint.every == 0:
            self.save()
        if self.snapshots is not None and self.step % self.config.checkpoint.parameters_every == 0:
            params = state_to_save(self.policy, self.state).params
            extra = {"step": self.step, "base": self.base_digest}
            self.snapshots.save(self.step, {"params": in_bfloat16(params)}, extra)
        return row

    def _is_best(self, scores: Mapping[str, float]) -> bool:
        """Whether these held-out scores are the best so far, and shall be kept."""
        if not scores or not self.config.checkpoint.keep_best:
            return False
        score = self._score_of(scores)
        self.scored = self.step, score
        if score is None or (self.best is not None and score <= self.best):
            return False
        self.best = score
        return True

    def _tell(self, row: dict[str, Any], scores: dict[str, float]) -> None:
        """Loggers and callbacks hear of this step; where one fails, the run is saved first."""
        config = self.config
        with self._saved_on_error():
            if self.step % config.log_every == 0 or scores or self.step == config.steps:
                self.metrics.log(self.step, self.average.take())
            self.callbacks.on_step(self, self.step, row)
            if scores:
                self.callbacks.on_evaluate(self, self.step, scores)

    @contextmanager
    def _saved_on_error(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            self._save_and_wait()
            raise

    @property
    def done(self) -> bool:
        """All steps are made, or a callback has stopped the run."""
        return bool(self.stopped) or self.step >= self.config.steps

    def stop(self, reason: str) -> None:
        """Ends the run after this step as if it were the last one; for callbacks."""
        self.stopped = reason

    def save(self) -> None:
        """A checkpoint of this step, with what a resumed run needs beside the state."""
        scored, score = self.scored
        # A resumed run makes no row again that is not after the checkpoint.
        self.metrics.flush()
        self.samples.flush()
        extra = {
            "step": self.step,
            "summary": self.summary,
            "seconds": self.seconds + time.perf_counter() - self.started,
            "average": self.average.state(),
            "callbacks": self.callbacks.state(),
            "stopped": self.stopped,
            "stopped_of": self.config.steps,
            "settings": self.settings,
            "data": self.data_facts,
            "logged": self.metrics.rows_to(self.step),
            "best": self.best,
            "owed": self.owed is not None,
            "base": self.base_digest,
            **self._extra(),
        }
        self.checkpoints.save(
            self.step,
            state_to_save(self.policy, self.state),
            extra,
            metric=score if scored == self.step else None,
            pending=self._pending(),
        )
        self.callbacks.on_save(self, self.step)

    def _save_and_wait(self) -> None:
        self.save()
        self.checkpoints.wait()

    @contextmanager
    def saved_if_data_are_bad(self) -> Iterator[None]:
        """A run whose data turn out bad is saved before it stops.

        Not on several hosts: all save together, and the others know nothing of this one's data.
        """
        try:
            yield
        except UserError:
            if self.step and jax.process_count() == 1:
                self._save_and_wait()
            raise

    def close(self) -> None:
        """Ends the threads and closes the files, however the run ended; twice is fine."""
        while self._closers:
            close = self._closers.pop()
            if sys.exc_info()[0] is None:
                close()
            else:  # it has an error already, which this one must not hide
                with suppress(Exception):
                    close()
