"""The end of a run by a signal: the first one saves, the second one ends at once."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from balcap_jax.runs.progress import announce

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Shells, terminals and launchers pass a signal on to a process that has got it already.
came = False  # whether a signal has come in this process; see `balcap_jax.cli.main`
_SAME = 0.3  # seconds in which more signals are the same wish


class Stopped(KeyboardInterrupt):
    """The run ends early because a signal has come."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.exit_code = 128 + number  # as shells have it


class Interrupts:
    """Listens for SIGINT, SIGTERM and SIGHUP while it is entered, from the main thread.

    Python runs handlers between two of its own instructions only, so not while a program compiles:
    what C has received is therefore read by a thread, which says so at once.

    Attributes:
      stop: is set when a signal has come.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.number = 0  # of the first signal
        self._held = 0
        self._before: dict[int, Any] = {}
        self._terminals = [fd for fd in (1, 2) if _is_terminal(fd)]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal is seen by `stop` alone; outside it raises `Stopped`."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is not threading.main_thread():
            return self  # the caller's signals are the caller's
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                self._before[number] = signal.signal(number, self._handle)
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)  # noqa: FBT003
        self._theirs = theirs
        self._wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        self._theirs.close()  # ends the thread

    def _handle(self, number: int, _: FrameType | None) -> None:
        global came
        came = True
        self.number = self.number or number
        self.stop.set()
        if not self._held:
            raise Stopped(self.number)

    def _listen(self) -> None:
        """Hears each signal as soon as it comes."""
        first: float | None = None
        with self._ours:
            while received := self._ours.recv(1):
                number = received[0]
                if number not in self._before:
                    continue
                if number == signal.SIGHUP:  # the terminal is gone, to write there is an error
                    self._leave_terminals()
                now = time.monotonic()
                if first is None:
                    first = now
                    self.number = self.number or number
                    self.stop.set()
                    name = signal.Signals(number).name
                    _say(f"{name}: what is made is being saved; a second one ends at once")
                elif now - first > _SAME:
                    _say("ended at once: the steps since the last checkpoint are lost")
                    os._exit(128 + number)

    def _leave_terminals(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for terminal in self._terminals:
            os.dup2(nowhere, terminal)
        os.close(nowhere)


def _say(line: str) -> None:
    with suppress(Exception):
        announce(line)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False
