"""Settings of the rewards of other published methods; the comment beside a field is its text in
`--help`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from balcap_jax.config.base import Settings
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import MOST_TOKENS

MOST_DRAWS = 2**10


class Rival(NamedTuple):
    """What an entry of `reward.rivals` stands for.

    Attributes:
      rewards: names of its rewards.
      rooms: settings that it reads, of those below `reward.` that not every reward does.
      kinds: of `reward.judge` that can judge it, beside "auto".
    """

    rewards: tuple[str, ...]
    rooms: tuple[str, ...]
    kinds: tuple[str, ...] = ("scene", "llm")


RIVALS: Mapping[str, Rival] = {
    "qa_utility": Rival(("qa_utility",), ("qa",)),
    "qa_utility_length": Rival(("qa_utility_length",), ("qa", "qa_length")),
    "rubric": Rival(("rubric",), ("rubric",)),
    "claims": Rival(("claims_precision", "claims_recall"), ("claims",)),
    "claim_diff": Rival(("claim_diff",), ("claim_diff",)),
}

# Settings of a judge that none of these rewards reads: verdicts alone have them.
_OF_VERDICTS = (
    "max_failure_share", "failure_window", "calls", "order", "fluency", "dtype", "images_per_pass",
    "own_policy",
)  # fmt: skip


@dataclass(frozen=True)
class RewardJudgeConfig(JudgeConfig):
    """The judge of `reward.rivals`: "scene" (exact rules, for generated scenes), "llm" (a model
    behind an OpenAI-compatible endpoint), or "auto": scene for scenes.
    """

    room = "reward.judge."

    def check(self) -> None:
        super().check()
        for name in _OF_VERDICTS:
            default = JudgeConfig.__dataclass_fields__[name].default
            self._require(
                getattr(self, name) == default,
                name,
                "has no effect on a reward of reward.rivals",
                f"leave it at {default}.",
            )
        self._require(
            self.kind != "llm" or bool(self.model.strip()),
            "model",
            "names no model to ask",
            "set --reward.judge.model to the name that the server gives it.",
        )


@dataclass(frozen=True)
class QAConfig(Settings):
    """Questions that a judge answers from a caption alone (CapRL)."""

    # Questions of the images, a .jsonl or .parquet file with the rows of CapRL-QA-75K, found by id;
    # default: the column "reward_model" of the data. Scenes have questions of their own.
    file: str = ""
    draws: int = 8  # Questions per caption, drawn with replacement from those of its image.
    shuffle: bool = False  # Options in an order of chance, with new letters, at every draw.
    # A further, last option that the caption does not tell; it is never right.
    cannot_answer: bool = False
    scale: float = 1.0  # Factor of the mean accuracy; the released code of CapRL has 2.
    room = "reward.qa."

    def check(self) -> None:
        self._at_least(1, "draws")
        self._at_most(MOST_DRAWS, "draws")
        self._positive("scale")


@dataclass(frozen=True)
class QALengthConfig(Settings):
    """Length term of qa_utility_length (CapRL++), in tokens of the policy."""

    weight: float = 0.2  # Weight of the term, which is added to the accuracy.
    full: int = 2048  # Most tokens with a term of 1.
    zero: int = 3072  # Tokens from which on the term is 0; in between it falls linearly.
    room = "reward.qa_length."

    def check(self) -> None:
        self._positive("weight")
        self._at_least(1, "full")
        self._at_most(MOST_TOKENS, "full", "zero")
        self._require(
            self.full < self.zero, "full", f"must be below reward.qa_length.zero={self.zero}"
        )


def changed_setting(settings: Settings) -> str | None:
    """The first setting that is not at its default, by its dotted name; None where all are."""
    default = type(settings)()
    for item in fields(settings):  # type: ignore[arg-type]
        if getattr(settings, item.name) != getattr(default, item.name):
            return f"{settings.room}{item.name}={getattr(settings, item.name)!r}"
    return None
