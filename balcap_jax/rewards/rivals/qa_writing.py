"""Questions about images, written by a model and kept where answering them takes the image.

CapRL's recipe (arXiv:2509.22647): a writer that sees the image makes five multiple-choice
questions; a second model answers each in several orders of its options, with the image and without;
a question is kept where it is right with the image more often than `keep_above`, and without it
less often than `keep_below`. With the image there is a further option, that none is right. The
words are ours, and the writer answers in JSON where theirs does in Markdown.
"""

import asyncio
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from balcap_jax.config.questions import QuestionsConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.accounting import listing
from balcap_jax.rewards.llm.answer_text import BadAnswer, parse_object
from balcap_jax.rewards.llm.images import SentImage
from balcap_jax.rewards.llm.request_form import Sampling
from balcap_jax.rewards.rivals.asker import Asker
from balcap_jax.rewards.rivals.qa_questions import LETTERS, Question, read_question

VERSION = "1"  # of the words below; a test knows them

NONE_OF_THEM = "None of the above"
_WRITE = """\
You write exam questions about an image that you are shown. Write {count} multiple-choice \
questions that are hard and that only somebody who sees the image can answer: about objects, \
attributes, counts, positions, relations, actions and text in it. Each has four short options, of \
which exactly one is right, and the wrong ones are as likely as the right one for somebody who \
does not see the image. No question gives away the answer of another, and no option says "all" or \
"none of the above".

Answer with one JSON object with the field "questions", a list of objects with the fields \
"question", "choices" (four strings without letters) and "answer" (the letter of the right one, A \
for the first), and nothing else."""
_HERE = "Here is the image."
_ANSWER = """\
Question: {question}
Answer with the letter of the right option alone."""
_GUESS = """\
Answer the question, although you do not see the image that it is about.
Question: {question}
Answer with the letter of the most likely option alone."""
_LETTER = re.compile("[A-I]")


class Written(NamedTuple):
    """A question with the share of right answers to it.

    Attributes:
      visual, blind: with the image and without.
    """

    question: Question
    visual: float
    blind: float


class QuestionWriter:
    """Writes and tries questions; see `written`.

    Raises:
      UserError: `openai` is not installed, or a cache cannot be used.
    """

    def __init__(self, config: QuestionsConfig):
        self._config = config
        self._asker = Asker(config.judge)
        self._writer = self._asker.client("questions", version=VERSION)
        self._answerer = self._asker.client("questions", version=VERSION, judge=config.answering)

    @property
    def last_failures(self) -> str:
        """Why images have no questions."""
        return listing(self._asker.failures)

    def written(self, examples: Sequence[Example]) -> list[list[Written] | None]:
        """The questions about each image, those that are not kept among them; None where a call
        failed.
        """
        return self._asker.all([partial(self._of, e) for e in examples], what="questions for")

    def kept(self, written: Sequence[Written]) -> tuple[Question, ...]:
        """Those that pass the filter."""
        config = self._config
        return tuple(
            made.question
            for made in written
            if made.visual > config.keep_above and made.blind < config.keep_below
        )

    def close(self) -> None:
        """Ends what is under way; twice is fine."""
        self._asker.close()

    async def _of(self, example: Example) -> list[Written]:
        image = await self._asker.image(example)
        judge, count = self._config.judge, self._config.questions
        questions = await self._writer.ask(
            "write",
            (_WRITE.format(count=count), _HERE),
            partial(_read, count=count),
            sampling=Sampling(judge.temperature, judge.max_tokens),
            image=image,
            schema=_schema(),
        )
        tried = [self._tried(question, shown) for question in questions for shown in (image, None)]
        accuracies = await asyncio.gather(*tried)
        pairs = zip(questions, accuracies[::2], accuracies[1::2], strict=True)
        return [Written(*pair) for pair in pairs]

    async def _tried(self, question: Question, image: SentImage | None) -> float:
        """The share of right answers over the rotations of the options."""
        rotations = range(self._config.rotations)
        right = await asyncio.gather(*(self._answer(question, by, image) for by in rotations))
        return sum(right) / len(right)

    async def _answer(self, question: Question, by: int, image: SentImage | None) -> bool:
        count = len(question.choices)
        shown = [(place + by) % count for place in range(count)]
        options = [question.choices[place] for place in shown]
        options += [] if image is None else [NONE_OF_THEM]
        lines = [f"{letter}) {o}" for letter, o in zip(LETTERS, options, strict=False)]
        text = "\n".join([question.text, *lines])
        answering = self._config.answering
        letter = await self._answerer.ask(
            "answer",
            ("", (_GUESS if image is None else _ANSWER).format(question=text)),
            _letter,
            sampling=Sampling(answering.temperature, answering.max_tokens),
            image=image,
        )
        return letter == LETTERS[shown.index(question.correct)]


def _letter(text: str) -> str:
    """The first letter from A to I; "" for an answer without one, which is a wrong one.

    Raises:
      BadAnswer: there is no answer.
    """
    if not text.strip():
        raise BadAnswer("a reply without a text")
    found = _LETTER.search(text)
    return found[0] if found else ""


def _read(text: str, *, count: int) -> tuple[Question, ...]:
    """The questions of an answer, at most `count`, each once; those that are none are left out.

    Raises:
      BadAnswer: there is none.
    """
    listed = parse_object(text, ("questions",)).get("questions")
    found: dict[str, Question] = {}
    for item in listed if isinstance(listed, list) else ():
        try:
            question = read_question(item, where="the answer")
        except UserError:
            continue
        found.setdefault(question.text, question)
    if not found:
        raise BadAnswer("no question with choices and an answer among them")
    return tuple(found.values())[:count]


def _schema() -> dict[str, Any]:
    text = {"type": "string"}
    item = {
        "question": text,
        "choices": {"type": "array", "items": text},
        "answer": {"type": "string", "enum": list("ABCD")},
    }
    return {
        "type": "object",
        "properties": {"questions": {"type": "array", "items": _closed(item)}},
        "required": ["questions"],
        "additionalProperties": False,
    }


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
