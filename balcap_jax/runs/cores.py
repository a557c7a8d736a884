"""The processors that this process may use."""

import os


def usable_cores() -> int:
    """How many; where the system does not say, all that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def even_shares(parts: int, most: int) -> int:
    """The most shares, of at most so many, that `parts` can be split into evenly."""
    return max(n for n in range(1, max(most, 1) + 1) if parts % n == 0)
