"""Whether the calls that may be under way at once are enough for a judge beside the device."""

import math
from collections import deque
from collections.abc import Mapping


class JudgeLoad:
    """Compares the calls of the last steps with what the device took for these steps.

    By Little's law calls x seconds of a call / seconds of a step are under way on average. Where a
    setting allows fewer, each step makes the judge fall further behind, whatever `overlap_steps`.

    Args:
      limits: the most calls under way at once, by the setting that says so.
      steps: of which one look is made; the first step of a start, which compiles, is left out.
    """

    def __init__(self, limits: Mapping[str, int], *, steps: int):
        self._limits = dict(limits)
        self._rows: deque[tuple[Mapping[str, tuple[float, float]], float]] = deque(maxlen=steps)
        self._compiled = False

    def add(self, calls: Mapping[str, tuple[float, float]], *, device_seconds: float) -> list[str]:
        """The calls of one step; what there is to say of them, once for each setting.

        Args:
          calls: (how many, the seconds of all of them together), by the setting.
          device_seconds: of the step, without the waiting for the judge.
        """
        if not self._compiled:
            self._compiled = True
            return []
        self._rows.append((calls, device_seconds))
        if len(self._rows) < (self._rows.maxlen or 0):
            return []
        told = {name: line for name in self._limits if (line := self._line(name))}
        for name in told:
            del self._limits[name]
        return [*told.values()]

    def _line(self, name: str) -> str:
        limit, steps = self._limits[name], len(self._rows)
        found = [calls.get(name, (0.0, 0.0)) for calls, _ in self._rows]
        count, seconds = (sum(column) for column in zip(*found, strict=True))
        device = sum(of_step for _, of_step in self._rows)
        if not seconds or device <= 0 or seconds / device <= limit:
            return ""
        needed = math.ceil(seconds / device)
        flag = "--" + name.replace("_", "-")
        return (
            f"the judge holds the device: {count / steps:,.0f} calls a step of "
            f"{seconds / count:.3g} s each, beside {device / steps:.3g} s of the device, take "
            f"{name}={needed}, and it is {limit}; set {flag} {needed}, if the server answers so "
            "many at once as fast."
        )
