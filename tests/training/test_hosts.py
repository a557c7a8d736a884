"""`balcap train` as two and four processes that are one run, as on as many hosts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import strangers
from addresses import free_address
from host_processes import Hosts
from judge_server import JudgeServer
from small_run import small

from balcap_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimConfig,
    RolloutConfig,
)
from balcap_jax.data.scene_source import export
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.training.trainer import train

pytestmark = pytest.mark.slow

# Small: where a gradient is nothing but rounding, Adam makes a whole step of it, and after large
# steps another number of devices would sample another word somewhere.
RATE = 1e-5
CHANGES = {
    "optim": OptimConfig(learning_rate=RATE, warmup_steps=1),
    "prompts_per_step": 4,
    "sample_every": 1,
    "data": DataConfig(heldout=5),
    "rollout": RolloutConfig(group_size=2, max_new_tokens=10),
    "checkpoint": CheckpointConfig(every=1),
    "evaluation": EvaluationConfig(batch_size=4),
}
FLAGS = (
    "--prompts-per-step", "4", "--sample-every", "1", "--data.heldout", "5",
    "--rollout.group-size", "2", "--rollout.max-new-tokens", "10", "--checkpoint.every", "1",
    "--evaluation.batch-size", "4", "--optim.learning-rate", str(RATE), "--optim.warmup-steps", "1",
)  # fmt: skip
THREE = ("--prompts-per-step", "3", *FLAGS[2:])  # for three devices


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The same run as one process."""
    return train(small(tmp_path_factory.mktemp("alone"), steps=6, **CHANGES))


def assert_same_steps(run: Path, alone: Path, *, steps: int) -> None:
    """The captions and their verdicts are the same, the numbers are to rounding."""

    def read(folder: Path, name: str) -> list[dict]:
        return [row for row in read_jsonl(folder / name) if row["step"] <= steps]

    ours, expected = read(run, "metrics.jsonl"), read(alone, "metrics.jsonl")
    assert [row["step"] for row in ours] == list(range(1, steps + 1))
    for row, other in zip(ours, expected[:steps], strict=True):
        row, other = without_wall_clock(row), without_wall_clock(other)
        assert row.keys() == other.keys()
        for name in row:
            np.testing.assert_allclose(
                np.array(row[name], float), np.array(other[name], float),
                rtol=1e-4, atol=1e-5, err_msg=f"{name} of step {row['step']}",
            )  # fmt: skip
    assert read(run, "samples.jsonl") == read(alone, "samples.jsonl")
    before = "evaluation/before.jsonl"
    assert read_jsonl(run / before) == read_jsonl(alone / before)
    names = [json.loads((folder / "summary.json").read_text())["before"] for folder in (run, alone)]
    assert names[0] == names[1]


def test_four_processes_and_after_a_death_two_of_them_are_one_run(alone, tmp_path):
    run = tmp_path / "balcap"
    flags = ("--out", str(tmp_path), *FLAGS)
    with Hosts(tmp_path / "four", 4, "--steps", "1000", *flags) as hosts:
        hosts.wait_for_rows(run, 2)
        hosts.processes[2].send_signal(signal.SIGKILL)
        codes = hosts.wait()
        assert codes == [3, 3, -signal.SIGKILL, 3], hosts.said()
        for process in (0, 1, 3):
            last = hosts.said()[process].strip().splitlines()[-1]
            assert last.startswith("balcap: error: process 2 has ended without a word"), last
            assert f"balcap train --resume {run}" in last
    steps = max(4, len(read_jsonl(run / "metrics.jsonl")) + 1)

    settings = json.loads((run / "config.json").read_text())
    assert settings["dist"]["coordinator"] == "auto"  # who took part is not of the run
    with Hosts(tmp_path / "two", 2, "--resume", str(run), "--steps", str(steps)) as hosts:
        assert hosts.wait() == [0, 0], hosts.said()
        assert "b-CapScore" in hosts.said()[0]
        assert "b-CapScore" not in hosts.said()[1]  # one process speaks
    assert_same_steps(run, alone, steps=min(6, steps))


