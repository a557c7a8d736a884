"""The batches of supervised training, made by threads while the device works."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from balcap_jax.data.lessons import Answers, Lessons
from balcap_jax.data.loading import Draw, StepLoader
from balcap_jax.data.order import NO_EXTENT, Extent
from balcap_jax.data.prompts.answers import AnswerEncoder, Text
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Prompts, Row


class Supervised(NamedTuple):
    """The rows of a batch that this host holds, as numpy arrays.

    Attributes:
      tokens, mask: the texts of each example, see `AnswerEncoder`.
    """

    prompts: Prompts
    tokens: Int[np.ndarray, "b g c"]
    mask: Bool[np.ndarray, "b g c"]


class SupervisedLoader(StepLoader[Supervised]):
    """Batches by step; see `StepLoader`."""

    def __init__(self, lessons: Lessons, processor: Processor, encoder: AnswerEncoder, **options):
        super().__init__(lessons.source, processor, **options)
        self._lessons, self._encoder = lessons, encoder

    def _prepare(self, draw: Draw) -> tuple[Row, list[Text]]:
        return prepared(self._lessons.at(draw), self.processor, self._encoder)

    def _join(self, parts: list[Future[Any]], least: Extent) -> Supervised:
        made = [part.result() for part in parts]
        return join(made, self.processor, self._encoder, least=least)


def prepared(
    lesson: Answers, processor: Processor, encoder: AnswerEncoder
) -> tuple[Row, list[Text]]:
    """Prompt and texts before padding.

    Raises:
      UserError: the example makes no prompt or has nothing to learn.
    """
    example = lesson.example
    encoder.check(example)
    row = encoder.questions.row(example) if example.questions else processor.row(example)
    texts = encoder.texts(example, lesson.answers)
    length = int(row.positions.max()) + max(len(text.ids) for text in texts)
    most = processor.config.text.max_position_embeddings
    if length >= most:
        raise UserError(
            f"Example {example.id!r} takes {length + 1} positions with its answer, and the policy "
            f"has max_position_embeddings={most}; shrink its images with --data.max-pixels, cut "
            "its answers with --max-new-tokens, or remove it."
        )
    return row, texts


def join(
    rows: Sequence[tuple[Row, list[Text]]],
    processor: Processor,
    encoder: AnswerEncoder,
    *,
    least: Extent = NO_EXTENT,
) -> Supervised:
    """Such rows as a batch, padded to `least` or more."""
    tokens, mask = encoder.pad([texts for _, texts in rows])
    return Supervised(processor.pad([row for row, _ in rows], least=least), tokens, mask)
