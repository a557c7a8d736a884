"""How much of a run's time its devices have nothing to do."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# What the first call of a program does on the host before the devices hear of it.
_COMPILING = "/jax/core/compile/"
_LAST = 30.0  # seconds in which the last program may end


class Start(NamedTuple):
    """The moment before a program was called."""

    seconds: float
    compiled: float


class DeviceClock:
    """Adds up when programs ran: from their call, or the end of the one before, until their results
    are there.

    A device runs its programs in the order of their calls, so this is the time in which it had
    work; waiting for other hosts in a collective is work too. A thread waits for the results, the
    caller does not. Only what is given to `ran` counts: small programs between are idle time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._lock = threading.Lock()
        self._compiled = 0.0  # seconds of tracing and compiling so far
        self._busy = 0.0  # in this lap, of the programs that have ended
        self._began = self._free = clock()  # of this lap; when the last program ended
        self._running: float | None = None  # start of the program that is waited for
        self._calls: queue.Queue[tuple[float, Any] | None] = queue.Queue()
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        self._closed = False
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def start(self) -> Start:
        """To be taken just before a program is called, its inputs being on the device."""
        return Start(self._clock(), self._compiled)

    def ran(self, start: Start, results: Any) -> None:
        """A program was called at `start`.

        Args:
          results: arrays of it that are not donated before they are there.
        """
        compiling = self._compiled - start.compiled
        self._calls.put((start.seconds + compiling, results))

    def idle_share(self) -> float:
        """1 - the share of the time since the last call in which a program ran."""
        with self._lock:
            now = self._clock()
            if self._running is not None:
                self._add(now)
                self._running = now
            share = 1.0 - self._busy / (now - self._began) if now > self._began else 0.0
            self._busy, self._began = 0.0, now
        return share

    def close(self) -> None:
        """Ends the thread, once the programs that it waits for have ended; twice is fine.

        A thread that still waits in C++ when Python ends would abort the process.
        """
        if self._closed:
            return
        self._closed = True
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        self._calls.put(None)
        self._thread.join(timeout=_LAST)

    def _add(self, end: float) -> None:
        # A program that was called before this lap counts from its beginning on.
        self._busy += max(0.0, end - max(self._running, self._began))

    def _wait(self) -> None:
        while (call := self._calls.get()) is not None:
            called, results = call
            with self._lock:
                self._running = max(called, self._free)
            try:
                jax.block_until_ready(results)
            except Exception:  # the caller will meet it too
                results = None
            with self._lock:
                self._free = self._clock()
                self._add(self._free)
                self._running = None
            del call, results  # or they would stay on the device until the next call

    def _on_duration(self, event: str, seconds: float, **_: object) -> None:
        if event.startswith(_COMPILING):
            self._compiled += seconds
