"""What the arguments of `Trainer` mean as settings."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.files import RunConfig
from balcap_jax.config.sections import MEMORY
from balcap_jax.errors import UserError
from balcap_jax.rewards.function_names import RewardFunction, name_functions
from balcap_jax.rewards.functions import verdict_reward_of
from balcap_jax.training.callbacks import Callback, EarlyStopping

TASKS = {"rl": TrainConfig, "sft": SFTConfig}


def config_of_task(task: str | None, config: Any) -> TrainConfig | SFTConfig:
    """The settings, or the default ones of the task.

    Raises:
      UserError: there is no such task, or they are those of another.
    """
    if task is not None and task not in TASKS:
        raise UserError(f"task={task!r} is unknown; choose one of {', '.join(TASKS)}.")
    if config is None:
        return TASKS[task or "rl"]()
    wanted = tuple(TASKS.values()) if task is None else TASKS[task]
    if not isinstance(config, wanted):
        name = TASKS[task or "rl"].__name__
        raise UserError(
            f"config is a {type(config).__name__}, which must be a {name}; make one by "
            f"{name}.of({{...}})."
        )
    return config


def with_model(config: RunConfig, model: str | Path | None, revision: str | None) -> RunConfig:
    if model is None and revision is None:
        return config
    if not isinstance(model, str | Path | None):
        raise UserError(
            f"model is a {type(model).__name__}, which must be a name on the hub, a run or a "
            "folder; write the model by its save_pretrained(folder) and give the folder."
        )
    path = config.model.path if model is None else str(model)
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, path=path, revision=revision)
    )


def with_data(config: RunConfig, train_dataset: Any, eval_dataset: Any = None) -> RunConfig:
    changes = {}
    if train_dataset is not None:
        changes["path"] = str(train_dataset) if isinstance(train_dataset, str | Path) else MEMORY
    if isinstance(eval_dataset, str | Path):
        changes["heldout_path"] = str(eval_dataset)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


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
    single = callable(reward_funcs) or isinstance(reward_funcs, str)
    given = [reward_funcs] if single else list(reward_funcs)
    if weights is not None and len(weights) != len(given):
        raise UserError(
            f"reward_weights has {len(weights)} numbers for {len(given)} reward_funcs, and each "
            "needs one; give as many."
        )
    weighted = list(zip(given, weights or [1.0] * len(given), strict=True))
    by_judge = [(name, w) for f, w in weighted if (name := verdict_reward_of(f))]
    others = [(f, w) for f, w in weighted if not verdict_reward_of(f)]
    named = name_functions([f for f, _ in others])
    own = list(zip(named, [w for _, w in others], strict=True))
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


def with_loggers(config: RunConfig, loggers: Any) -> tuple[RunConfig, tuple[Any, ...]]:
    """Settings with the names among `loggers`, one or several, and the objects among them."""
    if loggers is None:
        return config, ()
    if isinstance(loggers, str) or hasattr(loggers, "log"):
        loggers = [loggers]
    names = tuple(logger for logger in loggers if isinstance(logger, str))
    objects = tuple(logger for logger in loggers if not isinstance(logger, str))
    return dataclasses.replace(config, loggers=names), objects


def callbacks_of(given: Callback | type | Sequence[Any]) -> tuple[Any, ...]:
    """One callback or several; a class stands for an object of it, as in transformers."""
    several = given if isinstance(given, list | tuple) else [given]
    return tuple(
        c() if isinstance(c, type) and issubclass(c, Callback) and c is not EarlyStopping else c
        for c in several
    )


def with_evaluations(config: RunConfig, callbacks: Sequence[Callback]) -> RunConfig:
    """Settings that evaluate ten times where a callback waits for that and they say nothing."""
    waits = any(isinstance(c, EarlyStopping) and c.reads_heldout for c in callbacks)
    if config.evaluation.every or not waits:
        return config
    evaluation = dataclasses.replace(config.evaluation, every=max(1, config.steps // 10))
    return dataclasses.replace(config, evaluation=evaluation)
