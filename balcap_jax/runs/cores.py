"""The processors that this process may use."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """How many: those that this process may run on, no more than the time that its container is
    given keeps busy; where the system does not say, all that there are.
    """
    on = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if on else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(quota)) for quota in _quotas())])


def even_shares(parts: int, most: int) -> int:
    """The most shares, of at most so many, that `parts` can be split into evenly."""
    return max(n for n in range(1, max(most, 1) + 1) if parts % n == 0)


def _quotas() -> Iterator[float]:
    """Processors' worth of time: of the groups (cgroup v2) that this process is in, or of its
    container (v1), where there is a limit.
    """
    with suppress(OSError, ValueError):
        for line in _OWN_GROUP.read_text().splitlines():
            if line.startswith("0::"):
                folder = _GROUPS / line.removeprefix("0::").strip("/")
                for group in (folder, *folder.parents):
                    if group.is_relative_to(_GROUPS):
                        yield from _quota(group / "cpu.max")
    with suppress(OSError, ValueError):
        folder = _GROUPS / "cpu"
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        if quota > 0:
            yield quota / period


def _quota(file: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = file.read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
