"""What supervised training learns at each place of its order: an example, and answers to it."""

import random
from typing import NamedTuple, Protocol

from balcap_jax.data.examples import Example, Source
from balcap_jax.data.loading import Draw
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.scenes.captions import NO_FAULTS, FaultRates, faulty_caption


class Answers(NamedTuple):
    """An example with the answers to learn at one time; they share its prompt and its images."""

    example: Example
    answers: list[str]


class Lessons(Protocol):
    """Random access to what is learned, a function of the draw alone."""

    source: Source

    def at(self, draw: Draw) -> Answers:
        """What is learned there."""
        ...


class RowLessons:
    """The answers of rows: `count` of an example's references at a time, all of them in turn over
    the epochs.
    """

    def __init__(self, source: Source, *, count: int):
        self.source, self._count = source, count

    def at(self, draw: Draw) -> Answers:
        """See `Lessons`."""
        example = self.source[draw.place]
        return Answers(example, in_turn(example, visit=draw.visit, count=self._count))


def in_turn(example: Example, *, visit: int, count: int) -> list[str]:
    """The references of an example at the visit of that number: the next `count`, each once."""
    references = example.all_references
    count = min(count, len(references))
    return [references[(visit * count + i) % len(references)] for i in range(count)]


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
