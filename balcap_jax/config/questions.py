"""Settings of `balcap data questions`; the comment beside a field is its text in `--help`."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from balcap_jax.config.base import Settings
from balcap_jax.config.judge import JudgeConfig

MOST_QUESTIONS = 50  # of an image; one answer holds them all


@dataclass(frozen=True)
class AnswererConfig(JudgeConfig):
    """The model that answers the questions with and without the image."""

    room = "answerer."


@dataclass(frozen=True)
class QuestionsConfig(Settings):
    """Multiple-choice questions about images, written by a model that sees them and kept where a
    second one needs the image to answer (CapRL's recipe); resumable.
    """

    data: Path  # The .jsonl file of {"image", "caption"} rows.
    # The .jsonl file to write: the rows that have questions now, as --data.path reads them. Images
    # without a question that was kept go to OUT.rejected.jsonl.
    out: Path
    questions: int = 5  # Questions to write about each image.
    rotations: int = 4  # Orders of the options in which each question is answered.
    keep_above: float = 0.75  # Accuracy with the image that a question must exceed.
    keep_below: float = 0.25  # Accuracy without the image that a question must stay below.
    max_bad_images: int = 10  # Most unreadable images; one more stops the command.
    # The writer.
    judge: JudgeConfig = field(
        default_factory=lambda: JudgeConfig(kind="llm", temperature=0.1, max_tokens=2048)
    )
    # The answerer; without a model of its own it is the writer.
    answerer: AnswererConfig = field(
        default_factory=lambda: AnswererConfig(kind="llm", temperature=0.1, max_tokens=4)
    )

    @property
    def answering(self) -> JudgeConfig:
        """The settings of the model that answers."""
        if self.answerer.model:
            return self.answerer
        sampling = {n: getattr(self.answerer, n) for n in ("temperature", "max_tokens")}
        return replace(self.judge, **sampling)

    def check(self) -> None:
        self._at_least(0, "max_bad_images")
        self._at_least(1, "questions", "rotations")
        self._at_most(MOST_QUESTIONS, "questions")
        self._at_most(8, "rotations")
        for name in ("keep_above", "keep_below"):
            self._require(0 <= getattr(self, name) <= 1, name, "must be a share from 0 to 1")
        for judge in (self.judge, self.answerer):
            judge._require(  # noqa: SLF001
                judge.kind == "llm",
                "kind",
                "neither writes nor answers questions",
                f"leave --{judge.room}kind out.",
            )
        self.judge._require(  # noqa: SLF001
            bool(self.judge.model), "model", "names no model to ask", "name it by --judge.model."
        )
        self._require(
            self.out.resolve() != self.data.resolve(),
            "out",
            "is the data file itself",
            "give another OUT.",
        )
