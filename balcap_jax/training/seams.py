"""What a caller in Python plugs into a run in place of what the settings name."""

import dataclasses
from typing import Any, NamedTuple

from jax.sharding import Mesh

from balcap_jax.config.base import from_dict, to_dict
from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.judge import RULES, JudgeConfig
from balcap_jax.config.sections import MEMORY
from balcap_jax.data.examples import Example, Source
from balcap_jax.data.sources import open_sources
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.rewards.callables import RewardFunctions
from balcap_jax.rewards.function_names import RewardFunction, load_function
from balcap_jax.rewards.judges import make_judge, resolve_kind
from balcap_jax.rewards.rivals.rivals import Rivals, make_rivals, resolve_reward_judge
from balcap_jax.rewards.verdicts import Judge
from balcap_jax.training.audit import Audit
from balcap_jax.training.callbacks import Callback


class Seams(NamedTuple):
    """Objects that settings cannot name; by default all is as the settings say.

    Attributes:
      train_rows, eval_rows: see `MemoryRows`.
      functions: those of `reward.functions`, in their order; None: as imported by that name.
      judge: in place of the one of `judge.kind`.
      loggers: beside those of the settings.
    """

    train_rows: Any = None
    eval_rows: Any = None
    functions: tuple[RewardFunction, ...] | None = None
    judge: Judge | None = None
    loggers: tuple[Any, ...] = ()
    callbacks: tuple[Callback, ...] = ()


def open_data(
    config: TrainConfig | SFTConfig, seams: Seams, *, conversations: bool = False
) -> tuple[Source, list[Example]]:
    """What to train on, and the held-out examples; `conversations` as in `open_sources`.

    Raises:
      UserError: see `open_sources`.
    """
    source, heldout = open_sources(
        config.data,
        seed=config.seed,
        train=seams.train_rows,
        heldout=seams.eval_rows,
        conversations=conversations,
    )
    return source, [heldout[i] for i in range(min(len(heldout), config.data.heldout))]


def open_audit(config: TrainConfig, example: Example, *, mesh: Mesh) -> Audit | None:
    """The audit that the settings ask for; None without one.

    Raises:
      UserError: see `open_judge`.
    """
    if not config.audit.every:
        return None
    own = ("every", "captions")
    settings = {name: value for name, value in to_dict(config.audit).items() if name not in own}
    kind = resolve_kind(from_dict(JudgeConfig, settings), example)
    judge = make_judge(kind, data=_data_of(config), example=example, mesh=mesh)
    return Audit(config.audit, judge, config.reward)


def open_rivals(config: TrainConfig, example: Example) -> tuple[TrainConfig, Rivals]:
    """(settings with the kind of judge that "auto" means, the rewards of `reward.rivals`).

    Raises:
      UserError: see `resolve_reward_judge`, `make_rivals`.
    """
    reward = resolve_reward_judge(config.reward, example)
    rivals = make_rivals(reward, seed=config.seed, data=_data_of(config), example=example)
    return dataclasses.replace(config, reward=reward), rivals


def _data_of(config: TrainConfig) -> str | None:
    """The data file, None for data in memory."""
    return None if config.data.path == MEMORY else config.data.path


def open_judge(
    config: TrainConfig, seams: Seams, example: Example, *, mesh: Mesh
) -> tuple[TrainConfig, Judge | None, RewardFunctions]:
    """(settings with the kind of judge that "auto" means, the judge, the reward functions).

    There is no judge where no reward is of one.

    Args:
      mesh: where a judge of kind "model" is put.

    Raises:
      UserError: no judge fits data with examples like this, or see `make_judge`, `load_function`.
    """
    specs = config.reward.functions
    functions = RewardFunctions(
        [load_function(spec) for spec in specs] if seams.functions is None else seams.functions
    )
    if not config.reward.names or seams.judge is not None:
        return config, seams.judge, functions
    judge = resolve_kind(config.judge, example)
    config = dataclasses.replace(config, judge=judge)
    fitted = judge.fluency != RULES
    model = config.model
    policy = policy_folder(model.path, revision=model.revision) if fitted else None
    made = make_judge(judge, data=_data_of(config), example=example, mesh=mesh, policy=policy)
    return config, made, functions
