"""The runner with a stand-in for cells: order, budget, cache, locks, failures, signals."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from balcap_jax.errors import UserError
from balcap_jax.evidence import runner
from balcap_jax.evidence.cells import make_cell
from balcap_jax.evidence.files import CELL, CELLS, RESULT
from balcap_jax.evidence.plan import Planned
from balcap_jax.evidence.runner import open_folder, run_cells
from balcap_jax.runs.folder import RunLock

# Takes the lock, does what its learning rate says, and notes that it was there.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
from balcap_jax.errors import UserError
from balcap_jax.runs.folder import RunLock
folder = Path(sys.argv[1])
try:
    lock = RunLock(folder)
except UserError:
    sys.exit(75)
cell = json.loads((folder / "cell.json").read_text())
with (folder.parent.parent / "order").open("a") as order:
    order.write(f"{cell['seed']} {sys.argv[2:]}\\n")
rate = cell["settings"]["optim"]["learning_rate"]
if rate == 2.0:
    print("out of memory")
    sys.exit(1)
if rate == 3.0:
    os.kill(os.getpid(), signal.SIGKILL)
if rate == 4.0:
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(3)))
    time.sleep(60)
result = {"scores": {"after": {"b_capscore": 80.0}}, "steps": 100, "seconds": 100.0}
(folder / "result.json").write_text(json.dumps(result))
"""
PLAIN, FAILS, DIES, HANGS = 1.0, 2.0, 3.0, 4.0


@pytest.fixture
def command(tmp_path):
    script = tmp_path / "stand_in.py"
    script.write_text(textwrap.dedent(STAND_IN))
    return (sys.executable, str(script))


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    open_folder(folder, code="x")
    return folder


def planned(*rates):
    cells = [
        make_cell("train", {"optim.learning_rate": rate}, seed=seed)
        for seed, rate in enumerate(rates)
    ]
    return [Planned(cell.key("x"), cell, ("claim/setting",)) for cell in cells]


def run(plan, out, command, *, budget=1e6, **options):
    told = []
    came = run_cells(
        plan, out, code="x", budget=budget, command=command, tell=told.append, **options
    )
    return came, told


def order(out):
    return [line.split()[0] for line in (out / "order").read_text().splitlines()]


def test_cells_are_computed_in_their_order_and_once(out, command):
    plan = planned(PLAIN, PLAIN, PLAIN)
    came, told = run(plan, out, command)
    assert came.done == [p.title for p in plan]
    assert (came.left, came.taken, came.failed) == ([], [], {})
    assert order(out) == ["0", "1", "2"]
    assert told[-1].startswith("3 of 3 cells: claim/setting, seed 2: b-CapScore 80.0 (")
    again, told = run(plan, out, command)
    assert again.done == came.done
    assert (told, order(out)) == ([], ["0", "1", "2"])


def test_a_failed_cell_says_why_and_holds_up_no_other(out, command):
    plan = planned(FAILS, DIES, PLAIN)
    came, _ = run(plan, out, command)
    assert came.done == [plan[2].title]
    assert came.failed == {plan[0].title: "out of memory", plan[1].title: "ended by signal 9"}
    # The next call tries them again.
    run(plan, out, command)
    assert order(out) == ["0", "1", "2", "0", "1"]


def test_a_cell_that_another_runner_computes_is_left_to_it(out, command):
    plan = planned(PLAIN, PLAIN)
    folder = out / CELLS / plan[0].key
    folder.mkdir()
    with RunLock(folder):
        came, _ = run(plan, out, command)
    assert (came.taken, came.done) == ([plan[0].title], [plan[1].title])
    came, _ = run(plan, out, command)
    assert len(came.done) == 2


def test_what_does_not_fit_the_budget_is_not_begun(out, command):
    plan = planned(PLAIN, PLAIN, PLAIN)
    # A first cell is guessed at 60 s; it tells 100, for which no time is left.
    came, _ = run(plan, out, command, budget=90)
    assert came.done == [plan[0].title]
    assert came.left == [p.title for p in plan[1:]]
    assert order(out) == ["0"]


def test_what_runs_at_the_end_of_the_budget_is_saved(out, command, monkeypatch):
    monkeypatch.setattr("balcap_jax.evidence.runner._GUESS", {"train": 0.0})
    plan = planned(HANGS)
    came, told = run(plan, out, command, budget=1.0)
    assert (out / CELLS / plan[0].key / "saved").exists()
    assert came.left == [plan[0].title]
    assert came.failed == {}
    assert "the budget is spent" in told[0]


def test_sigterm_saves_the_cells_and_ends(out, command):
    plan = planned(HANGS)
    saved = out / CELLS / plan[0].key / "saved"

    def interrupt():
        until = time.monotonic() + 30
        while not (out / "order").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)  # its handler is there
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(plan, out, command)
    thread.join()
    assert saved.exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_jobs_share_the_cores(out, command):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core cannot be shared")
    came, _ = run(planned(PLAIN, PLAIN), out, command, jobs=2)
    assert len(came.done) == 2
    told = {line.split(maxsplit=1)[1] for line in (out / "order").read_text().splitlines()}
    assert told == {str([",".join(map(str, cores[i::2]))]) for i in (0, 1)}


def test_a_folder_is_of_one_code(out):
    open_folder(out, code="x")
    with pytest.raises(UserError, match="holds cells of the code x, and this balcap_jax is y"):
        open_folder(out, code="y")


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="is not empty and holds no evidence.json"):
        open_folder(tmp_path, code="x")


def test_a_cell_of_another_code_refuses_to_run(tmp_path):
    """The process of a cell, whose code may have been changed under a runner."""
    folder = tmp_path / CELLS / "a"
    folder.mkdir(parents=True)
    (folder / CELL).write_text(json.dumps({"kind": "train", "code": "old", "settings": {}}))
    code = (
        "import sys; from balcap_jax.evidence import cell_run; cell_run._with_cache = lambda: None;"
        f"sys.exit(cell_run.main([{str(folder)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is a cell of the code old" in done.stderr
    assert not (folder / RESULT).exists()


@pytest.mark.parametrize(
    ("cpu", "cores", "memory", "jobs"),
    [
        (True, 2, 24e9, 2),
        (True, 64, 24e9, 8),
        (True, 2, 1e9, 1),
        (True, 4, None, 1),
        (False, 16, 99e9, 1),
    ],
)
def test_jobs_are_as_many_as_cores_and_memory_hold(monkeypatch, cpu, cores, memory, jobs):
    monkeypatch.setattr(runner, "computes_on_cpu", lambda: cpu)
    monkeypatch.setattr(runner, "available_memory", lambda: memory)
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: set(range(cores)))
    assert runner.default_jobs() == jobs
