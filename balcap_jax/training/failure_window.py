"""How often the judge failed of late, and the end of a run where that is too often."""

from collections import deque
from pathlib import Path

from balcap_jax.errors import UserError


class FailureWindow:
    """Stops a run whose judge no longer answers, or whose reward functions have no reward.

    Args:
      run: the run's folder.
      who: what gives the signal, in messages: "the judge" or "the reward functions a, b".
      limit: share of captions without a signal above which it stops.
      window: over how many steps the share is taken.

    Attributes:
      shares: of the last steps.
    """

    def __init__(self, run: Path, *, limit: float, window: int, who: str = "the judge"):
        self.run, self.limit, self.who = run, limit, who
        self.shares: deque[float] = deque(maxlen=window)

    def trips(self, share: float) -> bool:
        """Whether one more step with this share is too much; the step is not remembered."""
        seen = [*self.shares, share][-self.shares.maxlen :]
        return sum(seen) / len(seen) > self.limit

    def error(self, share: float, *, where: str, reasons: str) -> UserError:
        """What to raise, once all is saved."""
        why = f" ({reasons})" if reasons else ""
        return UserError(
            f"{self.who} gave no signal for {share:.0%} of the captions of {where}{why}, above "
            f"judge.max_failure_share={self.limit}; the run is saved: fix {self.who}, then "
            f"`balcap train --resume {self.run}`."
        )
