"""A run that is killed, or whose disk is full, goes on to the bits of one that never stopped."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.fields import without_wall_clock
from balcap_jax.runs.folder import read_jsonl

# Kills; how many of them before the first step of a start, while it imports, loads and compiles;
# bytes of the largest file.
FEW = (2, 1, (30_000,))
MANY = (20, 5, (1_000, 30_000, 300_000, 3_000_000))
COMMAND = (sys.executable, "-m", "balcap_jax", "train")
SMALL = (
    "--prompts-per-step", "2", "--data.heldout", "2", "--evaluation.batch-size", "2",
    "--rollout.group-size", "2", "--rollout.max-new-tokens", "6", "--checkpoint.every", "1",
    "--loggers", "--sample-every", "3", "--rollout.overlap-steps", "3",
    "--mesh.data", "1",  # the bits of several devices are in test_trainer
)  # fmt: skip


def start(*flags: object, limit: int | None = None) -> subprocess.Popen:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    return subprocess.Popen(
        [*COMMAND, *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        preexec_fn=limited,
    )


def finish(*flags: object) -> None:
    process = start(*flags)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said


def rows(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_same_run(run: Path, other: Path) -> None:
    for name in ("metrics.jsonl", "samples.jsonl"):
        mine, others = read_jsonl(run / name), read_jsonl(other / name)
        assert [*map(without_wall_clock, mine)] == [*map(without_wall_clock, others)], name
    flat = [load_pretrained(folder / "policy")[1] for folder in (run, other)]
    a, b = (json.dumps(_bits(tree), sort_keys=True) for tree in flat)
    assert a == b


def _bits(tree) -> dict | str:
    if isinstance(tree, dict):
        return {name: _bits(inner) for name, inner in tree.items()}
    return np.asarray(tree).tobytes().hex()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "early", "sizes"),
    [pytest.param(*FEW, id="few"), pytest.param(*MANY, marks=pytest.mark.long, id="many")],
)
def test_kills_and_full_disks_end_in_the_same_bits(kills, early, sizes, tmp_path):
    rng = random.Random(0)
    run = tmp_path / "killed"
    flags = (*SMALL, "--out", tmp_path, "--name", "killed", "--steps", 100_000)
    began, mid_save = time.monotonic(), 0
    for kill in range(kills):
        going = (run / "config.json").exists()
        process = start("--resume", run, "--steps", 100_000) if going else start(*flags)
        if kill < early:  # the first finds no cache of programs and compiles for longest
            time.sleep(rng.uniform(1, 5))
        else:
            before, deadline = rows(run), time.monotonic() + 120
            while rows(run) == before or rows(run) == 0:  # a resumed run forgets unsaved rows first
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        names = [p.name for p in (run / "checkpoints").glob("*")] if run.exists() else []
        mid_save += any("tmp" in name for name in names)
        if run.exists() and not (run / "config.json").exists():
            shutil.rmtree(run)  # killed before it was a run: its lock refuses the next start
    killed = time.monotonic() - began

    for size in sizes:
        process = start("--resume", run, "--steps", 100_000, limit=size)
        said = process.communicate(timeout=200)[0]
        assert process.returncode == 2, (size, said)
        assert "Traceback" not in said, (size, said)
        errors = [line for line in said.splitlines() if "error:" in line]
        assert len(errors) == 1, (size, said)
        assert "File too large" in errors[0], (size, said)

    steps = rows(run) + 2
    finish("--resume", run, "--steps", steps)
    finish(*SMALL, "--out", tmp_path, "--name", "unbroken", "--steps", steps)
    assert_same_run(run, tmp_path / "unbroken")
    print(f"{kills} kills in {killed:.0f} s, {mid_save} during a save; {steps} steps")
