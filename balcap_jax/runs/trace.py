"""A trace of a few steps of a run by `jax.profiler`, in the run's folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from balcap_jax.storage.local import Mirror
from balcap_jax.storage.paths import AnyPath

FOLDER = "profile"
TENSORBOARD = "plugins/profile"  # where TensorBoard looks for traces, below the folder it is given


class Trace:
    """Traces the steps from `steps[0]` to `steps[1]`, counted from 1 as in metrics.jsonl.

    `with trace.step(7): ...` around each step; the trace ends with the last of them, also where one
    raises. A run that is resumed within them traces the rest. Every start makes a trace of its own:
    none is written over. One that cannot be made costs the run nothing but a line.

    Args:
      run: the run's folder.
      steps: none, one step, or the first and the last.
      process: number of this process where there are several, each of which traces its own devices.
      tell: prints a line.
      after: is called when a trace has been started or written, which takes its time.
    """

    def __init__(
        self,
        run: AnyPath,
        steps: tuple[int, ...],
        *,
        process: int | None = None,
        tell: Callable[[str], None],
        after: Callable[[], Any] = lambda: None,
    ):
        self._first, self._last = (steps[0], steps[-1]) if steps else (1, 0)
        self.folder = run / FOLDER
        if process is not None:
            self.folder /= f"process_{process}"
        self._mirror = Mirror(self.folder)
        self._tell, self._after = tell, after
        self._from: int | None = None  # the first step of what is being traced
        self._at = 0  # the step that was traced last

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the step of this number."""
        if not self._first <= number <= self._last:
            yield
            return
        if self._from is None:
            self._start(number)
        self._at = number
        try:
            with jax.profiler.StepTraceAnnotation("step", step_num=number):
                yield
        except BaseException:
            self.close()
            raise
        if number == self._last:
            self.close()
            self._after()

    def begin_at(self, done: int) -> None:
        """Says so where the run goes on after `done` steps, past all that were to be traced."""
        if self._first <= self._last <= done:
            self._tell(
                f"profile={self._first} {self._last}: the run goes on after step {done}, so no "
                "trace is made in this start"
            )

    def close(self) -> None:
        """Writes what is being traced, and says where it is; twice is fine."""
        if self._from is None:
            return
        first, self._from = self._from, None
        local = self._mirror.local
        before = traces_in(local)
        try:
            jax.profiler.stop_trace()
            made = [path for path in traces_in(local) if path not in before]
            if not made:
                raise FileNotFoundError(f"no trace in {self.folder}")
            self._mirror.sync(now=True)
        except Exception as error:  # noqa: BLE001 - a full disk, or whatever the profiler raises
            self._tell(f"the trace of steps {first} to {self._at} could not be written ({error})")
            return
        trace = self.folder / made[-1].relative_to(local)
        self._tell(
            f"steps {first} to {self._at} are traced in {trace}; open it with `tensorboard "
            f"--logdir {self.folder}` (pip install xprof), or the .trace.json.gz beside it on "
            "https://ui.perfetto.dev"
        )

    def _start(self, number: int) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python would be slower, and the file large
        try:
            jax.profiler.start_trace(self._mirror.local, profiler_options=options)
        except Exception as error:  # noqa: BLE001 - such as a trace that the caller has begun
            self._last = 0  # asked for once
            self._tell(f"steps are not traced: jax.profiler refuses to ({error})")
            return
        self._from = number
        self._after()


def traces_in(folder: AnyPath) -> list[AnyPath]:
    """The traces of a folder that `Trace` wrote to, oldest first."""
    return sorted((folder / TENSORBOARD).glob("*/*.xplane.pb"))
