"""Commands in processes of their own, on the bucket of a test."""

import os
import subprocess
import sys
import time
from pathlib import Path

FLAGS = (
    "--prompts-per-step", "2", "--data.heldout", "2", "--evaluation.batch-size", "2",
    "--rollout.group-size", "2", "--rollout.max-new-tokens", "6", "--checkpoint.every", "1",
    "--sample-every", "3", "--optim.learning-rate", "1e-5", "--optim.warmup-steps", "1",
)  # fmt: skip


def balcap(
    *arguments: object,
    cwd: Path,
    wait: bool = True,
    program: tuple[str, ...] = ("-m", "balcap_jax"),
) -> subprocess.Popen:
    """The command in `cwd`, with a cache there.

    Args:
      wait: until it has ended well; `said` is what it printed.
    """
    process = subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "BALCAP_CACHE_DIR": str(cwd / "cache")},
    )
    if wait:
        process.said = process.communicate(timeout=240)[0]  # type: ignore[attr-defined]
        assert process.returncode == 0, process.said  # type: ignore[attr-defined]
    return process


def wait_for(condition, process: subprocess.Popen) -> None:
    """Waits until it holds, for two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)


def committed(bucket) -> int:
    """The newest checkpoint, as the store has it."""
    names = [n.split("/") for n in list(bucket.objects) if n.endswith("commit_success.txt")]
    return max((int(n[3]) for n in names if len(n) == 5 and n[3].isdigit()), default=0)


def begun(bucket) -> bool:
    """As launch/start.sh asks."""
    return "runs/balcap/config.json" in bucket.objects
