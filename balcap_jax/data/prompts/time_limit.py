"""A time limit for Python code of others, in any thread: for chat templates, which are programs.

A signal would reach the main thread alone, and a process for each row would cost more than the row.
So another thread raises an exception in the one that takes too long. It ends loops, and not a
single long call of C.
"""

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LOOK_SECONDS = 0.2  # between looks at the clock; a limit is kept no more exactly


class OverTimeError(BaseException):
    """The code of a call took too long. No Exception, which that code might catch."""


class _Watch:
    """Calls that are running, and the thread that looks after them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._ends: dict[object, tuple[int, float]] = {}  # thread and deadline of each block
        self._fired: set[object] = set()
        self._thread: threading.Thread | None = None

    def begin(self, block: object, seconds: float) -> None:
        with self._lock:
            self._ends[block] = threading.get_ident(), time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():  # a fork has no threads
                self._thread = threading.Thread(target=self._look, daemon=True, name="time limit")
                self._thread.start()
        self._busy.set()

    def end(self, block: object) -> None:
        """Twice is fine."""
        with self._lock:
            thread, _ = self._ends.pop(block, (0, 0.0))
            if block in self._fired:  # what was raised and has not come yet must not come later
                self._fired.discard(block)
                _raise_in(thread, None)

    def _look(self) -> None:
        while True:
            self._busy.wait()
            time.sleep(_LOOK_SECONDS)
            with self._lock:
                now = time.monotonic()
                for block, (thread, deadline) in self._ends.items():
                    if now > deadline and block not in self._fired:
                        self._fired.add(block)
                        _raise_in(thread, OverTimeError)
                if not self._ends:
                    self._busy.clear()


_WATCH = _Watch()


def within(seconds: float, function: Callable[[], T]) -> T:
    """What `function` returns, if it does so in time; it is ended soon after.

    No such call may stand within another.

    Raises:
      TimeoutError: it was ended.
    """
    block = object()
    try:
        try:
            _WATCH.begin(block, seconds)
            return function()
        finally:
            _WATCH.end(block)
    except OverTimeError:
        _WATCH.end(block)  # it may have come at the beginning of the first call
        raise TimeoutError(f"it does not end within {seconds:g} s") from None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Has a thread raise `error` at its next step; with None what is to come is taken back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
