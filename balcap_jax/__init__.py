"""Reinforcement learning for captioning policies in JAX.

import balcap_jax as bj

trainer = bj.Trainer(bj.TrainConfig.of({"steps": 200}), train_dataset=rows, reward_funcs=[short])
trainer.train()

policy, params = bj.load_pretrained(folder)
logits = policy.logits(params, **inputs)
tokens = bj.generate(policy, params, inputs)
bj.save_pretrained(folder, policy, params)
"""

import importlib
from typing import Any

# Where each name lives. They are imported on first use: importing the package shall touch no device
# and load no framework.
_HOMES = {
    "Callback": "balcap_jax.training.callbacks",
    "EarlyStopping": "balcap_jax.training.callbacks",
    "SFTConfig": "balcap_jax.config.commands",
    "TrainConfig": "balcap_jax.config.commands",
    "Trainer": "balcap_jax.training.trainer",
    "UserError": "balcap_jax.errors",
    "generate": "balcap_jax.inference",
    "load_pretrained": "balcap_jax.inference",
    "rewards": "balcap_jax.rewards",
    "save_pretrained": "balcap_jax.inference",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("balcap_jax")
    if name in _HOMES:
        home = importlib.import_module(_HOMES[name])
        return home if _HOMES[name] == f"balcap_jax.{name}" else getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
