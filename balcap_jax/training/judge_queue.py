"""The judge as a run uses it: now or in the background, its costs counted.

One batch is judged at a time, in the order in which they were handed in; a judge that is no good at
being called from two threads never is.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.rewards.verdicts import Judge, MeteredJudge, Verdict

_SUMS = ("calls", "cache_hits", "failures", "prompt_tokens", "completion_tokens", "price")


class Answered(NamedTuple):
    """What the judge said of a batch, and what that took.

    Attributes:
      verdicts: [B G], flat.
      spent: by name, see `MeteredJudge.lap`; empty for a judge that costs nothing.
      reasons: why some have no verdict.
    """

    verdicts: list[Verdict | None]
    spent: dict[str, float]
    reasons: str


class JudgeQueue:
    """A judge, itself one (for evaluations), that can work in the background.

    Args:
      background: `hand_in` returns at once; else it returns when all is judged.

    Attributes:
      totals: what the run has spent, by name, earlier starts included.
    """

    def __init__(self, judge: Judge, *, background: bool):
        self._judge = judge
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="judge") if background else None
        self.totals = dict.fromkeys(_SUMS, 0.0) if isinstance(judge, MeteredJudge) else {}

    def hand_in(
        self, examples: Sequence[Example], captions: Sequence[Sequence[str]]
    ) -> Future[Answered]:
        """The answer to come on captions [B][G] of examples [B]."""
        pairs = [(e, c) for e, texts in zip(examples, captions, strict=True) for c in texts]
        batch = [example for example, _ in pairs], [caption for _, caption in pairs]
        if self._pool is not None:
            return self._pool.submit(self._ask, *batch)
        future: Future[Answered] = Future()
        future.set_result(self._ask(*batch))
        return future

    def __call__(
        self, examples: Sequence[Example], captions: Sequence[str]
    ) -> list[Verdict | None]:
        """The verdicts at once, after those of batches that were handed in before."""
        if self._pool is None:
            return self._ask(examples, captions).verdicts
        return self._pool.submit(self._ask, examples, captions).result().verdicts

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """See `Judge.reference_units`."""
        return self._judge.reference_units(example)

    @property
    def last_failures(self) -> str:
        """Why captions of the last batch have no verdict."""
        return self._judge.last_failures if isinstance(self._judge, MeteredJudge) else ""

    def costs(self, spent: dict[str, float], *, step: int, steps: int) -> dict[str, float]:
        """The metrics `judge/...` of a step: what it spent, the run so far, and the whole run."""
        if not self.totals:
            return {}
        price = self.totals["price"]
        return {
            **{f"judge/{name}": value for name, value in spent.items()},
            "judge/price_total": price,
            "judge/price_projected": price * steps / max(step, 1),
        }

    def restore(self, totals: dict[str, float]) -> None:
        """Goes on counting from what earlier starts of the run spent."""
        self.totals |= {name: totals[name] for name in self.totals if name in totals}

    def close(self) -> None:
        """Cancels what is being judged; twice is fine."""
        if isinstance(self._judge, MeteredJudge):
            self._judge.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _ask(self, examples: Sequence[Example], captions: Sequence[str]) -> Answered:
        # Other hosts may judge all that this one holds.
        verdicts = self._judge(examples, captions) if captions else []
        if not isinstance(self._judge, MeteredJudge):
            return Answered(verdicts, {}, "")
        spent = self._judge.lap()
        for name in self.totals:
            self.totals[name] += spent[name]
        return Answered(verdicts, spent, self._judge.last_failures)
