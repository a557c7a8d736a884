"""What names in a row of metrics mean to those who write, average or compare rows."""

from collections.abc import Mapping
from typing import Any

# Upper edges of the rho histogram; one more bin holds what is above the last.
RHO_EDGES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 3.0, 4.0)

# What differs between two equal runs: never compared, never part of the state.
WALL_CLOCK = (
    "seconds/",
    "tokens_per_second",
    "peak_memory_mb",
    "device_memory_mb",
    "mfu/",
    "device_idle_share",
    "judge/",
    "save/",
)


def without_wall_clock(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` without the fields that differ between two equal runs."""
    return {name: value for name, value in row.items() if not name.startswith(WALL_CLOCK)}
