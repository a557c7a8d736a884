"""What scores captions in a run, judge and reward functions: now or in the background, its costs
counted.

One batch is scored at a time, in the order in which they were handed in; a judge or a function that
is no good at being called from two threads never is.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from balcap_jax.data.examples import Example
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
      spent: by name, see `MeteredJudge.lap`; empty for a judge that costs nothing.
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
      totals: what the run has spent on the judge, by name, earlier starts included.
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
        for name in self.totals:
            self.totals[name] += spent[name]
        return Answered(verdicts, scores, spent, self._judge.last_failures)
