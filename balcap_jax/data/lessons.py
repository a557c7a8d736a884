"""What supervised training learns at each place of its order: an example, and answers to it."""

import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from balcap_jax.data.examples import Example, Source
from balcap_jax.data.loading import Draw
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.scenes.captions import NO_FAULTS, FaultRates, faulty_caption

T = TypeVar("T")


class Answers(NamedTuple):
    """An example with the answers to learn at one time; they share its prompt and its images.

    Where the example has questions, these are the ones to learn, and `answers` are theirs.
    """

    example: Example
    answers: list[str]


class Lessons(Protocol):
    """Random access to what is learned, a function of the draw alone."""

    source: Source

    def at(self, draw: Draw) -> Answers:
        """What is learned there."""
        ...


class RowLessons:
    """The answers of rows: `count` of an example's references or questions at a time, all of them
    in turn over the epochs.
    """

    def __init__(self, source: Source, *, count: int):
        self.source, self._count = source, count

    def at(self, draw: Draw) -> Answers:
        """See `Lessons`."""
        return answers_of(self.source[draw.place], visit=draw.visit, count=self._count)


def answers_of(example: Example, *, visit: int = 0, count: int | None = None) -> Answers:
    """What is learned of an example of data at the visit of that number: its next `count` questions
    or references, each once; None: all of them.
    """
    if example.questions:
        questions = tuple(in_turn(example.questions, visit=visit, count=count))
        return Answers(example._replace(questions=questions), [q.answer for q in questions])
    return Answers(example, in_turn(example.all_references, visit=visit, count=count))


def in_turn(items: Sequence[T], *, visit: int, count: int | None) -> list[T]:
    """The next `count` of some at the visit of that number, each once."""
    count = len(items) if count is None else min(count, len(items))
    return [items[(visit * count + i) % len(items)] for i in range(count)]


class SceneLessons:
    """Scenes with captions of the fault corpus, so that a policy has the faults real captioners
    have.

    Args:
      seed: of scenes and captions.
      count: captions of a scene.
      easy_steps: first steps, on scenes of one cluster with faultless captions.
    """

    def __init__(self, source: Source, *, seed: int, count: int, easy_steps: int):
        self.source, self._seed, self._count, self._easy_steps = source, seed, count, easy_steps
        self._easy = SceneSource("train", len(source), seed=seed, clusters=1)

    def at(self, draw: Draw) -> Answers:
        """See `Lessons`."""
        easy = draw.step < self._easy_steps
        example = (self._easy if easy else self.source)[draw.place]
        rates = NO_FAULTS if easy else FaultRates()
        return Answers(
            example, corpus_captions(example, f"{self._seed}/{draw.step}", self._count, rates)
        )


def corpus_captions(example: Example, draw: str, count: int, rates: FaultRates) -> list[str]:
    """`count` captions of the fault corpus for the scene of an example."""
    assert example.scene is not None
    rng = random.Random(f"corpus/{draw}/{example.id}")
    return [str(faulty_caption(example.scene, rng, rates)) for _ in range(count)]
