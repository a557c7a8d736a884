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


class EndedError(RuntimeError):
    """A process failed or was ended.

    Attributes:
      last: the last JSON object that it had printed, {} if none.
    """

    def __init__(self, reason: str, out: str):
        super().__init__(reason)
        self.last = _last_object(out)


def in_process(
    module: str,
    *arguments: str,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What `measure(*arguments)` of `module` prints as its last line, a JSON object; earlier ones
    are for the case that it is ended.

    Args:
      seconds: after which it is ended, with all that it has started; None: it may take any time.
      environment: variables beside those of this process.

    Raises:
      EndedError: it failed or was ended; the message is the last line of its stderr.
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
    late = ""
    try:
        out, err = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        late = f"ended after {seconds:.0f} s, the time that was left"
    finally:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
    if late:
        raise EndedError(late, out)
    if child.returncode:
        raise EndedError((err.strip().splitlines() or [f"signal {-child.returncode}"])[-1], out)
    return json.loads(out.splitlines()[-1])


def _last_object(out: str) -> dict[str, Any]:
    for line in reversed(out.splitlines()):
        with suppress(ValueError):
            if isinstance(found := json.loads(line), dict):
                return found
    return {}


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    try:
        # getrusage would count what the parent had when it started this process.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return int(peak_memory_mb() * 1e6)
