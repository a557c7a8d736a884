"""Judges, verdicts and rewards; and the offline judge as reward functions for other trainers.

from balcap_jax.rewards import lexical_precision, lexical_recall, lexical_linguistic  # TRL
from balcap_jax.rewards import lexical_reward  # TRL: b-CapScore, all three in one
from balcap_jax.rewards import distinctive_precision, distinctive_recall  # beyond other photos
from balcap_jax.rewards import compute_score  # verl; compute_scores of a batch
"""

from typing import Any

__all__ = [
    "compute_score",
    "compute_scores",
    "distinctive_precision",
    "distinctive_recall",
    "lexical_linguistic",
    "lexical_precision",
    "lexical_recall",
    "lexical_reward",
]


def __getattr__(name: str) -> Any:
    # On first use: judges import this package, too, and most need no lexicon.
    if name in __all__:
        if name.startswith("distinctive_"):
            from balcap_jax.rewards import distinctive

            return getattr(distinctive, name)
        from balcap_jax.rewards import functions

        return getattr(functions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
