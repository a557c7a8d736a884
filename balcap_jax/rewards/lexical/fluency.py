"""Fluency by a frozen language model: from the log-probabilities of a caption's tokens to a score.

The likelier the better would make every caption the blandest one. So the score is 1 for whatever is
as likely as what people write of these photos, and falls only below. What counts is the worst
window of a few tokens: one wrong word is not hidden by many right ones, and saying a thing again,
which a model finds likely, makes no window better. No model is here: its log-probabilities, without
the image, are handed in.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.verdicts import Judge, Verdict

WINDOW = 4  # tokens
QUANTILE = 0.1  # of the references that are less likely than what scores 1
FEWEST = 20  # references that a calibration needs

# Texts -> log-probabilities in nats of the tokens of each, in the order of the texts, without an
# image; an empty list for a text without tokens.
Scorer = Callable[[Sequence[str]], Sequence[Sequence[float]]]


class Calibration(NamedTuple):
    """What is fluent in the words of these data.

    Attributes:
      level: worst window, in nats per token, from which on the score is 1.
      spread: nats per token below it at which the score has fallen to 1/e.
    """

    level: float
    spread: float


def worst_window(logprobs: Sequence[float]) -> float:
    """The lowest mean log-probability of WINDOW tokens in a row, in nats per token; of all tokens
    where there are fewer. NaN for no tokens or where one is not a number.
    """
    values = np.asarray(logprobs, np.float64)
    if not values.size or np.isnan(values).any():
        return math.nan
    width = min(WINDOW, len(values))
    return float(np.lib.stride_tricks.sliding_window_view(values, width).mean(axis=1).min())


def calibrate(logprobs: Iterable[Sequence[float]]) -> Calibration:
    """The calibration by the tokens' log-probabilities of references.

    Raises:
      UserError: fewer than FEWEST of them have tokens with finite log-probabilities.
    """
    worst = np.array([worst_window(each) for each in logprobs])
    worst = worst[np.isfinite(worst)]
    if len(worst) < FEWEST:
        raise UserError(
            f"judge.fluency needs {FEWEST} references to know what is fluent, and the data have "
            f"{len(worst)} that the language model can read; add references, or set "
            "--judge.fluency rules."
        )
    level, middle = np.quantile(worst, (QUANTILE, 0.5))
    # References that are all alike have no spread of their own.
    return Calibration(float(level), max(float(middle - level), 0.1))


def fluency(logprobs: Sequence[float], calibration: Calibration) -> float:
    """The score in [0, 1] of a caption by its tokens' log-probabilities: 1 from the calibration's
    level on, exponentially less below it. 0 for a caption without tokens; NaN, no signal, where a
    log-probability is not a number.
    """
    if not len(logprobs):
        return 0.0
    below = (worst_window(logprobs) - calibration.level) / calibration.spread
    return math.nan if math.isnan(below) else math.exp(min(0.0, below))


def as_record(calibration: Calibration) -> dict[str, float]:
    """The calibration as a run's JSON holds it."""
    return calibration._asdict()


def from_record(record: Mapping[str, Any]) -> Calibration:
    """The calibration of a run.

    Raises:
      UserError: it is not one.
    """
    found = {name: record.get(name) for name in Calibration._fields}
    finite = all(isinstance(v, int | float) and math.isfinite(v) for v in found.values())
    if not finite or found["spread"] <= 0:
        raise UserError(
            f"the run's calibration of judge.fluency is {dict(record)}, and it needs a finite "
            "level and a spread above 0; start a new run with --name."
        )
    return Calibration(float(found["level"]), float(found["spread"]))


class FluentJudge:
    """A judge whose linguistic quality is also a language model's: each of its parts is multiplied
    by the fluency. A caption whose log-probabilities are no numbers has no verdict.
    """

    def __init__(self, judge: Judge, scorer: Scorer, calibration: Calibration):
        self._judge, self._scorer, self._calibration = judge, scorer, calibration

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """One verdict per pair."""
        verdicts = self._judge(examples, captions)
        logprobs = self._scorer(captions)
        return [
            None if verdict is None else _with_fluency(verdict, fluency(each, self._calibration))
            for verdict, each in zip(verdicts, logprobs, strict=True)
        ]

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """Those of the judge."""
        return self._judge.reference_units(example)


def _with_fluency(verdict: Verdict, value: float) -> Verdict | None:
    if math.isnan(value):
        return None
    return verdict._replace(
        clarity=verdict.clarity * value,
        fluency=verdict.fluency * value,
        coherency=verdict.coherency * value,
    )
