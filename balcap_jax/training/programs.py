"""The compiled programs of a training run, made of its settings."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.rl.train_state import make_optimizer, make_schedule
from balcap_jax.rl.update import make_reference_logprobs, make_update
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.training.trained import rates_of, trained_of


class Programs(NamedTuple):
    """What runs on the devices.

    Attributes:
      captioner, tester: sample in training, and of held-out images.
      update: see `make_update`.
      reference_logprobs: see `make_reference_logprobs`; also of the policy where `reads_start`.
    """

    captioner: Captioner
    tester: Captioner
    optimizer: optax.GradientTransformation
    update: Callable[..., Any]
    reference_logprobs: Callable[..., Any]


def make_programs(
    config: TrainConfig,
    policy: VisionLanguagePolicy,
    processor: Processor,
    mesh: Mesh,
    *,
    clock: DeviceClock,
) -> Programs:
    """Nothing is compiled before it is called."""
    sampling = {
        "max_new_tokens": config.rollout.max_new_tokens,
        "clock": clock,
    }
    optimizer = optimizer_of(config, policy)
    return Programs(
        captioner=Captioner(
            policy,
            processor,
            mesh,
            group_size=config.rollout.group_size,
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            **sampling,
        ),
        tester=Captioner(
            policy,
            processor,
            mesh,
            group_size=1,
            temperature=config.evaluation.temperature,
            **sampling,
        ),
        optimizer=optimizer,
        update=update_of(config, policy, optimizer, mesh),
        reference_logprobs=reference_of(config, policy, mesh),
    )


def optimizer_of(
    config: TrainConfig | SFTConfig, policy: VisionLanguagePolicy
) -> optax.GradientTransformation:
    """The optimizer of a run with these settings."""
    return make_optimizer(
        rates=rates_of(config, policy),
        **_schedule(config),
        weight_decay=config.optim.weight_decay,
        b1=config.optim.b1,
        b2=config.optim.b2,
        max_grad_norm=config.optim.max_grad_norm,
    )


def learning_rate_of(config: TrainConfig | SFTConfig, updates: int) -> float:
    """The learning rate of the update after so many."""
    schedule = make_schedule(**_schedule(config))
    return float(schedule(updates))


def _schedule(config: TrainConfig | SFTConfig) -> dict[str, Any]:
    return {
        "learning_rate": config.optim.learning_rate,
        "warmup_steps": config.optim.warmup_steps,
        "total_steps": config.steps
        * (1 if isinstance(config, SFTConfig) else config.rl.updates_per_rollout),
        "schedule": config.optim.schedule,
    }


def update_of(
    config: TrainConfig,
    policy: VisionLanguagePolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[..., Any]:
    """The update of a run with these settings; `balcap plan` compiles the same one."""
    return make_update(
        policy,
        optimizer,
        mesh,
        clip_low=config.rl.clip_low,
        clip_high=config.rl.clip_high,
        loss_normaliser=config.rl.loss_normaliser,
        kl_coef=config.rl.kl_coef,
        importance_cap=config.rl.importance_cap,
        trained=trained_of(config, policy),
        seed=config.seed,
        gather_once=config.mesh.gather == "update",
        **_forward(config, policy),
    )


def reference_of(
    config: TrainConfig, policy: VisionLanguagePolicy, mesh: Mesh
) -> Callable[..., Any]:
    """The reference's logprobs of a run with these settings; `balcap plan` compiles the same."""
    return make_reference_logprobs(policy, mesh, **_forward(config, policy))


def reads_start(config: TrainConfig) -> bool:
    """Whether a step needs `Batch.start_logprobs`: the first update on a rollout computes the same
    itself, so only where others follow it and importance weights are on.
    """
    return config.rl.importance_cap > 0 and config.rl.updates_per_rollout > 1


def _forward(config: TrainConfig, policy: VisionLanguagePolicy) -> dict[str, Any]:
    """What update and reference compute logprobs with."""
    return {
        "temperature": config.rollout.temperature,
        "banned_tokens": policy.config.banned_tokens,
        "micro_batches": config.rl.micro_batches,
    }
