"""What the arguments of `Trainer` mean as settings."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import MEMORY
from balcap_jax.errors import UserError
from balcap_jax.rewards.function_names import RewardFunction, name_function
from balcap_jax.rewards.functions import verdict_reward_of
from balcap_jax.training.callbacks import Callback, EarlyStopping


def with_model(config: TrainConfig, model: str | Path | None, revision: str | None) -> TrainConfig:
    if model is None and revision is None:
        return config
    path = config.model.path if model is None else str(model)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, path=path, revision=revision)
    )


def with_data(config: TrainConfig, train_dataset: Any) -> TrainConfig:
    if train_dataset is None:
        return config
    path = str(train_dataset) if isinstance(train_dataset, str | Path) else MEMORY
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def with_rewards(
    config: TrainConfig,
    reward_funcs: Callable | Sequence[Callable] | None,
    weights: Sequence[float] | None,
) -> tuple[TrainConfig, tuple[RewardFunction, ...] | None]:
    """Settings that name the given rewards, those of the judge first, and the other functions."""
    if reward_funcs is None:
        if weights is not None:
            reward = dataclasses.replace(config.reward, weights=tuple(weights))
            config = dataclasses.replace(config, reward=reward)
        return config, None
    given = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
    if weights is not None and len(weights) != len(given):
        raise UserError(
            f"reward_weights has {len(weights)} numbers for {len(given)} reward_funcs, and each "
            "needs one; give as many."
        )
    weighted = list(zip(given, weights or [1.0] * len(given), strict=True))
    by_judge = [(name, w) for f, w in weighted if (name := verdict_reward_of(f))]
    own = [(name_function(f), w) for f, w in weighted if not verdict_reward_of(f)]
    reward = dataclasses.replace(
        config.reward,
        names=tuple(name for name, _ in by_judge),
        functions=tuple(function.spec for function, _ in own),
        weights=tuple(float(w) for _, w in (*by_judge, *own)),
    )
    judge = config.judge
    if by_judge and judge.kind == "auto":
        judge = dataclasses.replace(judge, kind="lexical")
    config = dataclasses.replace(config, reward=reward, judge=judge)
    return config, tuple(function for function, _ in own)


def with_loggers(
    config: TrainConfig, loggers: Sequence[Any] | None
) -> tuple[TrainConfig, tuple[Any, ...]]:
    if loggers is None:
        return config, ()
    names = tuple(logger for logger in loggers if isinstance(logger, str))
    objects = tuple(logger for logger in loggers if not isinstance(logger, str))
    return dataclasses.replace(config, loggers=names), objects


def with_evaluations(config: TrainConfig, callbacks: Sequence[Callback]) -> TrainConfig:
    """Settings that evaluate ten times where a callback waits for that and they say nothing."""
    waits = any(isinstance(c, EarlyStopping) and c.reads_heldout for c in callbacks)
    if config.evaluation.every or not waits:
        return config
    evaluation = dataclasses.replace(config.evaluation, every=max(1, config.steps // 10))
    return dataclasses.replace(config, evaluation=evaluation)
