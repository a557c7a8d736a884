"""The rewards of `reward.rivals` in a run: made from settings, called one after the other."""

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.rivals import RIVALS
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import (
    Completions,
    FunctionScores,
    RewardFunctionError,
    TrainerState,
)
from balcap_jax.rewards.llm.accounting import listing
from balcap_jax.rewards.rivals.asker import Asker
from balcap_jax.rewards.rivals.protocol import RivalReward, Setup

# Where each is made: `make(setup)` of a module of this package; imported where it is chosen.
_MODULES = {
    "qa_utility": "qa",
    "qa_utility_length": "qa",
    "rubric": "rubric",
    "claims": "claims",
    "claim_diff": "claim_diff",
}


class Rivals:
    """The rewards of a run.

    Args:
      rewards: by their names in `reward.rivals`, in that order.
      asker: that they ask; None where none asks.
      failed: in place of a reward whose judge failed, NaN or 0.

    Attributes:
      names: of the rewards.
    """

    def __init__(self, rewards: dict[str, RivalReward], asker: Asker | None, *, failed: float):
        self.rewards, self._asker, self._failed = rewards, asker, failed
        self.names = tuple(name for rival in rewards for name in RIVALS[rival].rewards)

    @property
    def metered(self) -> bool:
        """Whether they cost anything, see `lap`."""
        return self._asker is not None

    def __call__(self, completions: Completions, state: TrainerState) -> FunctionScores:
        """Rewards [n, k] of all captions in the order of `names`; NaN is no signal.

        Raises:
          RewardFunctionError: a reward cannot be made of the data, with its name.
        """
        count = len(completions.captions)
        found = FunctionScores(np.zeros((count, 0), np.float32), {}, {})
        if self._asker is not None:
            self._asker.failures.clear()
        for name, reward in self.rewards.items() if count else ():
            try:
                found = joined(found, reward(completions, step=state.global_step))
            except UserError as error:  # the run is saved before it ends
                raise RewardFunctionError(f"The reward {name}: {error}") from error
        if not count:
            return found._replace(rewards=np.zeros((0, len(self.names)), np.float32))
        rewards = np.where(np.isnan(found.rewards), np.float32(self._failed), found.rewards)
        return found._replace(rewards=rewards)

    @property
    def last_failures(self) -> str:
        """Why captions of the last call lack a reward, "" where none does."""
        return "" if self._asker is None else listing(self._asker.failures)

    def check(self, example: Example) -> None:
        """See `RivalReward.check`."""
        for reward in self.rewards.values():
            reward.check(example)

    def lap(self) -> dict[str, float]:
        """What was spent since the last lap; empty where nothing costs."""
        return {} if self._asker is None else self._asker.lap()

    def close(self) -> None:
        """Ends what is under way; twice is fine."""
        if self._asker is not None:
            self._asker.close()


def joined(first: FunctionScores, then: FunctionScores) -> FunctionScores:
    """The rewards of both, side by side."""
    return FunctionScores(
        np.concatenate([first.rewards, then.rewards], axis=1),
        first.extra | then.extra,
        first.metrics | then.metrics,
    )


def resolve_reward_judge(reward: RewardConfig, example: Example) -> RewardConfig:
    """`reward` with a kind of judge in place of "auto": the exact rules where there are scenes.

    Raises:
      UserError: there is no scene, and no judge is named.
    """
    if not reward.rivals or reward.judge.kind == "llm":
        return reward
    if example.scene is not None:
        return dataclasses.replace(reward, judge=dataclasses.replace(reward.judge, kind="scene"))
    raise UserError(
        f"reward.judge.kind={reward.judge.kind!r} finds no scene in the example {example.id!r}, "
        f"and {', '.join(reward.rivals)} needs a judge; set --reward.judge.kind llm with a "
        "--reward.judge.model."
    )


def make_rivals(
    reward: RewardConfig, *, seed: int, data: str | None, example: Example, **clocks: Any
) -> Rivals:
    """The rewards that the settings name, which `resolve_reward_judge` has given a kind of judge.

    Args:
      seed: of the run; what is drawn depends on it.
      data: see `Setup`.
      example: one of the data, which all of them must be able to reward.
      clocks: `clock` and `sleep` of the calls, for tests.

    Raises:
      UserError: a reward lacks a file or a library, or is not for these data.
    """
    asks = bool(reward.rivals) and reward.judge.kind == "llm"
    asker = Asker(reward.judge, **clocks) if asks else None
    setup = Setup(reward, asker, seed, data)
    made = Rivals(
        {name: _maker(name)(setup, name) for name in reward.rivals}, asker, failed=setup.failed
    )
    made.check(example)
    return made


def rivals_record(reward: RewardConfig) -> dict[str, str]:
    """What a run writes down of its rivals: the version of the rules and prompts of each."""
    return {name: _module(name).VERSION for name in reward.rivals}


def check_same_rivals(then: Mapping[str, str], now: Mapping[str, str], *, run: Path) -> None:
    """Refuses to go on with a run whose rewards were made by other rules or prompts.

    Raises:
      UserError: they were.
    """
    for name, version in then.items():
        if now.get(name, version) != version:
            raise UserError(
                f"{run} was rewarded by {name} of version {version}, this balcap_jax has version "
                f"{now[name]}, and the steps would no longer be one run; resume with the "
                "balcap_jax that started it, or start a new run with --name."
            )


def _maker(name: str) -> Callable[[Setup, str], RivalReward]:
    return _module(name).make


def _module(name: str) -> Any:
    return import_module(f"balcap_jax.rewards.rivals.{_MODULES[name]}")
