"""`claim_diff`: a caption compared with the reference, difference by difference (ClaimDiff-RL,
arXiv:2605.20278).
"""

import math
from collections.abc import Callable

import numpy as np

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import Completions, FunctionScores
from balcap_jax.rewards.llm.prompts import clean, quoted
from balcap_jax.rewards.llm.questions import Part
from balcap_jax.rewards.rivals.claim_diff_modes import (
    ambiguity_factor,
    checks_reward,
    comparison_reward,
)
from balcap_jax.rewards.rivals.claim_diff_questions import CHECK, COMPARE, HOLISTIC, holistic_score
from balcap_jax.rewards.rivals.differences import checks, comparison
from balcap_jax.rewards.rivals.protocol import Setup
from balcap_jax.rewards.rivals.scene_differences import scene_checks, scene_comparison

VERSION = "1"  # of the questions and of the rules for scenes


def make(setup: Setup, name: str) -> "ClaimDiff":
    """The reward of the settings `reward.claim_diff`."""
    del name
    return ClaimDiff(setup)


class ClaimDiff:
    """See the module; the mode says how differences become a number.

    Raises:
      UserError: a setting that the exact rules of scenes do not have.
    """

    def __init__(self, setup: Setup):
        self._settings, self._asker = setup.reward.claim_diff, setup.asker
        self._client = None
        if self._asker is not None:
            self._client = self._asker.client("claim_diff", version=VERSION)
        elif self._settings.mode == "holistic":
            raise UserError(
                "reward.claim_diff.mode='holistic' is an impression, which the exact rules of "
                "scenes have none of; set --reward.judge.kind llm, or choose another mode."
            )

    def __call__(self, completions: Completions, *, step: int) -> FunctionScores:
        """See `RivalReward`."""
        pairs = list(zip(completions.examples, completions.captions, strict=True))
        if self._asker is None:
            found = [self._by_rules(example, caption) for example, caption in pairs]
        else:
            jobs = [lambda e=e, c=c: self._asked(e, c) for e, c in pairs]
            found = self._asker.all(jobs, what="comparison for")
        values = [
            math.nan if value is None else value * self._factor(caption)
            for value, (_, caption) in zip(found, pairs, strict=True)
        ]
        return FunctionScores(np.array(values, np.float32).reshape(-1, 1), {}, {})

    def check(self, example: Example) -> None:
        """See `RivalReward`."""
        if not example.reference.strip():
            raise UserError(
                f"the example {example.id!r} has no reference caption, and claim_diff compares "
                "with it; give the data captions."
            )

    def _factor(self, caption: str) -> float:
        return ambiguity_factor(caption) if self._settings.ambiguity else 1.0

    def _by_rules(self, example: Example, caption: str) -> float | None:
        if example.scene is None:
            return None
        if self._settings.mode == "hall_vs_miss":
            return checks_reward(scene_checks(caption, example.reference, example.scene))
        return comparison_reward(
            scene_comparison(caption, example.reference, example.scene),
            self._settings.mode,
            severity=self._settings.severity,
        )

    async def _asked(self, example: Example, caption: str) -> float:
        assert self._asker is not None
        assert self._client is not None
        part, value = self._question()
        told = {"caption_a": clean(caption), "caption_b": clean(example.reference)}
        return await self._client.ask(
            part.name,
            (part.instructions, quoted(told)),
            value,
            image=await self._asker.image(example),
        )

    def _question(self) -> tuple[Part, Callable[[str], float]]:
        """What is asked, and the number in its answer."""
        if self._settings.mode == "hall_vs_miss":
            return CHECK, lambda text: checks_reward(checks(text))
        if self._settings.mode == "holistic":
            return HOLISTIC, holistic_score
        return COMPARE, lambda text: comparison_reward(
            comparison(text), self._settings.mode, severity=self._settings.severity
        )
