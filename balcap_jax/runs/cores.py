"""The processors that this process may use."""

import os


def usable_cores() -> int:
    """How many; where the system does not say, all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
