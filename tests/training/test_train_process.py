"""`balcap train` as a process that is told to stop; test_kills.py kills it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
