"""Waits of the control line that are for people and slow networks are short in tests."""

import time

import pytest

from balcap_jax.parallel import control, meeting


@pytest.fixture(autouse=True)
def short_waits(monkeypatch) -> None:
    monkeypatch.setattr(control, "_LAST_WORDS", 0.2)
    monkeypatch.setattr(meeting, "_LATECOMERS", 0.5)


class Meetings:
    """What process 0 has seen, and the time of a meeting, which a test moves on.

    So a test waits for what must have come, however slow the machine is, and for nothing else.

    Attributes:
      came: numbers of the processes that have introduced themselves, in their order.
      left: those whose end process 0 has noticed.
      ahead: s by which the clock of the meeting is ahead of the machine's.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self.left: list[int] = []
        self.ahead = 0.0

    sleep = staticmethod(time.sleep)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def meetings(monkeypatch) -> Meetings:
    """Of this test, instead of the clock and beside the eyes of `meeting`."""
    made = Meetings()
    misfit, leave = meeting._misfit, meeting._Meeting._leave

    def hear(hello, other, peers):
        made.came.append(other["process"])
        return misfit(hello, other, peers)

    def notice(of, number):
        leave(of, number)
        made.left.append(number)

    monkeypatch.setattr(meeting, "_misfit", hear)
    monkeypatch.setattr(meeting._Meeting, "_leave", notice)
    monkeypatch.setattr(meeting, "time", made)
    return made