@pytest.mark.long
def test_two_processes_of_a_slurm_job_that_share_one_copy_of_the_policy(alone, tmp_path):
    """Each layer is split over both, so that both hold all rows and each judges half of them; and
    SIGTERM to one of them saves on both.
    """
    run = tmp_path / "balcap"
    flags = ("--out", str(tmp_path), *FLAGS, "--mesh.data", "1", "--mesh.tensor", "2")
    with Hosts(tmp_path / "logs", 2, "--steps", "1000", *flags, slurm=True) as hosts:
        hosts.wait_for_rows(run, 2)
        hosts.processes[1].send_signal(signal.SIGTERM)
        assert hosts.wait() == [0, 0], hosts.said()
        assert f"balcap train --resume {run}" in hosts.said()[0]
        assert "stopped at step" not in hosts.said()[1]
    reached = len(read_jsonl(run / "metrics.jsonl"))
    assert str(reached) in [path.name for path in (run / "checkpoints").iterdir()]
    # On one host again, with its two devices.
    done = subprocess.run(
        [sys.executable, "-m", "balcap_jax", "train", "--resume", str(run), "--mesh.data", "2",
         "--mesh.tensor", "1", "--steps", str(max(3, reached))],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_steps(run, alone, steps=min(6, max(3, reached)))


@pytest.mark.long
def test_a_judge_on_the_devices_judges_on_each_host_by_itself(tmp_path):
    """Fluency by the start policy, whose weights are on the devices of each host."""
    photos = export(tmp_path / "photos", split="train", count=30, seed=0, clusters=None)
    flags = (
        *FLAGS, "--data.path", str(photos), "--judge.kind", "lexical",
        "--judge.fluency", "policy", "--judge.dtype", "float32", "--steps", "2",
    )  # fmt: skip
    with Hosts(tmp_path / "one", 1, "--out", str(tmp_path / "a"), *flags) as hosts:
        assert hosts.wait() == [0], hosts.said()
    with Hosts(tmp_path / "two", 2, "--out", str(tmp_path / "b"), *flags) as hosts:
        assert hosts.wait() == [0, 0], hosts.said()
        assert "fluency by the start policy" in hosts.said()[0]
        assert "fluency by the start policy" not in hosts.said()[1]
    runs = [tmp_path / name / "balcap" for name in "ab"]
    assert_same_steps(runs[1], runs[0], steps=2)
    fits = [json.loads((run / "summary.json").read_text())["judge"]["fluency"] for run in runs]
    assert fits[1] == pytest.approx(fits[0], rel=1e-5)
    assert fits[0]["references"] >= 20


@pytest.mark.long
def test_costs_of_the_judge_are_those_of_all_hosts(tmp_path):
    """Two processes ask one server: it counts as many calls as the summary, and never serves more
    at once than the settings say.
    """
    run = tmp_path / "balcap"
    with JudgeServer(latency=0.02) as server:
        flags = (
            "--out", str(tmp_path), *FLAGS, "--judge.kind", "llm", "--judge.model", "m",
            "--judge.base-url", server.url, "--judge.cache", str(tmp_path / "cache.sqlite"),
            "--judge.concurrency", "2", "--judge.completion-price", "1e6",
        )  # fmt: skip
        with Hosts(tmp_path / "first", 2, "--steps", "2", *flags) as hosts:
            assert hosts.wait() == [0, 0], hosts.said()
        first = json.loads((run / "summary.json").read_text())["judge"]
        assert first["calls"] == server.calls > 0
        assert server.most_at_once == 2
        rows = read_jsonl(run / "metrics.jsonl")
        assert all(row["judge/price"] <= row["judge/price_total"] for row in rows)
        assert rows[-1]["judge/price_total"] <= first["price"] == first["completion_tokens"]
        # Going on counts from there, once, on any number of hosts.
        with Hosts(tmp_path / "again", 2, "--resume", str(run), "--steps", "3") as hosts:
            assert hosts.wait() == [0, 0], hosts.said()
        again = json.loads((run / "summary.json").read_text())["judge"]
        assert again["calls"] == server.calls > first["calls"]


@pytest.mark.long
def test_a_host_that_judges_no_caption_keeps_step_with_the_one_that_asks(tmp_path):
    """One photo a step, held by both hosts, which share each layer: one of them asks the judge as
    captions end, and the other has nothing to ask, and computes the same chunks.
    """
    size = ("--prompts-per-step", "1", *FLAGS[2:], "--mesh.data", "1")
    runs = {}
    with JudgeServer() as server:
        for count, folder in ((1, "one"), (2, "two")):
            flags = (
                "--out", str(tmp_path / folder), *size, "--mesh.tensor", str(count),
                "--judge.kind", "llm", "--judge.model", "m", "--judge.base-url", server.url,
                "--judge.cache", str(tmp_path / f"{folder}.sqlite"), "--steps", "3",
                "--rollout.max-new-tokens", "40",  # in two chunks
            )  # fmt: skip
            with Hosts(tmp_path / f"logs_{folder}", count, *flags) as hosts:
                assert hosts.wait() == [0] * count, hosts.said()
            runs[folder] = tmp_path / folder / "balcap"
    assert_same_steps(runs["two"], runs["one"], steps=3)


@pytest.mark.parametrize(
    "signal_", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)]
)
def test_when_process_zero_ends_or_hangs_the_others_end_with_a_sentence(signal_, tmp_path):
    """JAX alone would abort them in C++."""
    run = tmp_path / "balcap"
    patience = "5" if signal_ == signal.SIGSTOP else "60"
    size = THREE if signal_ == signal.SIGSTOP else FLAGS
    flags = ("--out", str(tmp_path), *size, "--steps", "1000", "--dist.lost-after", patience)
    count = 3 if signal_ == signal.SIGSTOP else 2
    with Hosts(tmp_path / "logs", count, *flags) as hosts:
        hosts.wait_for(run / "evaluation" / "before.jsonl")  # all of them compute
        hosts.processes[0].send_signal(signal_)
        for process in range(1, count):
            assert hosts.processes[process].wait(timeout=60) == 3, hosts.said()
            said = "has not answered for 5 s" if signal_ == signal.SIGSTOP else "has ended without"
            last = hosts.said()[process].strip().splitlines()
            assert any(line.startswith(f"balcap: error: process 0 {said}") for line in last), last


