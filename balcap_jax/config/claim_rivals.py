"""Settings of the rewards that judge claims and criteria: rubric, claims, claim_diff."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from balcap_jax.config.base import Settings
from balcap_jax.config.judge import JudgeConfig, require_endpoint

# Criteria of scenes: what a starting caption fails, or all that the reference tells.
SceneCriteria = Literal["failed", "all"]
Vote = Literal["majority", "mean"]
Mode = Literal[
    "normalized_diff",
    "normalized_a_only",
    "a_only",
    "judgment_based",
    "raw_diff",
    "hall_vs_miss",
    "holistic",
]
# Where the weights of errors come from: all 1, words of their types, or the judge's own levels.
Severity = Literal["off", "type", "judge"]

_COUNT_ERRORS = ("normalized_diff", "normalized_a_only", "a_only", "raw_diff")
_MOST_JUDGES = 64


@dataclass(frozen=True)
class RubricConfig(Settings):
    """Criteria of each image that the caption is to meet (RubiCap)."""

    # Rubrics of the images, a .jsonl file of `balcap data rubrics`; default: DATA.rubrics.jsonl
    # beside the data. Scenes have their own.
    file: str = ""
    # Criteria of scenes: what a caption of the base policy fails of the reference ("failed"), or
    # all that the reference tells ("all").
    scene: SceneCriteria = "failed"
    room = "reward.rubric."


@dataclass(frozen=True)
class ClaimsConfig(Settings):
    """Units of a caption that several judges verify (FEEDQUILL-style)."""

    # Models at the endpoint that verify, by name; none given: the one of reward.judge.model, which
    # splits the captions in any case.
    judges: tuple[str, ...] = ()
    # A unit is correct where more than half of the judges say so ("majority"), or to the share that
    # say so ("mean").
    vote: Vote = "majority"
    room = "reward.claims."

    def check(self) -> None:
        self._require(
            len(set(self.judges)) == len(self.judges),
            "judges",
            "names a model twice, whose votes would be the same",
            "name each once.",
        )
        self._require(
            all(name.strip() and name.isprintable() for name in self.judges),
            "judges",
            "holds characters that no name has, or an empty name",
        )
        self._require(
            len(self.judges) <= _MOST_JUDGES, "judges", f"must be at most {_MOST_JUDGES} models"
        )


@dataclass(frozen=True)
class ClaimDiffConfig(Settings):
    """Differences of a caption and the reference (ClaimDiff-RL)."""

    # Way from differences to a number: the six of the published code, of which normalized_a_only is
    # the example of its README, or "holistic", its baseline: one mark from 0 to 10.
    mode: Mode = "normalized_diff"
    # Weights 1, 1.25 and 1.6 of errors by their severity: none ("off"), by words in their types
    # ("type"), or by the levels that the judge gives ("judge").
    severity: Severity = "off"
    # Factor below 1 of captions with more than one "or", "possibly" and the like in 90 words.
    ambiguity: bool = False
    room = "reward.claim_diff."

    def check(self) -> None:
        self._require(
            self.severity == "off" or self.mode in _COUNT_ERRORS,
            "severity",
            f"has no effect with {self.room}mode={self.mode!r}, which counts no errors",
            "leave it at off.",
        )


@dataclass(frozen=True)
class RubricsConfig(Settings):
    """Rubrics of all images of a data file as in RubiCap, written once by a model that compares a
    starting policy's captions with those of several teachers; resumable.
    """

    data: Path  # The data file.
    # Captions of the policy to start from: {"id", "caption"} rows or one object {id: caption}.
    start: Path
    # The committee: files of captions like `start`, names of models at the endpoint, or MODEL@URL
    # for one at another endpoint.
    teachers: tuple[str, ...] = ()
    # The file to write; default: DATA.rubrics.jsonl, where training finds it.
    out: Path | None = None
    # Environment variable with the key of endpoints other than judge.base_url, if they need one.
    teacher_key_env: str = "BALCAP_TEACHER_KEY"
    max_bad_images: int = 10  # Most unreadable images; one more stops the command.
    # The writer.
    judge: JudgeConfig = field(default_factory=lambda: JudgeConfig(kind="llm"))

    def check(self) -> None:
        self._at_least(0, "max_bad_images")
        require_endpoint(self.judge)
        self._require(
            bool(self.teachers), "teachers", "is empty, and criteria are what teachers agree on",
            "name files of captions or models with --teachers.",
        )  # fmt: skip
        self._require(
            len(set(self.teachers)) == len(self.teachers),
            "teachers",
            "names a teacher twice, who would agree with itself",
            "name each once.",
        )
