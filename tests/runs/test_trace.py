"""Traces of steps: what they hold, and that nothing ends a run for their sake."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from traces import names_in

from balcap_jax.runs.trace import Trace, traces_in


@jax.jit
def squared_sum(x):
    return jnp.sum(x * x)


class Steps:
    """Runs steps through a trace and keeps what it says."""

    def __init__(self, run: Path, *window: int, **options):
        self.told: list[str] = []
        self.untimed = 0
        self.trace = Trace(run, window, tell=self.told.append, after=self._after, **options)

    def _after(self) -> None:
        self.untimed += 1

    def make(self, *numbers: int, failing: int | None = None) -> None:
        for number in numbers:
            with self.trace.step(number):
                squared_sum(jnp.ones(4)).block_until_ready()
                if number == failing:
                    raise KeyboardInterrupt


def test_the_steps_of_the_window_are_traced(tmp_path):
    steps = Steps(tmp_path, 2, 3)
    steps.trace.begin_at(0)
    steps.make(1)
    assert not steps.told
    assert not (tmp_path / "profile").exists()
    steps.make(2, 3, 4, 5)
    [found] = traces_in(tmp_path / "profile")
    [line] = steps.told
    assert line.startswith(f"steps 2 to 3 are traced in {found}; ")
    assert f"tensorboard --logdir {tmp_path / 'profile'}" in line
    assert list(found.parent.glob("*.trace.json.gz"))  # what the line names for perfetto
    assert "PjitFunction(squared_sum)" in names_in(found)
    assert steps.untimed == 2  # its start and its end are no step's time
    steps.trace.close()
    assert len(steps.told) == 1


def test_one_number_is_one_step(tmp_path):
    steps = Steps(tmp_path, 2, process=1)
    steps.make(1, 2, 3)
    assert "steps 2 to 2" in steps.told[0]
    assert len(traces_in(tmp_path / "profile" / "process_1")) == 1


def test_a_step_that_raises_and_a_run_that_ends_leave_what_was_traced(tmp_path):
    failed = Steps(tmp_path / "failed", 2, 9)
    with pytest.raises(KeyboardInterrupt):
        failed.make(1, 2, 3, failing=3)
    ended = Steps(tmp_path / "ended", 2, 9)
    ended.make(1, 2)
    ended.trace.close()
    for steps, told in ((failed, "steps 2 to 3"), (ended, "steps 2 to 2")):
        [found] = traces_in(steps.trace.folder)
        assert "PjitFunction(squared_sum)" in names_in(found)
        assert steps.told[0].startswith(told)


def test_a_resumed_run_traces_the_rest_or_says_that_it_is_past(tmp_path):
    past, within = Steps(tmp_path, 2, 3), Steps(tmp_path, 2, 3)
    past.trace.begin_at(3)
    past.make(4, 5)
    assert not traces_in(tmp_path / "profile")
    assert past.told == [
        "profile=2 3: the run goes on after step 3, so no trace is made in this start"
    ]
    within.trace.begin_at(2)
    within.make(3, 4)
    assert within.told[0].startswith("steps 3 to 3 are traced in")
    nothing = Steps(tmp_path)
    nothing.trace.begin_at(7)
    nothing.make(8)
    assert not nothing.told


def test_a_trace_that_cannot_be_made_is_a_line(tmp_path):
    refused = Steps(tmp_path / "refused", 1, 2)
    jax.profiler.start_trace(tmp_path / "of the caller")
    try:
        refused.make(1, 2)
    finally:
        jax.profiler.stop_trace()
    [line] = refused.told
    assert "steps are not traced: jax.profiler refuses to (" in line
    unwritten = Steps(tmp_path / "unwritten", 1, 1)
    (tmp_path / "unwritten").mkdir()
    (tmp_path / "unwritten" / "profile").write_text("no folder")
    unwritten.make(1, 2)
    [line] = unwritten.told
    assert "the trace of steps 1 to 1 could not be written (" in line