@pytest.mark.long
def test_a_process_is_killed_and_started_again_while_others_are_awaited(tmp_path):
    """And process 0, too; noise at the port meanwhile."""
    run = tmp_path / "balcap"
    flags = ("--out", str(tmp_path), *THREE, "--steps", "1")
    with Hosts(tmp_path / "logs", 3, *flags, start=()) as hosts:
        for process in (1, 0, 1, 0, 1):
            if hosts.processes[process] is not None:
                hosts.kill(process)
            hosts.start(process)
            if process == 0:
                hosts.wait_until_open()
            if hosts.processes[0] is not None:
                time.sleep(6)  # process 1 has come
                for noise in strangers.fixed()[:20]:
                    strangers.call(hosts.address, noise)
        assert hosts.processes[0].poll() is hosts.processes[1].poll() is None, hosts.said()
        hosts.start(2)
        assert hosts.wait() == [0, 0, 0], hosts.said()
    assert len(read_jsonl(run / "metrics.jsonl")) == 1


def test_processes_with_other_settings_are_refused_before_anything_starts(tmp_path):
    address = free_address()
    place = ("--dist.coordinator", address, "--dist.processes", "2", "--dist.start-timeout", "60")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "balcap_jax", "train", "--out", str(tmp_path), *place,
             "--dist.process", str(process), "--rl.eps", eps],
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, eps in enumerate(("0.1", "0.2"))
    ]  # fmt: skip
    for process in processes:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 2, said
        said = said.strip().splitlines()[-1]  # before it, what is to be run
        assert said.startswith("balcap: error: process 1 on ")
        assert "differs from process 0" in said
        assert "in rl.eps (0.2, not 0.1); start all" in said
    assert list(tmp_path.iterdir()) == []
