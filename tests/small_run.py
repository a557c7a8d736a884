"""A run of `balcap train` on the packaged policy, with very few tokens, and what it left."""

import dataclasses
from pathlib import Path

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    OptimConfig,
    RolloutConfig,
)
from balcap_jax.models.hf.weights import load_pretrained

BASE = Path(__file__).parents[1] / "balcap_jax" / "assets" / "base"

SMALL = TrainConfig(
    steps=4,
    prompts_per_step=2,
    sample_every=2,
    data=DataConfig(heldout=3),
    rollout=RolloutConfig(group_size=3, max_new_tokens=12),
    mesh=MeshConfig(data=1, fsdp=2, tensor=4),
    optim=OptimConfig(learning_rate=1e-3, warmup_steps=1),
    checkpoint=CheckpointConfig(every=2),
    evaluation=EvaluationConfig(batch_size=3),
)


def small(out: Path, **changes) -> TrainConfig:
    return dataclasses.replace(SMALL, out=out, **changes)


def params_of(run: Path) -> dict:
    return load_pretrained(run / "policy")[1]
