"""Measurements in a process of its own, where nothing else has used memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from balcap_jax.runs.stopwatch import peak_memory_mb


def in_process(module: str, *arguments: str) -> dict[str, Any]:
    """What `measure(*arguments)` of `module` prints as its last line, a JSON object.

    Raises:
      RuntimeError: it failed; the message is the last line of its stderr.
    """
    code = f"import sys; from {module} import measure; measure(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        raise RuntimeError(reason)
    return json.loads(done.stdout.splitlines()[-1])


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    try:
        # getrusage would count what the parent had when it started this process.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return int(peak_memory_mb() * 1e6)
