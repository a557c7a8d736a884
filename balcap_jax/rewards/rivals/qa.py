"""qa_utility: how well a judge answers questions about an image from its caption alone (CapRL,
arXiv:2509.22647); qa_utility_length: with a term of the length (CapRL++, arXiv:2606.09393).

    R(c) = scale / m  sum_{i=1..m} [answer of the judge to q_i, from c alone, is the right one]
    q_1 ... q_m drawn with replacement from the questions of the image            (m = 8)
    R_length(c) = R(c) + w L(tokens of c)
    L(n) = 1 up to n = full, 0 from n = zero on, linear in between    (w = .2, 2048, 3072)
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from balcap_jax.config.rivals import QAConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import Completions, FunctionScores
from balcap_jax.rewards.rivals import qa_scene
from balcap_jax.rewards.rivals.protocol import Setup
from balcap_jax.rewards.rivals.qa_questions import (
    LETTERS,
    Question,
    QuestionFile,
    questions_of,
)

VERSION = "1"  # of the rules and the prompt: other ones make other rewards

CANNOT_ANSWER = "Can not answer based on the caption"
NO_OPTION = -1


class Draw(NamedTuple):
    """A question as it is put to the judge.

    Attributes:
      place: of the question among those of its image.
      options: as they are shown, the one that the caption does not tell among them.
      shown: place in the question's choices of each option but that one.
      correct: place among the options.
      seed: for the sampling of the answer.
    """

    place: int
    options: tuple[str, ...]
    shown: tuple[int, ...]
    correct: int
    seed: int

    @property
    def cannot_answer(self) -> bool:
        """Whether the last option is that the caption does not tell."""
        return len(self.options) > len(self.shown)

    @property
    def letters(self) -> str:
        """Of the options. The last one of a question with `cannot_answer` is F, as in the code of
        CapRL, unless that is taken.
        """
        count = len(self.shown)
        return LETTERS[:count] + LETTERS[max(count, 5)] * self.cannot_answer


class Answerer(Protocol):
    """Answers questions from captions alone."""

    def __call__(self, asked: Sequence[tuple[Example, str, Question, Draw]]) -> list[int | None]:
        """The place of the chosen option for each question; `NO_OPTION` where there is no such
        option; None where the judge failed.
        """
        ...


class QAUtility:
    """The reward of `qa_utility` and, with `length`, of `qa_utility_length`."""

    def __init__(self, setup: Setup, *, answerer: Answerer, length: bool):
        self._setup, self.qa = setup, setup.reward.qa
        self._answerer = answerer
        self._length = setup.reward.qa_length if length else None
        self._file = QuestionFile(Path(self.qa.file)) if self.qa.file else None

    def check(self, example: Example) -> None:
        """Refuses data without questions.

        Raises:
          UserError: see `_questions`.
        """
        self._questions(example)

    def __call__(self, completions: Completions, *, step: int) -> FunctionScores:
        """See `RivalReward`; `qa_answers` of the samples says which draws were right."""
        asked: list[tuple[Example, str, Question, Draw]] = []
        for example, caption in zip(completions.examples, completions.captions, strict=True):
            questions = self._questions(example)
            drawn = draws(questions, self.qa, key=(self._setup.seed, step, example.id, caption))
            asked += [(example, caption, questions[draw.place], draw) for draw in drawn]
        answers = self._answerer(asked)
        right = [
            None if found is None else found == draw.correct
            for found, (_, _, _, draw) in zip(answers, asked, strict=True)
        ]
        size = self.qa.draws
        by_caption = [right[i : i + size] for i in range(0, len(right), size)]
        rewards = [
            self._reward(of_caption, tokens=len(ids))
            for of_caption, ids in zip(by_caption, completions.ids, strict=True)
        ]
        return FunctionScores(
            np.array(rewards, np.float32)[:, None],
            {"qa_answers": ["".join(map(_mark, of_caption)) for of_caption in by_caption]},
            {},
        )

    def _reward(self, right: Sequence[bool | None], *, tokens: int) -> float:
        if None in right:  # what is left would be the mean of other questions
            return float("nan")
        utility = self.qa.scale * float(np.mean(right))
        if (qa_length := self._length) is None:
            return utility
        term = length_term(tokens, full=qa_length.full, zero=qa_length.zero)
        return utility + qa_length.weight * term

    def _questions(self, example: Example) -> tuple[Question, ...]:
        """The questions of an image: those of the data, or of the scene's truth.

        Raises:
          UserError: there are none.
        """
        exact = self._setup.asker is None  # which knows the questions of scenes alone
        if exact and example.scene is None:
            raise UserError(
                f"the image {example.id!r} has no scene, and exact rules answer questions about "
                "scenes alone; set --reward.judge.kind llm with a --reward.judge.model."
            )
        found = None if exact else questions_of(example, self._file)
        if found is None and example.scene is not None:
            found = tuple(q.asked for q in qa_scene.scene_questions(example.scene))
        if found is None:
            where = self.qa.file or 'a column "reward_model" of the data'
            raise UserError(
                f"the image {example.id!r} has 0 questions in {where}; write some with `balcap "
                "data questions`, or name their file with --reward.qa.file."
            )
        return found


def draws(questions: Sequence[Question], qa: QAConfig, *, key: tuple) -> list[Draw]:
    """Questions drawn with replacement; a function of the arguments.

    Args:
      key: seed of the run, step, id of the image, caption.
    """
    rng = random.Random("\0".join(map(str, key)))
    found = []
    for _ in range(qa.draws):
        place = rng.randrange(len(questions))
        question = questions[place]
        shown = list(range(len(question.choices)))
        if qa.shuffle:
            rng.shuffle(shown)
        options = [question.choices[i] for i in shown]
        options += [CANNOT_ANSWER] * qa.cannot_answer
        correct = shown.index(question.correct)
        found.append(Draw(place, tuple(options), tuple(shown), correct, rng.randrange(2**31)))
    return found


def length_term(tokens: int, *, full: int, zero: int) -> float:
    """1 up to `full` tokens, 0 from `zero` on, linear in between (CapRL++)."""
    return min(1.0, max(0.0, (zero - tokens) / (zero - full)))


class SceneAnswerer:
    """Answers the questions of scenes by what the caption asserts; see `qa_scene`."""

    def __call__(self, asked: Sequence[tuple[Example, str, Question, Draw]]) -> list[int | None]:
        return [self._one(*one) for one in asked]

    def _one(self, example: Example, caption: str, question: Question, draw: Draw) -> int:
        assert example.scene is not None
        known = qa_scene.scene_questions(example.scene)[draw.place]
        found = qa_scene.answer(known, caption, example.scene, draw.shown)
        if found is not None:
            return found
        if draw.cannot_answer:
            return len(draw.shown)
        return qa_scene.guess(question.text, draw.options, caption)


def make(setup: Setup, name: str) -> QAUtility:
    """The reward `name` of the settings.

    Raises:
      UserError: the file of questions cannot be read or holds what is none.
    """
    answerer: Answerer = SceneAnswerer()
    if setup.asker is not None:
        from balcap_jax.rewards.rivals.qa_llm import LLMAnswerer  # noqa: PLC0415

        answerer = LLMAnswerer(setup.asker, version=VERSION, lenient=setup.failed == 0)
    return QAUtility(setup, answerer=answerer, length=name == "qa_utility_length")


def _mark(right: bool | None) -> str:  # noqa: FBT001
    return "-" if right is None else str(int(right))
