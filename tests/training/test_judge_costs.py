"""What several hosts spend on the judge is counted together, and its limits are shared out."""

import asyncio
import math

import pytest

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.examples import Example
from balcap_jax.parallel import exchange
from balcap_jax.rewards.callables import Completions, TrainerState
from balcap_jax.rewards.llm.accounting import Ledger
from balcap_jax.rewards.llm.client import Client
from balcap_jax.rewards.llm.limits import Pace
from balcap_jax.training.judge_queue import JudgeQueue

STATE = TrainerState(global_step=0, max_steps=10, epoch=0.0, is_world_process_zero=True)
SPENT = {
    "calls": 3, "errors": 1, "cache_hits": 1, "failures": 0, "prompt_tokens": 30,
    "completion_tokens": 20, "price": 0.5, "latency_p50": 0.2, "latency_p95": math.nan,
}  # fmt: skip
OTHERS = {
    "calls": 5, "errors": 0, "cache_hits": 0, "failures": 2, "prompt_tokens": 50,
    "completion_tokens": 40, "price": 1.0, "latency_p50": 0.1, "latency_p95": 0.4,
}  # fmt: skip
SUMS = {
    name: OTHERS[name]
    for name in ("calls", "cache_hits", "failures", "prompt_tokens", "completion_tokens", "price")
}


class Metered:
    """A judge of these costs for each batch, and no verdicts."""

    last_failures = ""

    def __call__(self, examples, captions):
        return [None] * len(captions)

    def reference_units(self, example):
        return ()

    def lap(self):
        return dict(SPENT)

    def close(self):
        pass


class Two:
    """The exchange of two processes; what the other gives stands here."""

    processes = 2

    def __init__(self, process: int, *others):
        self.process, self._others = process, list(others)

    def gather(self, value, *, tag):
        assert tag == "gather_list"
        return [value, self._others.pop(0)]


def judged(queue: JudgeQueue) -> dict[str, float]:
    example = Example(id="a", image=None, prompt="", reference="")
    completions = Completions(examples=[example], captions=[["a"]], ids=[[[1]]])
    return queue.score(completions, STATE).spent


def test_costs_are_those_of_all_hosts(monkeypatch):
    queue = JudgeQueue(Metered(), background=False)
    queue.restore({"calls": 100, "price": 10.0, "captions": 45.0})  # on every host
    spent = judged(queue)
    monkeypatch.setattr(exchange, "current", Two(0, [SUMS], [OTHERS]))
    row = queue.costs(spent, step=2, steps=10)
    assert row["judge/calls"] == 8
    assert row["judge/errors"] == 1
    assert row["judge/failures"] == 2
    assert row["judge/latency_p50"] == 0.2  # of the slowest host
    assert row["judge/latency_p95"] == 0.4
    assert row["judge/price"] == 1.5
    assert row["judge/price_total"] == 11.5
    assert row["judge/price_projected"] == 57.5
    # 45 captions of before and one of this host; the other tells of none: 11.5 for 46.
    assert row["judge/price_per_1000"] == 250.0
    assert queue.totals == {
        "captions": 46,
        "calls": 108, "cache_hits": 1, "failures": 2, "prompt_tokens": 80, "completion_tokens": 60,
        "price": 11.5,
    }  # fmt: skip
    # The next step: what was counted is not counted again.
    judged(queue)
    twice = {name: 2 * value for name, value in SUMS.items()}
    monkeypatch.setattr(exchange, "current", Two(0, [twice]))
    queue.share_totals()
    assert queue.totals["calls"] == 116


def test_a_host_that_has_judged_nothing_reports_the_others(monkeypatch):
    queue = JudgeQueue(Metered(), background=False)
    monkeypatch.setattr(exchange, "current", Two(1, [SUMS], [OTHERS]))
    row = queue.costs({}, step=1, steps=1)
    assert {name: row[f"judge/{name}"] for name in OTHERS} == OTHERS


def test_alone_the_costs_are_its_own():
    queue = JudgeQueue(Metered(), background=False)
    row = queue.costs(judged(queue), step=1, steps=2)
    assert row["judge/calls"] == 3
    assert math.isnan(row["judge/latency_p95"])
    assert row["judge/price_projected"] == 1.0
    judged(queue)
    queue.share_totals()
    assert queue.totals["calls"] == 6


def test_a_judge_without_costs_asks_no_other_host(monkeypatch):
    class Free:
        def __call__(self, examples, captions):
            return [None] * len(captions)

        def reference_units(self, example):
            return ()

    monkeypatch.setattr(exchange, "current", Two(0))
    queue = JudgeQueue(Free(), background=False)
    queue.share_totals()
    assert queue.costs({}, step=1, steps=1) == {}


# Limits -----------------------------------------------------------------------------------------


def seconds_of(calls: int, *, per_minute: float) -> float:
    """How long it takes until this many calls have begun."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def take() -> None:
        pace = Pace(per_minute, clock=lambda: now, sleep=sleep)
        for _ in range(calls):
            await pace.take()

    asyncio.run(take())
    return now


@pytest.mark.parametrize("per_minute", [1, 60])
def test_hosts_together_keep_to_the_rate(per_minute, monkeypatch):
    alone = seconds_of(7, per_minute=per_minute)
    assert alone == pytest.approx(6 * 60 / per_minute)
    monkeypatch.setattr(exchange, "current", Two(1))
    assert seconds_of(7, per_minute=per_minute) == pytest.approx(2 * alone)
    assert seconds_of(7, per_minute=0) == 0


@pytest.mark.parametrize(
    ("process", "concurrency", "part"), [(0, 5, 3), (1, 5, 2), (0, 1, 1), (1, 1, 1), (1, 64, 32)]
)
def test_hosts_share_the_calls_under_way(process, concurrency, part, monkeypatch):
    monkeypatch.setattr(exchange, "current", Two(process))
    judge = JudgeConfig(kind="llm", model="m", concurrency=concurrency)
    client = Client(judge, Ledger(prompt_price=0, completion_price=0))
    assert client._slots.free == part
