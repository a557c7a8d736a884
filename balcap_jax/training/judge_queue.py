"""What scores captions in a run, judge, rivals and reward functions: now or in the background, its
costs counted.

A `ConcurrentJudge` has every batch from the moment that it is handed in. All else scores one batch
at a time, in that order: a judge or a function that is no good at being called from two threads
never is.
"""

import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as NotYetError
from contextlib import suppress
from typing import NamedTuple

from balcap_jax.data.examples import Example
from balcap_jax.parallel.processes import gather_list
from balcap_jax.rewards.callables import (
    Completions,
    FunctionScores,
    RewardFunctions,
    TrainerState,
)
from balcap_jax.rewards.rivals.rivals import Rivals, joined
from balcap_jax.rewards.verdicts import (
    ConcurrentJudge,
    ExpectingJudge,
    Judge,
    Judgement,
    MeteredJudge,
    Verdict,
)
from balcap_jax.training.interrupts import Stopped

_LOOK = 0.2  # seconds between looks for an interrupt
_LAST = 5.0  # seconds in which what is being judged may end
_SUMS = (
    "captions", "calls", "cache_hits", "failures", "prompt_tokens", "completion_tokens", "price",
)  # fmt: skip


class Answered(NamedTuple):
    """What was found of a batch, and what that took.

    Attributes:
      verdicts: [n], flat; None where the judge failed, and everywhere without a judge.
      others: the rewards that are not the judge's: of rivals, then of reward functions.
      spent: on this host, by name, see `MeteredJudge.lap`, and on how many `captions`; empty for
        what costs nothing.
      reasons: why some have no verdict, or no reward of rivals.
      calls: (how many, the seconds of all of them together) of what `judge.concurrency` and
        `reward.judge.concurrency` bound, by these names, on this host.
    """

    verdicts: list[Verdict | None]
    others: FunctionScores
    spent: dict[str, float]
    reasons: str
    calls: dict[str, tuple[float, float]]


class Coming(NamedTuple):
    """Captions that the judge waits for.

    Attributes:
      captions: one to tell for each example.
      judgement: of all of them; None where there is none, because other hosts judge all.
    """

    captions: list[Future[str]]
    judgement: Future[Judgement] | None

    def tell(self, number: int, caption: str) -> None:
        """The judge may begin with this one; telling it twice is fine."""
        with suppress(InvalidStateError):  # told before, or nobody waits for it any more
            self.captions[number].set_result(caption)


