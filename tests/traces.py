"""What a trace of jax.profiler holds."""

from pathlib import Path

from jax.profiler import ProfileData


def names_in(trace: Path) -> set[str]:
    """The names of all events of an .xplane.pb."""
    data = ProfileData.from_file(str(trace))
    return {event.name for plane in data.planes for line in plane.lines for event in line.events}


def steps_in(trace: Path) -> set[int]:
    """The numbers of the steps of an .xplane.pb."""
    data = ProfileData.from_file(str(trace))
    steps = [e for plane in data.planes for line in plane.lines for e in line.events
             if e.name == "step"]  # fmt: skip
    return {number for event in steps for name, number in event.stats if name == "step_num"}
