"""Where the calls under way at once are too few for the judge to keep up, the run says so once."""

from balcap_jax.training.judge_load import JudgeLoad

NAME, OTHER = "judge.concurrency", "reward.judge.concurrency"


def said(limit: int, *, calls: float = 512, latency: float = 4.0, device: float = 5.0, **more):
    """Of ten steps: what is said in each."""
    load = JudgeLoad({NAME: limit}, steps=3)
    counted = {NAME: (calls, calls * latency)} | more
    return [load.add(counted, device_seconds=device) for _ in range(10)]


def test_too_few_are_said_once_with_the_number_that_would_do():
    lines = said(64)
    # The first step compiles, and three others are looked at together.
    assert [len(of_step) for of_step in lines] == [0, 0, 0, 1, *[0] * 6]
    # 512 x 4 s / 5 s = 409.6
    assert lines[3] == [
        "the judge holds the device: 512 calls a step of 4 s each, beside 5 s of the device, take "
        "judge.concurrency=410, and it is 64; set --judge.concurrency 410, if the server answers "
        "so many at once as fast."
    ]


def test_enough_are_not_spoken_of():
    assert not any(said(410))
    assert any(said(409))
    # All calls of a caption count: with three of each it takes three times as many.
    assert "judge.concurrency=1229" in said(512, calls=3 * 512)[3][0]
    assert not any(said(1, calls=0))  # everything from the cache
    assert not any(said(1, device=0.0))


def test_steps_are_looked_at_together():
    """One slow step says nothing; the first, which compiles, does not count."""
    load = JudgeLoad({NAME: 10}, steps=2)
    quiet, busy = {NAME: (1.0, 1.0)}, {NAME: (30.0, 30.0)}
    assert not load.add({NAME: (1000.0, 1000.0)}, device_seconds=1.0)
    for calls in (quiet, busy, quiet):  # 31 s of calls in two steps of 2 s: 7.75 at once
        assert not load.add(calls, device_seconds=2.0)
    assert not load.add(busy, device_seconds=2.0)
    assert load.add(busy, device_seconds=2.0)  # 60 s in 4 s


def test_each_setting_is_spoken_of_by_itself():
    load = JudgeLoad({NAME: 100, OTHER: 10}, steps=1)
    calls = {NAME: (10.0, 10.0), OTHER: (10.0, 200.0)}
    assert not load.add(calls, device_seconds=10.0)
    [line] = load.add(calls, device_seconds=10.0)
    assert "set --reward.judge.concurrency 20," in line
    [line] = load.add({NAME: (10.0, 2000.0)}, device_seconds=10.0)
    assert "set --judge.concurrency 200," in line
