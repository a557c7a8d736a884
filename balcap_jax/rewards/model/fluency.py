"""Fluency by a frozen language model: from the logprobs of a caption's tokens to a score.

The likelier the better would make every caption the blandest one. So the score is 1 for whatever is
as likely as what people write of these photos, and falls only below. What counts is the worst
window of a few tokens: one wrong word is not hidden by many right ones, and saying a thing again,
which a model finds likely, makes no window better.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from balcap_jax.data.examples import Example
from balcap_jax.data.visible_text import visible
from balcap_jax.errors import UserError
from balcap_jax.rewards.verdicts import Judge, Verdict

WINDOW = 4  # tokens
QUANTILE = 0.1  # of the references that are less likely than what scores 1
FEWEST = 20  # references that a fit needs

# Texts -> logprobs in nats of the tokens of each, in the order of the texts, without an image; none
# for a text without tokens.
TextLogprobs = Callable[[Sequence[str]], Sequence[Float[np.ndarray, " t"]]]


class Fluent(NamedTuple):
    """What is fluent in the words of some data.

    Attributes:
      level: worst window, in nats per token, from which on the score is 1.
      spread: nats per token below it at which the score has fallen to 1/e.
      references: that it was fitted on.
    """

    level: float = math.nan
    spread: float = math.nan
    references: int = 0


def worst_window(logprobs: Float[np.ndarray, " t"]) -> float:
    """The lowest mean logprob of WINDOW tokens in a row, in nats per token; of all tokens where
    there are fewer. NaN for no tokens, or where one is not a number.
    """
    values = np.asarray(logprobs, np.float64)
    if not values.size or np.isnan(values).any():
        return math.nan
    width = min(WINDOW, len(values))
    return float(np.lib.stride_tricks.sliding_window_view(values, width).mean(axis=1).min())


def fit(logprobs: Iterable[Float[np.ndarray, " t"]]) -> Fluent:
    """What is fluent, by the tokens' logprobs of references.

    Raises:
      UserError: fewer than FEWEST of them have tokens with finite logprobs.
    """
    worst = np.array([worst_window(each) for each in logprobs])
    worst = worst[np.isfinite(worst)]
    if len(worst) < FEWEST:
        raise UserError(
            f"judge.fluency needs {FEWEST} references to know what is fluent, and the first "
            f"examples have {len(worst)} that the language model can read; add references, or set "
            "--judge.fluency rules."
        )
    level, middle = np.quantile(worst, (QUANTILE, 0.5))
    # References that are all alike have no spread of their own.
    return Fluent(float(level), max(float(middle - level), 0.1), len(worst))


def fluency(logprobs: Float[np.ndarray, " t"], fluent: Fluent) -> float:
    """The score in [0, 1] of a caption by its tokens' logprobs: 1 from the level on, exponentially
    less below it. 0 for a caption without tokens; NaN, no signal, where a logprob is not a number.
    """
    if not len(logprobs):
        return 0.0
    below = (worst_window(logprobs) - fluent.level) / fluent.spread
    return math.nan if math.isnan(below) else math.exp(min(0.0, below))


class FluentJudge:
    """A judge whose linguistic quality is a language model's as well: each of its parts is
    multiplied by the fluency. A caption whose logprobs are no numbers has no verdict.

    Args:
      judge: of everything else.
      logprobs: of the language model.
      name: its name, for messages.
    """

    def __init__(self, judge: Judge, logprobs: TextLogprobs, *, name: str):
        self._judge, self._logprobs, self.name = judge, logprobs, name
        self.fluent = Fluent()

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """One verdict per pair."""
        assert self.fluent.references, "fit comes first"
        verdicts = self._judge(examples, captions)
        logprobs = self._logprobs([visible(caption) for caption in captions])
        return [
            None if verdict is None else _with_fluency(verdict, fluency(each, self.fluent))
            for verdict, each in zip(verdicts, logprobs, strict=True)
        ]

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """Those of the judge."""
        return self._judge.reference_units(example)

    # ---- fitted to data, see `FittedJudge`

    def fit(self, examples: Sequence[Example]) -> None:
        """Takes the references of examples for what is fluent.

        Raises:
          UserError: see `fit`.
        """
        texts = [visible(text) for e in examples for text in e.all_references if text.strip()]
        self.fluent = fit(self._logprobs(list(dict.fromkeys(texts))))

    def told(self) -> list[str]:
        """See `FittedJudge.told`."""
        level, spread, count = self.fluent
        return [
            f"fluency by {self.name}: 1 where no {WINDOW} tokens in a row are below {level:.2f} "
            f"nats per token, 0.37 at {level - spread:.2f} ({count} references)"
        ]

    def state(self) -> dict[str, Any]:
        """See `FittedJudge.state`."""
        return self.fluent._asdict()

    def record(self) -> dict[str, Any]:
        """See `FittedJudge.record`."""
        return {"fluency": self.fluent._asdict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `FittedJudge.restore`."""
        self.fluent = Fluent(**state)


def _with_fluency(verdict: Verdict, value: float) -> Verdict | None:
    if math.isnan(value):
        return None
    return verdict._replace(
        clarity=verdict.clarity * value,
        fluency=verdict.fluency * value,
        coherency=verdict.coherency * value,
    )
