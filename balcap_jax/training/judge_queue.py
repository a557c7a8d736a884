"""What scores captions in a run, judge and reward functions: now or in the background, its costs
counted.

One batch is scored at a time, in the order in which they were handed in; a judge or a function that
is no good at being called from two threads never is.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.parallel.processes import gather_list
from balcap_jax.rewards.callables import (
    Completions,
    FunctionScores,
    RewardFunctions,
    TrainerState,
)
from balcap_jax.rewards.verdicts import Judge, MeteredJudge, Verdict

_SUMS = ("calls", "cache_hits", "failures", "prompt_tokens", "completion_tokens", "price")


class Answered(NamedTuple):
    """What was found of a batch, and what that took.

    Attributes:
      verdicts: [n], flat; None where the judge failed, and everywhere without a judge.
      functions: of the reward functions.
      spent: on this host, by name, see `MeteredJudge.lap`; empty for a judge that costs nothing.
      reasons: why some have no verdict.
    """

    verdicts: list[Verdict | None]
    functions: FunctionScores
    spent: dict[str, float]
    reasons: str


class JudgeQueue:
    """Judge and reward functions, which can work in the background.

    Args:
      judge: None where rewards are functions alone.
      background: `hand_in` returns at once; else it returns when all is scored.

    Attributes:
      totals: what the run has spent on the judge, by name, earlier starts and all hosts included,
        as it was when the hosts last told one another; see `share_totals`.
    """

    def __init__(
        self,
        judge: Judge | None,
        functions: RewardFunctions | None = None,
        *,
        background: bool,
    ):
        self._judge = judge
        self.functions = RewardFunctions(()) if functions is None else functions
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="judge") if background else None
        self.totals = dict.fromkeys(_SUMS, 0.0) if isinstance(judge, MeteredJudge) else {}
        self._before = dict(self.totals)  # of earlier starts
        self._here = dict(self.totals)  # of this host in this start
        self._counting = threading.Lock()

    @property
    def judges(self) -> bool:
        """Whether there is a judge."""
        return self._judge is not None

    def hand_in(self, completions: Completions, state: TrainerState) -> Future[Answered]:
        """The answer to come; errors of reward functions come out of it, too."""
        if self._pool is not None:
            return self._pool.submit(self._ask, completions, state)
        future: Future[Answered] = Future()
        try:
            future.set_result(self._ask(completions, state))
        except Exception as error:  # as a pool does; it comes out where the answer is waited for
            future.set_exception(error)
        return future

    def score(self, completions: Completions, state: TrainerState) -> Answered:
        """The answer at once, after those to batches that were handed in before.

        Raises:
          RewardFunctionError: see `RewardFunctions`.
        """
        if self._pool is None:
            return self._ask(completions, state)
        return self._pool.submit(self._ask, completions, state).result()

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """See `Judge.reference_units`; none without a judge."""
        return () if self._judge is None else self._judge.reference_units(example)

    @property
    def last_failures(self) -> str:
        """Why captions of the last batch have no verdict."""
        return self._judge.last_failures if isinstance(self._judge, MeteredJudge) else ""

    def costs(self, spent: dict[str, float], *, step: int, steps: int) -> dict[str, float]:
        """The metrics `judge/...` of a step: what it spent, the run so far, and the whole run.

        Of all hosts together, which all call this.
        """
        if not self.totals:
            return {}
        self.share_totals()
        price = self.totals["price"]
        return {
            **{f"judge/{name}": value for name, value in _of_all(gather_list([spent])).items()},
            "judge/price_total": price,
            "judge/price_projected": price * steps / max(step, 1),
        }

    def share_totals(self) -> None:
        """Brings `totals` up to date; all hosts call it."""
        if not self.totals:
            return
        with self._counting:
            here = dict(self._here)
        self.totals = _of_all([self._before, *gather_list([here])])

    def restore(self, totals: dict[str, float]) -> None:
        """Goes on counting from what earlier starts of the run spent, on all hosts."""
        self._before |= {name: totals[name] for name in self.totals if name in totals}
        self.totals = _of_all([self._before, self._here])

    def close(self) -> None:
        """Cancels what is being judged; twice is fine."""
        if isinstance(self._judge, MeteredJudge):
            self._judge.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.functions.close()

    def _ask(self, completions: Completions, state: TrainerState) -> Answered:
        examples, captions = completions.examples, completions.captions
        scores = self.functions(completions, state)
        # Other hosts may judge all that this one holds.
        if self._judge is None or not captions:
            return Answered([None] * len(captions), scores, {}, "")
        verdicts = self._judge(examples, captions)
        if not isinstance(self._judge, MeteredJudge):
            return Answered(verdicts, scores, {}, "")
        spent = self._judge.lap()
        with self._counting:
            for name in self._here:
                self._here[name] += spent[name]
        return Answered(verdicts, scores, spent, self._judge.last_failures)


def _of_all(spent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What hosts spent together: sums; of latencies, which have none, those of the slowest host."""
    names = list(dict.fromkeys(name for of_host in spent for name in of_host))
    values = {name: [of_host[name] for of_host in spent if name in of_host] for name in names}
    return {
        name: _largest(found) if name.startswith("latency") else sum(found)
        for name, found in values.items()
    }


def _largest(values: Sequence[float]) -> float:
    """NaN where all are."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)
