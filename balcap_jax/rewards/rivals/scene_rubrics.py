"""Rubrics of scenes from their truth, judged by the exact rules: no model writes or judges them."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from balcap_jax.rewards.rivals.rubrics import Criterion
from balcap_jax.rewards.rivals.scene_facts import Fact, severity_of, told
from balcap_jax.scenes.captions import FaultRates, faulty_caption
from balcap_jax.scenes.world import Scene


class SceneCriterion(NamedTuple):
    """A criterion of which the rules know what it asks for.

    Attributes:
      says: the caption is to tell the fact; False: it is not to tell it.
    """

    fact: Fact
    says: bool
    text: str
    weight: float

    @property
    def criterion(self) -> Criterion:
        return Criterion(self.text, self.weight)


@lru_cache(maxsize=4096)
def scene_rubric(
    scene: Scene, reference: str, start: str | None = None
) -> tuple[SceneCriterion, ...]:
    """The criteria of a scene: facts of its reference that `start` does not tell, and what it tells
    that is not so; without `start`, all facts of the reference.
    """
    known = told(reference, scene)
    given = None if start is None else told(start, scene)
    criteria = [
        SceneCriterion(
            fact, says=True, text=f"Says: {known.texts[fact]}.", weight=severity_of(fact)
        )
        for fact, true in known.true.items()
        if true and (given is None or fact not in given.true)
    ]
    if given is not None:
        criteria += [
            SceneCriterion(
                fact,
                says=False,
                text=f"Does not say: {given.texts[fact]}.",
                weight=severity_of(fact),
            )
            for fact, true in given.true.items()
            if not true
        ]
    return tuple(criteria)


@lru_cache(maxsize=4096)
def starting_caption(scene: Scene) -> str:
    """A caption as the base policy writes them before it is trained on rewards: of the corpus that
    it learned from, and a function of the scene alone.
    """
    return str(faulty_caption(scene, random.Random(f"rubric/{scene}"), FaultRates()))


def met(criteria: Sequence[SceneCriterion], caption: str, scene: Scene) -> tuple[bool, ...]:
    """Which criteria a caption meets."""
    facts = told(caption, scene).true
    return tuple((criterion.fact in facts) == criterion.says for criterion in criteria)
