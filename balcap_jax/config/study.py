"""Settings of studies: what is done to the rewards of training alone, to see what depends on it.

The comment beside a field is its text in `--help`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from balcap_jax.config.base import Settings
from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError

_CHANGES = ("squeeze", "noise", "levels", "sparse")


@dataclass(frozen=True)
class StudyConfig(Settings):
    """Rewards of training changed on purpose, as NAME=NUMBER; held-out scores stay exact.

    In this order: squeeze, noise, levels, sparse. No signal stays no signal.
    """

    # Factors that spreads are squeezed by: study.centre + factor (reward - study.centre), as of a
    # judge that gives 7 or 8 to everything.
    squeeze: tuple[str, ...] = ()
    centre: float = 0.8  # Value that squeezed rewards are drawn to.
    noise: tuple[str, ...] = ()  # Standard deviations of normal noise that is added.
    # Numbers of equal parts of [0, 1] whose borders alone are given: 10 gives the integers 0 to 10,
    # divided by 10.
    levels: tuple[str, ...] = ()
    # Thresholds of sparse rewards: 1 where the reward reaches it, and 0 everywhere else.
    sparse: tuple[str, ...] = ()
    room = "study."

    @property
    def on(self) -> bool:
        """Something is changed."""
        return any(getattr(self, name) for name in _CHANGES)

    def check(self) -> None:
        for change, rule, fits in (
            ("squeeze", "a factor of at least 0", lambda x: x >= 0),
            ("noise", "a standard deviation above 0", lambda x: x > 0),
            ("levels", "a whole number from 1 on", lambda x: x >= 1 and x == int(x)),
            ("sparse", "a threshold", lambda x: True),
        ):
            pairs = list(self._pairs(change))
            for name, number in pairs:
                self._require(
                    math.isfinite(number) and fits(number),
                    change,
                    f"must give {name} {rule}",
                    f"write such as --study.{change} {name}={_EXAMPLES[change]}.",
                )
            names = [name for name, _ in pairs]
            twice = len(set(names)) < len(names)
            self._require(not twice, change, "names a reward twice", "name each reward once.")
        self._require(abs(self.centre) <= 1e6, "centre", "must lie between -1e6 and 1e6")
        default = type(self).__dataclass_fields__["centre"].default
        self._require(
            bool(self.squeeze) or self.centre == default,
            "centre",
            "has no effect without study.squeeze",
            "leave it out.",
        )

    def check_names(self, names: Sequence[str]) -> None:
        """Refuses rewards that the run does not have.

        Raises:
          UserError: with the nearest name.
        """
        for change in _CHANGES:
            for name, _ in self._pairs(change):
                if name not in names:
                    raise UserError(
                        f"study.{change} names the reward {name!r}, and the run trains on "
                        f"{', '.join(names)}{did_you_mean(name, names)}"
                    )

    def _pairs(self, change: str) -> list[tuple[str, float]]:
        pairs = []
        for entry in getattr(self, change):
            name, _, number = entry.partition("=")
            self._require(
                bool(name) and _is_number(number),
                change,
                f"holds {entry!r}, which is no NAME=NUMBER",
                f"write such as --study.{change} linguistic={_EXAMPLES[change]}.",
            )
            pairs.append((name, float(number)))
        return pairs


def numbers_of(change: Sequence[str], names: Sequence[str]) -> list[float]:
    """The number of each reward of `names` in a change such as `study.noise`; NaN without one."""
    given = {name: float(number) for name, _, number in (x.partition("=") for x in change)}
    return [given.get(name, math.nan) for name in names]


_EXAMPLES = {"squeeze": "0.2", "noise": "0.1", "levels": "10", "sparse": "0.9"}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