class JudgeQueue:
    """Judge, rivals and reward functions, which can work in the background.

    Args:
      judge: None where no reward is a judge's.
      background: `hand_in` returns at once; else it returns when all is scored.
      stop: once it is set, nothing is waited for.

    Attributes:
      totals: what the run has spent on judging, by name, earlier starts and all hosts included,
        as it was when the hosts last told one another; see `share_totals`.
    """

    def __init__(
        self,
        judge: Judge | None,
        functions: RewardFunctions | None = None,
        rivals: Rivals | None = None,
        *,
        background: bool,
        stop: threading.Event | None = None,
    ):
        self._judge = judge
        self.functions = RewardFunctions(()) if functions is None else functions
        self._background, self._worker = background, _Worker()
        self._stop = threading.Event() if stop is None else stop
        self.rivals = Rivals({}, None, failed=math.nan) if rivals is None else rivals
        metered = isinstance(judge, MeteredJudge) or self.rivals.metered
        self.totals = dict.fromkeys(_SUMS, 0.0) if metered else {}
        self._before = dict(self.totals)  # of earlier starts
        self._here = dict(self.totals)  # of this host in this start
        self._counting = threading.Lock()
        self._reasons = ""  # why captions of the last batch have no verdict

    @property
    def stopped(self) -> bool:
        """Whether `stop` is set."""
        return self._stop.is_set()

    @property
    def judges(self) -> bool:
        """Whether there is a judge."""
        return self._judge is not None

    @property
    def other_names(self) -> tuple[str, ...]:
        """Names of the rewards that are not the judge's."""
        return (*self.rivals.names, *self.functions.names)

    def expect(self, examples: Sequence[Example]) -> Coming | None:
        """Captions to come, one of each example, which the judge takes one by one as they are told;
        None where it takes only whole batches, on all hosts alike: they sample by one program.
        """
        if not isinstance(self._judge, ExpectingJudge):
            return None
        captions: list[Future[str]] = [Future() for _ in examples]
        return Coming(captions, self._judge.expect(examples, captions) if examples else None)

    def hand_in(
        self, completions: Completions, state: TrainerState, coming: Coming | None = None
    ) -> Future[Answered]:
        """The answer to come; errors of reward functions come out of it, too.

        Args:
          coming: of these completions, where they were expected.
        """
        future = self._begin(completions, state, coming)
        if not self._background:
            with suppress(Exception):  # it comes out where the answer is waited for
                self._wait(future)
        return future

    def wait(self, answer: Future[Answered]) -> Answered:
        """What comes out of `hand_in`.

        Raises:
          RewardFunctionError: see `RewardFunctions`.
          Stopped: `stop` was set before it was there.
        """
        self._wait(answer)
        if not answer.done():
            raise Stopped
        return answer.result()

    def score(self, completions: Completions, state: TrainerState) -> Answered:
        """The answer at once, after those to batches that were handed in before.

        Raises:
          RewardFunctionError, Stopped: see `wait`.
        """
        return self.wait(self._begin(completions, state))

    def _wait(self, answer: Future[Answered]) -> None:
        """Returns when the answer is there, or `stop` is set."""
        while not (answer.done() or self._stop.is_set()):
            with suppress(NotYetError):
                answer.exception(timeout=_LOOK)

    def reference_units(self, example: Example) -> tuple[str, ...]:
        """See `Judge.reference_units`; none without a judge."""
        return () if self._judge is None else self._judge.reference_units(example)

    @property
    def last_failures(self) -> str:
        """Why captions of the last batch have no verdict, or no reward of rivals."""
        return "; ".join(filter(None, (self._reasons, self.rivals.last_failures)))

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
            "judge/price_per_1000": self.price_per_1000,
            "judge/price_projected": price * steps / max(step, 1),
        }

    @property
    def price_per_1000(self) -> float:
        """What 1,000 captions have cost so far, those of evaluations and the units of references
        among it; NaN before the first.
        """
        captions = self.totals["captions"]
        return 1000 * self.totals["price"] / captions if captions else math.nan

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
        self.rivals.close()
        self._worker.close()
        self.functions.close()

    def _begin(
        self, completions: Completions, state: TrainerState, coming: Coming | None = None
    ) -> Future[Answered]:
        begun = None
        if coming is not None:
            begun = coming.judgement
            for number, caption in enumerate(completions.captions):
                coming.tell(number, caption)
        elif isinstance(self._judge, ConcurrentJudge) and completions.captions:
            begun = self._judge.start(completions.examples, completions.captions)
        return self._worker.submit(lambda: self._ask(completions, state, begun))

    def _ask(
        self, completions: Completions, state: TrainerState, begun: Future[Judgement] | None
    ) -> Answered:
        others = joined(self.rivals(completions, state), self.functions(completions, state))
        verdicts, spent = self._verdicts(completions, begun)
        by_setting = {"judge.concurrency": spent} if spent else {}
        if self.rivals.metered:
            by_setting["reward.judge.concurrency"] = self.rivals.lap()
        if not by_setting:
            return Answered(verdicts, others, {}, "", {})
        whole = {**_of_all([*by_setting.values()]), "captions": len(completions.captions)}
        with self._counting:
            for name in self._here:
                self._here[name] += whole[name]
        calls = {
            name: (of_one["calls"], of_one["call_seconds"])
            for name, of_one in by_setting.items()
            if "call_seconds" in of_one  # a judge on the devices makes none
        }
        return Answered(verdicts, others, whole, self.last_failures, calls)

    def _verdicts(
        self, completions: Completions, begun: Future[Judgement] | None
    ) -> tuple[list[Verdict | None], dict[str, float]]:
        """Of all captions, and what they cost; empty where the judge costs nothing."""
        judge = self._judge
        if judge is None or not completions.captions:  # other hosts may judge all
            return [None] * len(completions.captions), {}
        if begun is not None:
            assert isinstance(judge, MeteredJudge)
            found = begun.result()
            self._reasons = found.reasons
            # And what was asked beside the batches, such as the units of single references.
            return found.verdicts, _of_all([found.spent, judge.lap()])
        verdicts = judge(completions.examples, completions.captions)
        if not isinstance(judge, MeteredJudge):
            return verdicts, {}
        self._reasons = judge.last_failures
        return verdicts, judge.lap()


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


class _Worker:
    """A thread that makes one call after the other.

    No pool of `concurrent.futures`: those keep the process until their last call has returned, and
    a judge may take minutes.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Future, Callable[[], Answered]] | None]
        self._calls = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, call: Callable[[], Answered]) -> Future[Answered]:
        assert not self._closed
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
            self._thread.start()
        future: Future[Answered] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """Gives up the calls that have not begun, and waits a moment for the one that has."""
        self._closed = True
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join(timeout=_LAST)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if self._closed or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del item, future, call  # or they would stay until the next call
