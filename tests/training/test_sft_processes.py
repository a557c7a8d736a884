"""`balcap sft` as processes: told to stop, killed, and two that are one run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from host_processes import Hosts
from PIL import Image

from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock

pytestmark = pytest.mark.slow

STEPS = 6
FLAGS = (
    "--model.path", "base", "--model.no-train-vision", "--steps", str(STEPS), "--batch-size", "4",
    "--micro-batches", "2", "--max-new-tokens", "24", "--log-every", "1", "--sample-every", "2",
    "--data.heldout", "3", "--evaluation.every", "2", "--evaluation.batch-size", "2",
    "--checkpoint.every", "2", "--checkpoint.keep", "9", "--save-dtype", "float32",
    "--optim.learning-rate", "1e-4", "--optim.warmup-steps", "1", "--optim.schedule", "constant",
    "--loggers",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Photos of which some have several captions, and one a conversation."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(12):
        Image.new("RGB", (56, 56 + 28 * (i % 2)), (20 * i, 200, 30)).save(folder / f"{i}.png")
        captions = [f"a square of number {i} .", f"number {i} .", "all in one colour ."]
        rows.append({"id": str(i), "image": f"{i}.png", "captions": captions[: 1 + i % 3]})
    rows[4] = {
        "id": "talk",
        "image": "4.png",
        "messages": [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "a square ."},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "yes ."},
        ],
    }
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(out: Path, data: Path) -> tuple[str, ...]:
    return ("--out", str(out), "--data.path", str(data), *FLAGS)


def start(*flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "balcap_jax", "sft", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        },
    )


def wait_for_rows(run: Path, count: int, process: subprocess.Popen) -> None:
    path, deadline = run / "metrics.jsonl", time.monotonic() + 240
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(*flags: str) -> str:
    process = start(*flags)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    finish(*command(out, data))
    return out / "sft"


def logs(run: Path) -> list[dict]:
    return [
        without_wall_clock(row)
        for name in ("metrics.jsonl", "samples.jsonl")
        for row in read_jsonl(run / name)
    ]


@pytest.mark.long
def test_a_run_that_is_stopped_and_killed_goes_on_to_the_same_bits(data, alone, tmp_path):
    run = tmp_path / "sft"
    process = start(*command(tmp_path, data))
    wait_for_rows(run, 1, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert f"balcap sft --resume {run}" in said
    saved = len(read_jsonl(run / "metrics.jsonl"))
    assert 1 <= saved < STEPS

    process = start("--resume", str(run))
    wait_for_rows(run, saved + 1, process)
    process.kill()
    process.wait()
    said = finish("--resume", str(run))
    assert "held-out loss per token" in said
    assert logs(run) == logs(alone)
    ours, theirs = (load_pretrained(folder / "policy")[1] for folder in (run, alone))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    # Back to an earlier checkpoint: the same steps once more.
    back = tmp_path / "back" / "sft"
    shutil.copytree(alone, back)
    finish("--resume", str(back), "--checkpoint", "2")
    assert logs(back) == logs(alone)


@pytest.mark.long  # test_hosts has several processes, which share all but the loss
def test_two_processes_are_one(data, alone, tmp_path):
    flags = command(tmp_path, data)
    with Hosts(tmp_path / "two", 2, *flags, command="sft") as hosts:
        assert hosts.wait() == [0, 0], hosts.said()
        assert "held-out loss" in hosts.said()[0]
        assert "held-out loss" not in hosts.said()[1]
    ours, theirs = (
        read_jsonl(tmp_path / "sft" / "metrics.jsonl"),
        read_jsonl(alone / "metrics.jsonl"),
    )
    assert len(ours) == STEPS
    for row, other in zip(map(without_wall_clock, ours), map(without_wall_clock, theirs)):  # noqa: B905
        assert row.keys() == other.keys()
        for name in row:
            np.testing.assert_allclose(
                row[name], other[name], rtol=1e-4, atol=1e-5, err_msg=f"{name} of {row['step']}"
            )
    ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (tmp_path / "sft", alone))
    assert ours["after"]["loss"] == pytest.approx(theirs["after"]["loss"], rel=1e-5)
    assert ours["after"]["tokens"] == theirs["after"]["tokens"]
    samples = [read_jsonl(r / "samples.jsonl") for r in (tmp_path / "sft", alone)]
    assert samples[0] == samples[1]
