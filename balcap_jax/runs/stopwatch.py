"""Seconds per stage of a step, and the memory of this process."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np


class Stopwatch:
    """Seconds per stage of a step: `with watch.stage("rollout"): ...`.

    The caller blocks on device results inside the stage, or the time shows up in the next one.

    Args:
      mark: enters a context of this name around each stage, such as one of a profiler.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        *,
        mark: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ):
        self._clock, self._mark = clock, mark
        self._seconds: dict[str, float] = {}
        self._began = clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`, also when the block raises."""
        began = self._clock()
        try:
            with self._mark(name):
                yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - began

    def lap(self, *, tokens: int, steps: int = 1) -> dict[str, float]:
        """`seconds/<stage>` and `seconds/step` of one step, and `tokens_per_second`, since the last
        lap; starts anew.

        `seconds/step` is the whole time, so what exceeds the sum of the stages was spent outside.

        Args:
          tokens: caption tokens sampled, or learned from, in this lap.
          steps: steps of this lap; the seconds are means over them.
        """
        now = self._clock()
        whole = now - self._began
        row = {f"seconds/{name}": seconds / steps for name, seconds in self._seconds.items()}
        row["seconds/step"] = whole / steps
        row["tokens_per_second"] = tokens / whole if whole > 0 else np.nan
        self._seconds, self._began = {}, now
        return row


def peak_memory_mb() -> float:
    """The most memory this process has had resident, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # macOS says bytes


def available_memory() -> int | None:
    """Bytes of host memory that are free, None where the system does not say."""
    with suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for entry in file:
            if entry.startswith("MemAvailable:"):
                return int(entry.split()[1]) * 1024
    return None
