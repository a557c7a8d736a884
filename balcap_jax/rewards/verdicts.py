"""What every judge returns, and the protocol it follows.

A judge that could not judge a caption returns None for it: no signal, never a zero.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, runtime_checkable

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError

FITTED_ON = 64  # examples that a run fits a judge to


class Assertion(NamedTuple):
    """One atomic statement of a caption.

    Attributes:
      text: the words of the caption it was read from.
      verified: true of the image.
      pointable: refers to something that can be pointed at in the image.
      chance: that it is both, from 0 to 1, where the judge cannot know; None where it does.
      weight: how much it says, beside the other assertions of its caption.
      truth: that it is true, whatever it points at, from 0 to 1; where `chance` is given.
    """

    text: str
    verified: bool
    pointable: bool
    chance: float | None = None
    weight: float = 1.0
    truth: float | None = None

    @property
    def counted(self) -> bool:
        """Counts for utility-aware precision: verified and pointable."""
        return self.verified and self.pointable

    @property
    def value(self) -> float:
        """What it adds to precision: its chance, or 1 or 0 from a judge that knows."""
        return float(self.counted) if self.chance is None else self.chance

    @property
    def value_if_pointable(self) -> float:
        """`value` as if it pointed at something: only its truth counts.

        Raises:
          UserError: the judge gives the chance of both and not that of the truth.
        """
        if self.chance is None:
            return float(self.verified)
        if self.truth is None:
            raise UserError(
                f"reward.pointability=False needs the truth of a statement apart, and the judge "
                f"gives {self.text!r:.60} only the chance {self.chance:.2f} of truth and "
                "pointability together; let it give Assertion.truth, too, or leave it at True."
            )
        return self.truth


class Verdict(NamedTuple):
    """A judge's findings on one caption of one image.

    Attributes:
      assertions: every atomic statement of the caption, in order.
      covered: one entry per reference unit of the example: does the caption cover it.
      unit_weights: how much each unit says, beside the others; empty where all say the same.
      clarity, fluency, coherency: in [0, 1].
      asked: weight of the covered units from which on recall is 1, where that is less than all: of
        several references nobody need tell everything.
    """

    assertions: tuple[Assertion, ...]
    covered: tuple[bool, ...]
    clarity: float
    fluency: float
    coherency: float
    unit_weights: tuple[float, ...] = ()
    asked: float | None = None


@runtime_checkable
class Judge(Protocol):
    """Judges many captions at once, so that a remote judge can work concurrently."""

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """One verdict per (example, caption) pair; None where the judge failed (no signal)."""
        ...

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """The reference units of `example` in words, in the order of `Verdict.covered`.

        May be called from another thread while captions are judged.
        """
        ...


@runtime_checkable
class MeteredJudge(Judge, Protocol):
    """A judge that costs time and money, and can fail.

    Attributes:
      last_failures: why captions of the last call have no verdict, "" where all have one.
    """

    last_failures: str

    def lap(self) -> dict[str, float]:
        """What was spent since the last lap, by name; among them `price`."""
        ...

    def close(self) -> None:
        """Ends what is under way."""
        ...


class Judgement(NamedTuple):
    """What a metered judge found of a batch.

    Attributes:
      verdicts: one per caption; None where the judge failed (no signal).
      spent: as of `MeteredJudge.lap`.
      reasons: why captions have no verdict, "" where all have one.
    """

    verdicts: list[Verdict | None]
    spent: dict[str, float]
    reasons: str


@runtime_checkable
class ConcurrentJudge(MeteredJudge, Protocol):
    """A judge that takes several batches at once."""

    def start(self, examples: Sequence[Example], captions: Sequence[str]) -> Future[Judgement]:
        """Begins to judge and returns at once; batches that were started earlier go first."""
        ...


@runtime_checkable
class ExpectingJudge(ConcurrentJudge, Protocol):
    """A judge that begins before the captions are there."""

    def expect(
        self, examples: Sequence[Example], captions: Sequence[Future[str]]
    ) -> Future[Judgement]:
        """As `start`, of captions to come: each is judged as soon as it is told."""
        ...


@runtime_checkable
class FittedJudge(Judge, Protocol):
    """A judge that is fitted to the data of a run before its first step."""

    def fit(self, examples: Sequence[Example]) -> None:
        """Fits it to examples to train on.

        Raises:
          UserError: it cannot be fitted to them, or is not fit to judge.
        """
        ...

    def told(self) -> list[str]:
        """What was fitted, in lines for people."""
        ...

    def state(self) -> dict[str, Any]:
        """What was fitted, and what else a resumed run needs to judge by the same bits, as JSON."""
        ...

    def record(self) -> dict[str, Any]:
        """What a run writes down of the fit, as JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up `state`."""
        ...
