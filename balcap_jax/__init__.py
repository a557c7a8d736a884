"""Reinforcement learning for captioning policies in JAX.

policy, params = balcap_jax.load_pretrained(folder)
logits = policy.logits(params, **inputs)
tokens = balcap_jax.generate(policy, params, inputs)
balcap_jax.save_pretrained(folder, policy, params)
"""

from typing import Any

__all__ = ["generate", "load_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    # On first use: importing the package shall touch no device and load no framework.
    if name in __all__:
        from balcap_jax import inference

        return getattr(inference, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
