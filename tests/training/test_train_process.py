"""`balcap train` as a process that is told to stop; test_kills.py kills it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balcap_jax.runs.cores import even_shares, usable_cores
from balcap_jax.runs.folder import read_jsonl

COMMAND = (
    sys.executable, "-m", "balcap_jax", "train", "--prompts-per-step", "2", "--data.heldout", "2",
    "--rollout.group-size", "2", "--rollout.max-new-tokens", "8", "--checkpoint.every", "1",
)  # fmt: skip


def start(out: Path, *flags: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def on_one_core() -> None:
    """Of a process that begins: a run goes on with another number of devices."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])


def wait_for_rows(run: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        path = run / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError("no metrics after four minutes")


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(tmp_path):
    run = tmp_path / "balcap"
    process = start(tmp_path, "--steps", "100000")
    wait_for_rows(run, 2, process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert f"balcap train --resume {run}" in said
    assert f"devices: {even_shares(2, usable_cores())} x cpu" in said
    saved = len(read_jsonl(run / "metrics.jsonl"))

    process = start(tmp_path, "--steps", "100000")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2  # the folder holds a run
    announced, mistake = said.splitlines()
    assert mistake.startswith("balcap: error: ")
    assert "--resume" in mistake

    steps = saved + 2
    done = subprocess.run(
        [sys.executable, "-m", "balcap_jax", "train", "--resume", str(run), "--steps", str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        preexec_fn=on_one_core,
    )
    assert done.returncode == 0, done.stdout
    assert "devices: 1 x cpu" in done.stdout
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
