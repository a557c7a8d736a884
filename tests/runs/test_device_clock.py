"""The share of the time in which the devices have nothing to do, by a clock the test moves."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from balcap_jax.runs.device_clock import DeviceClock


class Results:
    """Arrays that are there when the test says so."""

    def __init__(self):
        self.there = threading.Event()

    def block_until_ready(self):
        self.there.wait(10)


class Hand:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def timed():
    hand = Hand()
    clock = DeviceClock(hand)
    yield clock, hand
    clock.close()


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def finish(clock: DeviceClock, results: Results) -> None:
    until(lambda: clock._running is not None)
    results.there.set()
    until(lambda: clock._running is None)


def test_programs_one_after_another(timed):
    """Work from 2 to 5 and from 7 to 8 of 10 s: 4 s busy."""
    clock, hand = timed
    for began, ended in ((2.0, 5.0), (7.0, 8.0)):
        hand.now = began
        results = Results()
        clock.ran(clock.start(), results)
        until(lambda: clock._running is not None)
        hand.now = ended
        finish(clock, results)
    hand.now = 10.0
    assert clock.idle_share() == pytest.approx(0.6)
    hand.now = 12.0
    assert clock.idle_share() == 1.0  # nothing since


def test_a_program_that_waits_for_the_one_before_counts_once(timed):
    """Both are called at 1; one ends at 3, the other at 6: 5 of 10 s, not 7."""
    clock, hand = timed
    hand.now = 1.0
    first, second = Results(), Results()
    clock.ran(clock.start(), first)
    clock.ran(clock.start(), second)
    until(lambda: clock._running is not None)
    hand.now = 3.0
    first.there.set()
    until(lambda: clock._running == 3.0)
    hand.now = 6.0
    finish(clock, second)
    hand.now = 10.0
    assert clock.idle_share() == pytest.approx(0.5)


def test_a_program_across_two_laps_counts_in_both(timed):
    """From 2 to 5, with laps at 4 and 8: 2 of 4 s, then 1 of 4 s."""
    clock, hand = timed
    hand.now = 2.0
    results = Results()
    clock.ran(clock.start(), results)
    until(lambda: clock._running is not None)
    hand.now = 4.0
    assert clock.idle_share() == pytest.approx(0.5)
    hand.now = 5.0
    finish(clock, results)
    hand.now = 8.0
    assert clock.idle_share() == pytest.approx(0.75)


def test_compiling_is_not_the_devices_work(timed):
    """A call of 3 s, of which 2 are compiling: 1 of 4 s busy."""
    clock, hand = timed
    start = clock.start()
    clock._on_duration("/jax/core/compile/backend_compile_duration", 2.0)
    clock._on_duration("/jax/something_else", 5.0)
    results = Results()
    clock.ran(start, results)
    until(lambda: clock._running is not None)
    hand.now = 3.0
    finish(clock, results)
    hand.now = 4.0
    assert clock.idle_share() == pytest.approx(0.75)


def test_a_real_program_is_work_and_the_time_after_it_is_not():
    clock = DeviceClock()
    start = clock.start()
    clock.ran(start, jax.jit(lambda x: jnp.tanh(x @ x))(jnp.ones((256, 256))))
    until(lambda: clock._free > start.seconds)
    assert 0 < clock.idle_share() < 1
    assert clock.idle_share() == 1.0
    clock.close()
