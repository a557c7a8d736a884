"""Measurements in a process of its own, where nothing else has used memory."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from balcap_jax.runs.stopwatch import peak_memory_mb


def in_process(
    module: str,
    *arguments: str,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `measure(*arguments)` of `module` prints as its last line, a JSON object.

    Args:
      seconds: after which it is ended, with all that it has started; None: it may take any time.
      environment: variables beside those of this process.

    Raises:
      RuntimeError: it failed or was ended; the message is the last line of its stderr.
    """
    code = (
        "import sys; from balcap_jax.runs.jax_setup import set_up_memory; set_up_memory(); "
        f"from {module} import measure; measure(*sys.argv[1:])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # so that what it starts ends with it
    )
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"ended after {seconds:.0f} s, the time that was left") from None
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    if child.returncode:
        reason = (err.strip().splitlines() or [f"signal {-child.returncode}"])[-1]
        raise RuntimeError(reason)
    return json.loads(out.splitlines()[-1])


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    try:
        # getrusage would count what the parent had when it started this process.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return int(peak_memory_mb() * 1e6)
