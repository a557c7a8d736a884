"""One cell: what it leaves, what it shares, and how it goes on after a kill."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from small_run import SMALL

from balcap_jax.config.base import to_dict
from balcap_jax.config.sections import MeshConfig, RLConfig
from balcap_jax.config.study import StudyConfig
from balcap_jax.evidence import cell_loop, cell_run
from balcap_jax.evidence.cells import Cell
from balcap_jax.evidence.code_version import code_version
from balcap_jax.evidence.files import CELL, CELLS, RESULT, RUN, STARTS
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.runs.folder import RunLock
from balcap_jax.training import task_run
from balcap_jax.training.loop import TrainingLoop

ROOT = Path(__file__).parents[2]
CONFIG = dataclasses.replace(
    SMALL,
    steps=2,
    loggers=(),
    mesh=MeshConfig(),
    checkpoint=dataclasses.replace(SMALL.checkpoint, every=1, keep_best=False),
    rl=RLConfig(advantage="grpo", grpo_weights="running"),
    study=StudyConfig(squeeze=("linguistic=0.2",), noise=("recall=0.05",)),
)


def planned(out: Path, name: str, config=CONFIG) -> Path:
    folder = out / CELLS / name
    folder.mkdir(parents=True)
    (out / STARTS).mkdir(exist_ok=True)
    code, cell = code_version(), Cell("train", config)
    told = {"kind": "train", "code": code, "start": cell.start_key(code)}
    (folder / CELL).write_text(json.dumps({**told, "settings": to_dict(config)}))
    return folder


def result_of(folder: Path) -> dict:
    return json.loads((folder / RESULT).read_text())


@pytest.fixture(scope="module", autouse=True)
def here():
    """One device, and no cache of programs outside of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
        patch.setattr(cell_run, "_with_cache", lambda: None)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    folder = planned(tmp_path_factory.mktemp("evidence"), "whole")
    assert cell_run.run_cell(folder)
    return folder


def test_a_cell_leaves_numbers_alone(done):
    assert sorted(path.name for path in done.iterdir()) == [CELL, RESULT]
    result = result_of(done)
    for when in ("before", "after"):
        scores = result["scores"][when]
        assert scores["captions"] == scores["greedy/captions"] == 3
        for name in ("b_capscore", "words", "rho", "commentary", "invented", "rho_low"):
            assert name in scores
            assert f"greedy/{name}" in scores
    # Of the held-out images, 3 here, the captions of likeliest tokens.
    assert [len(shown["caption"].split()) > 0 for shown in result["captions"]] == [True] * 3
    series = result["series"]
    assert series["step"] == [1, 2]
    shares = [series[f"balance/{name}"] for name in ("precision", "recall", "linguistic")]
    assert [pytest.approx(1, abs=1e-5)] * 2 == [sum(step) for step in zip(*shares, strict=True)]
    assert len(series["weight/linguistic"]) == 2
    assert result["versions"]["jax"] == jax.__version__
    assert result["cell"]["settings"]["study"]["squeeze"] == ["linguistic=0.2"]


def test_a_cell_that_is_done_is_not_computed_again(done, monkeypatch):
    def never(*_, **__):
        raise AssertionError("it is done")

    monkeypatch.setattr(cell_run, "_train", never)
    before = (done / RESULT).read_bytes()
    assert cell_run.main([str(done)]) == cell_run.DONE
    assert (done / RESULT).read_bytes() == before


def test_a_cell_that_ended_early_goes_on_to_the_same_numbers(done, monkeypatch):
    """With the scores of the starting policy as another cell left them, weights and noise as if it
    had never stopped.
    """
    out = done.parents[1]
    folder = planned(out, "stopped")
    [shared] = (out / STARTS).iterdir()
    told = json.loads(shared.read_text()) | {"b_capscore": 12.5}
    shared.write_text(json.dumps(told))

    class Killed(BaseException):
        pass

    step = TrainingLoop.train_step

    def one_step(self):
        if self.step == 1:
            raise Killed
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "train_step", one_step)
        with pytest.raises(Killed):
            cell_run.run_cell(folder)
    assert (folder / RUN / "config.json").exists()
    assert cell_run.run_cell(folder)
    found, whole = result_of(folder), result_of(done)
    assert found["scores"]["before"]["b_capscore"] == 12.5
    assert found["scores"]["after"] == whole["scores"]["after"]
    assert found["series"] == whole["series"]
    assert not (folder / RUN).exists()


def test_a_start_that_was_killed_before_it_was_a_run_begins_again(done, monkeypatch):
    folder = planned(done.parents[1], "begun")
    (folder / RUN).mkdir()
    (folder / RUN / "metrics.jsonl").touch()
    seen = []
    monkeypatch.setattr(
        "balcap_jax.training.start.run_task",
        lambda *_, resume, **__: seen.append((resume, (folder / RUN).exists())),
    )
    assert not cell_run.run_cell(folder)  # stopped, as far as it can tell
    assert seen == [(None, False)]


def test_a_cell_that_another_process_computes_is_left_alone(done):
    with RunLock(done):
        assert cell_run.main([str(done)]) == cell_run.TAKEN


def test_greedy_captions_are_those_of_temperature_0(done):
    """Of the starting policy, beside the evaluation of `balcap train`."""
    config = dataclasses.replace(
        CONFIG,
        out=done,
        name="plain",
        evaluation=dataclasses.replace(CONFIG.evaluation, temperature=0.0),
    )
    loop = TrainingLoop(config, done / "plain", task_run.Seams())
    try:
        plain = loop._evaluate("before", between=False)
    finally:
        loop.close()
    scores = result_of(done)["scores"]["before"]
    for name in ("b_capscore", "precision", "recall", "linguistic", "words", "rho"):
        assert scores[f"greedy/{name}"] == pytest.approx(plain[name], rel=1e-5), name
    assert cell_loop.DECODINGS == ("sampled", "greedy")


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_process_is_taken_up_by_the_next(tmp_path):
    # Slow: two processes that compile.
    folder = planned(tmp_path, "killed", dataclasses.replace(CONFIG, steps=4))
    code = (
        "import sys; from balcap_jax.evidence import cell_run; cell_run._with_cache = lambda: None;"
        f"sys.exit(cell_run.main([{str(folder)!r}]))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment)
    until = time.monotonic() + 200
    while time.monotonic() < until and not (folder / RUN / "checkpoints" / "2").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / RESULT).exists()
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert result_of(folder)["series"]["step"] == [1, 2, 3, 4]
