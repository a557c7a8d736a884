"""An event loop in a thread of its own, so that connections outlive a batch."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_ENDING_SECONDS = 5.0  # for what is cancelled, and for connections to close


class LoopThread:
    """Runs coroutines for other threads until it is closed.

    Attributes:
      closed: whether `close` was called.
    """

    def __init__(self) -> None:
        self.closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # a signal may close it in the thread that holds it
        self._wake: asyncio.Event | None = None
        self._running: set[asyncio.Task] = set()

    def start(self, make: Callable[[], Coroutine[Any, Any, T]]) -> Future[T] | None:
        """The result of a coroutine to come, None once it is closed. Several run side by side, and
        begin in the order in which they were started.
        """
        with self._lock:
            if self.closed:
                return None
            if self._loop is None:
                self._wake = asyncio.Event()
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="judge-calls", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(self._kept(make), self._loop)

    def run(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """The result of a coroutine, None once it is closed; Ctrl-C ends it, too."""
        future = self.start(make)
        if future is None:
            return None
        try:
            return future.result()
        except CancelledError:  # it did not end in time when it was woken
            if self.closed:
                return None
            raise
        except BaseException:
            future.cancel()
            raise

    async def wait(
        self,
        tasks: Sequence[asyncio.Task],
        *,
        timeout: float,
        after: "asyncio.Future[Any] | None" = None,
    ) -> None:
        """Returns when all tasks are done, after `timeout` seconds, or when `close` is called.

        Args:
          after: the seconds count from when it is done; default: from now. Cancelled in the end.
        """
        assert self._wake is not None
        woken = asyncio.ensure_future(self._wake.wait())
        done = asyncio.gather(*tasks, return_exceptions=True)
        try:
            if after is not None:
                await asyncio.wait((done, woken, after), return_when="FIRST_COMPLETED")
            await asyncio.wait((done, woken), timeout=timeout, return_when="FIRST_COMPLETED")
        finally:
            woken.cancel()
            if after is not None:
                after.cancel()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wakes all that wait, lets them return, runs `last`, ends the thread; twice is fine."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        if self._loop is None or self._thread is None or self._wake is None:
            return
        self._loop.call_soon_threadsafe(self._wake.set)
        ending = asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        with suppress(Exception):  # the connections may be broken already
            ending.result(timeout=2 * _ENDING_SECONDS + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _kept(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine as a task that `close` waits for."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await make()
        finally:
            self._running.discard(task)

    async def _end(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=_ENDING_SECONDS)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        async with asyncio.timeout(_ENDING_SECONDS):
            await last()
