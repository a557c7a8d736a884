"""`claim_diff`: a caption compared with the reference, difference by difference (ClaimDiff-RL,
arXiv:2605.20278).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

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
    counts_of,
)
from balcap_jax.rewards.rivals.claim_diff_questions import CHECK, COMPARE, HOLISTIC, holistic_score
from balcap_jax.rewards.rivals.differences import Check, Comparison, checks, comparison
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
        """See `RivalReward`; `claim_diff_counts` of the samples says what the number is made of."""
        pairs = list(zip(completions.examples, completions.captions, strict=True))
        if self._asker is None:
            found = [self._by_rules(example, caption) for example, caption in pairs]
        else:
            jobs = [lambda e=e, c=c: self._asked(e, c) for e, c in pairs]
            found = self._asker.all(jobs, what="comparison for")
        values = [
            math.nan if one is None else one.reward * self._factor(caption)
            for one, (_, caption) in zip(found, pairs, strict=True)
        ]
        told = ["" if one is None else one.told for one in found]
        return FunctionScores(
            np.array(values, np.float32).reshape(-1, 1), {"claim_diff_counts": told}, {}
        )

    def check(self, example: Example) -> None:
        """See `RivalReward`."""
        if not example.reference.strip():
            raise UserError(
                f"the example {example.id!r} has no reference caption, and claim_diff compares "
                "with it; give the data captions."
            )

    def _factor(self, caption: str) -> float:
        return ambiguity_factor(caption) if self._settings.ambiguity else 1.0

    def _by_rules(self, example: Example, caption: str) -> "_Scored | None":
        if example.scene is None:
            return None
        if self._settings.mode == "hall_vs_miss":
            return _of_checks(scene_checks(caption, example.reference, example.scene))
        return self._of_comparison(scene_comparison(caption, example.reference, example.scene))

    async def _asked(self, example: Example, caption: str) -> "_Scored":
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

    def _question(self) -> "tuple[Part, Callable[[str], _Scored]]":
        """What is asked, and what is made of its answer."""
        if self._settings.mode == "hall_vs_miss":
            return CHECK, lambda text: _of_checks(checks(text))
        if self._settings.mode == "holistic":
            return HOLISTIC, lambda text: _Scored(holistic_score(text), "")
        return COMPARE, lambda text: self._of_comparison(comparison(text))

    def _of_comparison(self, found: Comparison) -> "_Scored":
        mode, severity = self._settings.mode, self._settings.severity
        counts = counts_of(found)
        told = f"{counts.a:.0f} wrong, reference {counts.b:.0f} wrong, {counts.d} differences"
        return _Scored(comparison_reward(found, mode, severity=severity), told)


class _Scored(NamedTuple):
    """The reward of a caption, and in words what it is made of."""

    reward: float
    told: str


def _of_checks(found: tuple[Check, ...]) -> _Scored:
    wrong = sum(check.verification == "false" for check in found)
    missing = sum(check.kind == "missing_fact" for check in found)
    told = f"{wrong} wrong, {missing} left out, {len(found)} differences"
    return _Scored(checks_reward(found), told)
