"""How fast a server may be asked, and how long to wait after it failed."""

import asyncio
import email.utils
import heapq
import itertools
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC

from balcap_jax.parallel.exchange import process_count, process_index

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]

_LONGEST_BACKOFF = 60.0  # seconds


class Pace:
    """Spreads what is asked evenly over each minute; used by one event loop.

    Args:
      per_minute: the limit of the run, 0 for none; each of its processes keeps to its part.
      clock, sleep: of seconds; tests give their own.
    """

    def __init__(self, per_minute: float, *, clock: Clock, sleep: Sleep):
        self._seconds_each = 60.0 * process_count() / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._free = 0.0  # when the next one may start

    async def take(self, amount: float = 1.0) -> None:
        """Waits for its turn and takes `amount` of the limit."""
        if not self._seconds_each:
            return
        turn = max(self._free, self._clock())
        self._free = turn + amount * self._seconds_each
        if (wait := turn - self._clock()) > 0:
            await self._sleep(wait)

    def correct(self, amount: float) -> None:
        """Takes `amount` more, or gives it back where it is negative: an estimate was off."""
        self._free += amount * self._seconds_each


class Slots:
    """So many calls under way at once; of those that wait, the earliest batch's go first. Used by
    one event loop.

    Attributes:
      free: how many more may start.
    """

    def __init__(self, count: int):
        self.free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap
        self._arrivals = itertools.count()

    @asynccontextmanager
    async def one(self, turn: int) -> AsyncIterator[None]:
        """One of them while the block runs.

        Args:
          turn: the lowest goes first; of equals, the one that came first.
        """
        await self._take(turn)
        try:
            yield
        finally:
            self._give()

    async def _take(self, turn: int) -> None:
        if self.free:  # then nobody waits
            self.free -= 1
            return
        granted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (turn, next(self._arrivals), granted))
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # it was granted in the same moment
                self._give()
            raise

    def _give(self) -> None:
        while self._waiting:
            *_, granted = heapq.heappop(self._waiting)
            if not granted.done():
                granted.set_result(None)
                return
        self.free += 1


class Gate:
    """Closed for all calls while the server asked for a pause."""

    def __init__(self, *, clock: Clock, sleep: Sleep):
        self._clock, self._sleep = clock, sleep
        self._opens = 0.0

    def close_for(self, seconds: float) -> None:
        """No call starts for `seconds` from now."""
        self._opens = max(self._opens, self._clock() + seconds)

    async def wait(self) -> None:
        """Returns when calls may start."""
        while (wait := self._opens - self._clock()) > 0:
            await self._sleep(wait)


def share_of(slots: int) -> int:
    """This process's part of the calls that a run may have under way at once; at least one."""
    more = process_index() < slots % process_count()
    return max(1, slots // process_count() + more)


def backoff_seconds(attempt: int, *, first: float, rng: random.Random) -> float:
    """How long to wait after failure number `attempt` (from 0): doubled each time, jittered.

    Between half and all of the doubled wait, so that calls that failed together do not come back
    together.
    """
    longest = min(first * 2.0 ** min(attempt, 99), _LONGEST_BACKOFF)  # 2**1024 is no float
    return longest * (0.5 + 0.5 * rng.random())


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The pause that a server asks for, in seconds or as a date; None where it asks for none."""
    if (value := headers.get("retry-after")) is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(value)
            # Without a zone it is in UTC (RFC 5322), not where this machine stands.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
