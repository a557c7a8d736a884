"""What every reward of `reward.rivals` follows."""

from typing import NamedTuple, Protocol

from balcap_jax.config.reward import RewardConfig
from balcap_jax.data.examples import Example
from balcap_jax.rewards.callables import Completions, FunctionScores
from balcap_jax.rewards.rivals.asker import Asker


class Setup(NamedTuple):
    """What a reward is made of.

    Attributes:
      reward: the settings; the kind of its judge is not "auto" any more.
      asker: of the model at the endpoint; None where exact rules judge scenes.
      seed: of the run.
      data: the data file, beside which files of its own may lie; None where there is none.
    """

    reward: RewardConfig
    asker: Asker | None
    seed: int
    data: str | None

    @property
    def failed(self) -> float:
        """The value of a reward whose judge failed."""
        return 0.0 if self.reward.failure == "zero" else float("nan")


class RivalReward(Protocol):
    """One or several rewards of a caption, made together."""

    def __call__(self, completions: Completions, *, step: int) -> FunctionScores:
        """Rewards [n, k] in the order of `RIVALS[...].rewards`; NaN where the judge failed.

        A function of its arguments and the seed of the run, whatever was asked before, so that a
        resumed run goes on exactly.

        Args:
          step: steps that the run has made.
        """
        ...

    def check(self, example: Example) -> None:
        """Refuses data whose captions it cannot reward, by one of their examples.

        Raises:
          UserError: there is nothing to reward them by.
        """
        ...
