"""The rewards of ClaimDiff-RL (arXiv:2605.20278): from counted differences to a number.

Caption A is the policy's, caption B the reference. Of d differences, the judge finds A wrong in a
of them and B wrong in b. With severities, a and b are sums of their weights and `heaviest` is the
largest weight, so that all rewards stay in [0, 1].
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from balcap_jax.config.claim_rivals import Mode, Severity
from balcap_jax.rewards.rivals.differences import Check, ClaimError, Comparison, Winner

SEVERITY_WEIGHTS: Mapping[int, float] = MappingProxyType({1: 1.0, 2: 1.25, 3: 1.6})
MOST_ERRORS = 10  # from which on `a_only` and `raw_diff` change no more

# Severities by the type, where the judge gives none: the first line with a word of the type.
_BY_TYPE = (
    (3, "hallucination mismatch incorrect wrong nonexistent fabricated overreach".split()),
    (2, "omission missing truncation incomplete partial error".split()),
    (1, "style aesthetic misinterpretation subjective".split()),
)
_OTHERWISE = 2
_HEDGE = re.compile(
    r"\b(?:or|and/or|possibly|appears to|might be|could be|likely)\b|\w+/\w+", re.IGNORECASE
)


def normalized_diff(a: float, b: float, d: int, *, heaviest: float = 1.0) -> float:
    """1/2 - 1/2 (a - b) / d; 1/2 without differences (a comment in their code says 1)."""
    return 0.5 - 0.5 * _within(-1.0, (a - b) / (heaviest * d), 1.0) if d else 0.5


def normalized_a_only(
    a: float,
    d: int,
    *,
    heaviest: float = 1.0,
    alpha: float = 2.0,
    eps: float = 0.05,
    decay: float = 4.0,
    most: int = 10,
) -> float:
    """[eps + (1 - eps)(1 - a/d)^alpha] exp(-a / decay) (0.7 + 0.3 min(1, log(1 + d) / log(1 +
    most))); 1 without differences.
    """
    if not d:
        return 1.0
    errors = a / heaviest
    share = _within(0.0, errors / d, 1.0)
    difficulty = min(1.0, math.log(1 + d) / math.log(1 + most))
    core = eps + (1 - eps) * (1 - share) ** alpha
    return core * math.exp(-errors / decay) * (0.7 + 0.3 * difficulty)


def a_only(a: float, *, heaviest: float = 1.0) -> float:
    """1 - a / 10, at least 0."""
    return 1.0 - _within(0.0, a / (heaviest * MOST_ERRORS), 1.0)


def judgment_based(wins_a: int, wins_b: int, d: int, winner: Winner) -> float:
    """1/2 + 1/2 j with j = (A's - B's) / d, 0.1 more or less for the overall winner, within [-1,
    1]; 1/2 without differences, whoever wins.

    Args:
      wins_a, wins_b: differences in which the image supports that caption alone.
    """
    if not d:
        return 0.5
    extra = {"A": 0.1, "B": -0.1, "Tie": 0.0}[winner]
    return 0.5 + 0.5 * _within(-1.0, (wins_a - wins_b) / d + extra, 1.0)


def raw_diff(a: float, b: float) -> float:
    """1/2 - 1/2 (a - b) / 10, within [0, 1]."""
    return 0.5 - 0.5 * _within(-1.0, (a - b) / MOST_ERRORS, 1.0)


def hall_vs_miss(hallucinations: int, omissions: int, d: int) -> float:
    """1 - (hallucinations + omissions) / d, at least 0; 1 without differences."""
    return 1.0 - _within(0.0, (hallucinations + omissions) / d, 1.0) if d else 1.0


def ambiguity_factor(caption: str, *, decay: float = 0.1, words_per_hedge: float = 90.0) -> float:
    """exp(-decay max(0, n - words / words_per_hedge)) with n hedges ("or", "possibly", "red/pink")
    in the caption, of which every 90 words may have one.
    """
    hedges, words = len(_HEDGE.findall(caption)), len(caption.split())
    return math.exp(-decay * max(0.0, hedges - words / words_per_hedge))


def severity_of(error: ClaimError, severity: Severity) -> int:
    """The level of an error, 1 (minor) to 3 (major): the judge's where that is asked for and
    given, otherwise by words in the type.
    """
    if severity == "judge" and error.severity is not None:
        return error.severity
    kind = error.kind.lower()
    return next((level for level, words in _BY_TYPE if any(w in kind for w in words)), _OTHERWISE)


class Counts(NamedTuple):
    """What the rewards are made of.

    Attributes:
      a, b: errors of each caption, or the sum of their weights.
      heaviest: the largest weight that an error can have.
    """

    a: float
    b: float
    d: int
    wins_a: int
    wins_b: int
    winner: Winner
    heaviest: float = 1.0


def counts_of(found: Comparison, *, severity: Severity = "off") -> Counts:
    """The counts of a comparison, weighted by severities where they are asked for."""
    told = found.differences
    return Counts(
        a=_weight((difference.error_a for difference in told), severity),
        b=_weight((difference.error_b for difference in told), severity),
        d=len(told),
        wins_a=sum(difference.judgment == "A" for difference in told),
        wins_b=sum(difference.judgment == "B" for difference in told),
        winner=found.winner,
        heaviest=1.0 if severity == "off" else max(SEVERITY_WEIGHTS.values()),
    )


def _weight(errors: Iterable[ClaimError | None], severity: Severity) -> float:
    made = [error for error in errors if error is not None]
    if severity == "off":
        return float(len(made))
    return sum(SEVERITY_WEIGHTS[severity_of(error, severity)] for error in made)


_OF_COMPARISON: dict[str, Callable[[Counts], float]] = {
    "normalized_diff": lambda c: normalized_diff(c.a, c.b, c.d, heaviest=c.heaviest),
    "normalized_a_only": lambda c: normalized_a_only(c.a, c.d, heaviest=c.heaviest),
    "a_only": lambda c: a_only(c.a, heaviest=c.heaviest),
    "judgment_based": lambda c: judgment_based(c.wins_a, c.wins_b, c.d, c.winner),
    "raw_diff": lambda c: raw_diff(c.a, c.b),
}


def comparison_reward(found: Comparison, mode: Mode, *, severity: Severity = "off") -> float:
    """The reward of a comparison, in [0, 1], in a mode that counts errors or judgments."""
    return _OF_COMPARISON[mode](counts_of(found, severity=severity))


def checks_reward(found: tuple[Check, ...]) -> float:
    """The reward of the mode `hall_vs_miss`, in [0, 1]: a claim of A that the image belies is a
    hallucination, a fact of B that A leaves out an omission.
    """
    return hall_vs_miss(
        sum(check.verification == "false" for check in found),
        sum(check.kind == "missing_fact" for check in found),
        len(found),
    )


def _within(least: float, value: float, most: float) -> float:
    return max(least, min(value, most))
