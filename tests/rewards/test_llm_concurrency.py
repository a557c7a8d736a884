"""Several batches at the judge at once: how long the device waits, on a clock that is simulated.

Time stands still while anything computes, and jumps to the next timer when nothing does.
"""

import asyncio
import json
import selectors
from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from judge_server import completion, judge

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import RolloutConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.rewards.llm.client import Client
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rewards.llm.limits import Slots
from balcap_jax.rewards.llm.replies import read
from balcap_jax.rewards.verdicts import ConcurrentJudge, ExpectingJudge
from balcap_jax.rollout.rollout import Caption
from balcap_jax.runs.stopwatch import Stopwatch
from balcap_jax.training.judge_queue import JudgeQueue
from balcap_jax.training.rollout_queue import RolloutQueue

LATENCY, STEP = 4.0, 5.0  # seconds of a call, and of the device
SOURCE = SceneSource("train", 200)


class Jumping(selectors.DefaultSelector):
    """Waits for nothing."""

    now = 0.0

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout:
            self.now += timeout
        return found


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop on a clock of its own."""

    def __init__(self):
        self._clock = Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


@pytest.fixture
def asked(monkeypatch) -> list[tuple[float, str]]:
    """When each call began, and what it was about; every call takes `LATENCY` of the clock."""
    calls: list[tuple[float, str]] = []

    async def create(client, asked, form):
        body = {"model": "m", **asked}
        text = next(
            part["text"]
            for part in body["messages"][1]["content"]
            if part.get("text", "")[:1] == "{"
        )
        calls.append((asyncio.get_running_loop().time(), text))
        await asyncio.sleep(LATENCY * (10 if "straggler" in text else 1))
        return read(json.dumps(completion(json.dumps(judge(body)), body)), key="")

    async def at_once(function, *args, **options):
        return function(*args, **options)

    loop = SimulatedLoop()
    monkeypatch.setattr(Client, "_create", create)
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: loop)
    monkeypatch.setattr(asyncio, "to_thread", at_once)
    monkeypatch.setattr("balcap_jax.rewards.llm.client.time.monotonic", loop.time)
    return calls


def judge_of(tmp_path, **settings) -> LLMJudge:
    return LLMJudge(
        JudgeConfig(kind="llm", model="m", cache=tmp_path / "cache.sqlite", **settings),
        clock=lambda: 0.0,
    )


def on_its_loop(judge: LLMJudge, coroutine):
    """The result of a coroutine that starts batches; only then the clock moves."""
    try:
        return judge._loop.run(coroutine)
    finally:
        judge.close()


def pairs_of(step: int, *, images: int, group: int):
    """Images that no step has had, and captions that no image has."""
    shown = [SOURCE[step * images + i] for i in range(images)]
    examples = [example for example in shown for _ in range(group)]
    return examples, [f"{e.reference} This is {n} of {step}." for n, e in enumerate(examples)]


def waited_share(judge: LLMJudge, *, overlap: int, images: int = 4, group: int = 16) -> float:
    """Of the steps after the first ones: the share in which the device waits for verdicts."""
    warm, steps = overlap + 1, overlap + 7

    async def run() -> float:
        loop, waiting, sampled, waited, began = asyncio.get_running_loop(), deque(), 0, 0.0, 0.0
        for step in range(steps):
            if step == warm:
                waited, began = 0.0, loop.time()
            while len(waiting) <= overlap:
                await asyncio.sleep(STEP / 2)  # the rollout
                waiting.append(judge.start(*pairs_of(sampled, images=images, group=group)))
                sampled += 1
            since = loop.time()
            found = await asyncio.wrap_future(waiting.popleft())
            assert None not in found.verdicts
            waited += loop.time() - since
            await asyncio.sleep(STEP / 2)  # the update
        return waited / (loop.time() - began)

    return on_its_loop(judge, run)


@pytest.mark.parametrize(
    ("overlap", "concurrency", "low", "high"),
    [
        # An eighth of 512 captions and of as many calls at once: 68 calls, units among them, of 4 s
        # in 5 s need 55.
        (4, 64, 0.0, 0.10),
        # On-policy: 4 s for the units of new images, then 4 s for the captions, at least.
        (0, 64, 0.61, 0.75),
        # An eighth of 64 at once: 68 x 4 / 8 = 34 s a step, of which the device works 5 s.
        (4, 8, 0.80, 0.90),
    ],
)
def test_the_device_waits_for_the_judge(tmp_path, asked, overlap, concurrency, low, high):
    share = waited_share(judge_of(tmp_path, concurrency=concurrency), overlap=overlap)
    print(f"overlap {overlap}, {concurrency} at once: the device waits {share:.1%}")
    assert low <= share <= high


def on_policy_seconds(judge: LLMJudge, *, told: bool) -> float:
    """From the first token of 64 captions, of which one ends every quarter of a second, to the last
    verdict.
    """
    examples, captions = pairs_of(0, images=4, group=16)

    async def run() -> float:
        loop = asyncio.get_running_loop()
        began, coming = loop.time(), [Future() for _ in captions]
        judgement = judge.expect(examples, coming) if told else None
        for caption, text in zip(coming, captions, strict=True):
            await asyncio.sleep(0.25)
            caption.set_result(text)
        judgement = judgement or judge.start(examples, captions)
        found = await asyncio.wrap_future(judgement)
        assert None not in found.verdicts
        assert found.spent["calls"] == 68
        return loop.time() - began

    return on_its_loop(judge, run)


@pytest.mark.parametrize(
    ("concurrency", "told", "seconds"),
    [
        # 16 s of decoding. Of a whole batch 4 s for the units and 4 s for all captions; of captions
        # that are told, 4 s for the last one.
        (64, False, 24.0),
        (64, True, 20.0),
        # 16 calls at once: 4 for units, then 16, 16, 16 and 16 captions. Told as they end, four a
        # second, no caption waits for another.
        (16, False, 36.0),
        (16, True, 20.0),
        # Four at once make one call a second, and 68 of them take 68 s, of which decoding hides 16.
        (4, False, 84.0),
        (4, True, 69.0),
    ],
)
def test_captions_that_are_told_as_they_end_are_judged_meanwhile(
    tmp_path, asked, concurrency, told, seconds
):
    took = on_policy_seconds(judge_of(tmp_path, concurrency=concurrency), told=told)
    print(f"{concurrency} at once, {'told as they end' if told else 'whole'}: {took:.0f} s")
    assert took == pytest.approx(seconds, abs=1.0)


def test_expected_captions_get_the_verdicts_of_a_call(tmp_path, asked):
    """Told in any order; a caption without a word, and one that stands there twice."""
    examples, captions = pairs_of(0, images=2, group=3)
    captions[1], captions[4] = "", captions[3]
    coming = [Future() for _ in captions]
    judge = judge_of(tmp_path)
    assert isinstance(judge, ExpectingJudge)

    async def run():
        judgement = judge.expect(examples, coming)
        for number in (4, 0, 5, 2, 1, 3):
            await asyncio.sleep(1)
            coming[number].set_result(captions[number])
        found = await asyncio.wrap_future(judgement)
        return found, await asyncio.wrap_future(judge.start(examples, captions))

    found, whole = on_its_loop(judge, run)
    assert found.verdicts == whole.verdicts
    assert found.spent["calls"] == len(asked) == 6  # of the whole batch the cache knew everything


def test_the_deadline_of_expected_captions_counts_from_the_last_one(tmp_path, asked):
    judge = judge_of(tmp_path, deadline=5.0)
    examples, captions = pairs_of(0, images=1, group=3)
    captions[2] = "A straggler."

    async def run():
        coming = [Future() for _ in captions]
        judgement = judge.expect(examples, coming)
        for caption, text in zip(coming, captions, strict=True):
            await asyncio.sleep(20)  # longer than the deadline
            caption.set_result(text)
        return await asyncio.wrap_future(judgement), asyncio.get_running_loop().time()

    found, now = on_its_loop(judge, run)
    assert [verdict is None for verdict in found.verdicts] == [False, False, True]
    assert found.reasons == "not answered within judge.deadline (1)"
    assert now == pytest.approx(65)


def test_a_judge_that_is_closed_while_captions_come_gives_no_verdicts(tmp_path):
    judge = LLMJudge(JudgeConfig(kind="llm", model="m", cache=tmp_path / "cache.sqlite"))
    example = SOURCE[0]
    known = example._replace(units=("a circle",))  # nothing to ask before a caption
    queue = JudgeQueue(judge, background=False)
    coming = queue.expect([known, known])
    queue.close()
    found = coming.judgement.result(timeout=10)
    assert found.verdicts == [None, None]
    assert found.reasons == "the judge was closed (2)"
    coming.tell(0, "A circle.")  # by a rollout that ends after all
    coming.tell(0, "A circle.")


def test_a_host_that_judges_no_caption_samples_as_the_others_do(tmp_path):
    """In chunks, or its programs would not be theirs; its judge is asked nothing."""
    judge = LLMJudge(JudgeConfig(kind="llm", model="m", cache=tmp_path / "cache.sqlite"))
    queue = JudgeQueue(judge, background=False)
    asked = []

    class Sampler:
        def generate(self, params, examples, key, *, images, prompts, tell):
            tell(0, 0, Caption("A circle.", [1]))  # of a row that another host judges
            asked.append(tell)
            return SimpleNamespace(rollout=None)

        def sampled(self, rollout):
            return [2 * [Caption("A circle.", [1])]]

    waiting = RolloutQueue(
        TrainConfig(steps=2, prompts_per_step=1, rollout=RolloutConfig(group_size=2)),
        SimpleNamespace(source=SOURCE, step=lambda _: ([SOURCE[0]], None)),
        Sampler(),
        queue,
        Stopwatch(),
        rows=SimpleNamespace(local_rows=np.arange(1), judged_places=np.zeros(0, np.int64)),
    )
    pending = waiting.current(0, {})
    assert len(asked) == 1
    assert pending.answer.result(timeout=10).verdicts == []
    queue.close()


def test_a_late_answer_holds_its_own_batch_alone(tmp_path, asked):
    judge = judge_of(tmp_path)
    assert isinstance(judge, ConcurrentJudge)
    examples, captions = pairs_of(0, images=1, group=2)

    async def run():
        late = judge.start(examples, ["A straggler.", captions[0]])
        next_one = judge.start(*pairs_of(1, images=1, group=2))
        found = await asyncio.wrap_future(next_one)
        assert not late.done()
        return await asyncio.wrap_future(late), found

    late, found = on_its_loop(judge, run)
    for judged in (late, found):  # each has spent its own: units once, two captions
        assert None not in judged.verdicts
        assert (judged.spent["calls"], judged.reasons) == (3, "")
    assert found.spent["call_seconds"] == 0  # the clock of the judge stands still here


def test_earlier_batches_go_first(tmp_path, asked):
    """Also with calls that they make later than others have been waiting."""
    judge = judge_of(tmp_path, concurrency=2)

    async def run():
        batches = [judge.start(*pairs_of(step, images=2, group=2)) for step in range(3)]
        ends = []
        for batch in batches:
            await asyncio.wrap_future(batch)
            ends.append(asyncio.get_running_loop().time())
        return ends

    # Each 2 calls for units and 4 for captions, two at a time: 12 s for a batch alone. While those
    # of the first learn what to ask next, units of the second are begun. By arrival it would be
    # 20, 28, 36.
    assert on_its_loop(judge, run) == pytest.approx([16, 24, 36])


def test_the_deadline_counts_from_the_end_of_the_batch_before(tmp_path, asked):
    judge = judge_of(tmp_path, concurrency=1, deadline=17.0)

    async def run():
        batches = [judge.start(*pairs_of(step, images=1, group=count)) for step, count in
                   enumerate((2, 2, 4))]  # fmt: skip
        return [await asyncio.wrap_future(batch) for batch in batches]

    # The first ends at 16 s, after a call of the second; the second at 24 s; the third, which has
    # all to itself from then on, has calls for units and three captions behind it at 40 s.
    first, second, third = on_its_loop(judge, run)
    assert None not in first.verdicts + second.verdicts
    assert third.verdicts.count(None) == 1
    assert third.reasons == "not answered within judge.deadline (1)"
    assert third.spent["failures"] == 1


def test_batches_ask_an_equal_question_once(tmp_path, asked):
    judge = judge_of(tmp_path)

    async def run():
        batches = [judge.start(*pairs_of(0, images=2, group=2)) for _ in range(3)]
        return [await asyncio.wrap_future(batch) for batch in batches]

    first, *others = on_its_loop(judge, run)
    assert len(asked) == first.spent["calls"] == 6
    for other in others:
        assert other.verdicts == first.verdicts
        assert other.spent["calls"] == 0
        assert other.spent["cache_hits"] >= 4


def test_a_closed_judge_judges_nothing(tmp_path, asked):
    judge = judge_of(tmp_path)
    judge.close()
    found = judge.start(*pairs_of(0, images=1, group=2)).result(timeout=10)
    assert found.verdicts == [None, None]
    assert found.reasons == "the judge was closed (2)"
    assert found.spent["failures"] == 2


def test_a_slot_that_nobody_waits_for_any_more_goes_to_the_next():
    async def run():
        slots, order = Slots(1), []

        async def call(name, turn):
            async with slots.one(turn):
                order.append(name)
                await asyncio.sleep(0)

        async with slots.one(0):
            tasks = {
                name: asyncio.ensure_future(call(name, turn))
                for name, turn in (("late", 2), ("given up", 0), ("early", 1), ("early too", 1))
            }
            await asyncio.sleep(0)
            tasks["given up"].cancel()
            assert slots.free == 0
        # The one that is granted in this moment, and is cancelled before it runs.
        tasks["early"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return slots.free, order

    assert asyncio.run(run()) == (1, ["early too", "late"])
