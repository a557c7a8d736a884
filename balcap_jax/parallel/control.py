"""The line between the processes of a run, beside JAX: who takes part, and who has ended.

Process 0 listens at the coordinator's address, compares what the others say of themselves
(`meeting`), and keeps the one connection to each. From then on nobody can connect any more, and
the connections carry two things only: signs of life, and why a process ends. What the processes
have to tell one another goes through JAX's own service (`exchange`).

JAX knows when a process ends, too, but says too little of it (measured with 0.10 and 0.12, see
docs/multihost.md): of a killed process only after its heartbeats are over, not at once; of the end
of process 0 nothing at all, since C++ aborts the others (exit code 134); never why.
"""

import hashlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from balcap_jax.parallel.lines import Line, printable, reason_of
from balcap_jax.parallel.meeting import Peers, call_first, gather_peers

_BEATS = 6  # beats within `patience`
_LOST = 3  # exit code of a process that ends because another has ended
_LAST_WORDS = 1.0  # seconds for the others to read a message before its connection ends
_LONGEST_FACT = 2000  # characters; of longer ones a digest is compared

_left = False  # this process ends without the others


class Control:
    """One process's end of the line. Process 0 is connected to all others, they to it alone.

    Args:
      address: HOST:PORT of process 0.
      process, processes: which this is, of how many.
      facts: what must be equal on all processes, by name.
      timeout: seconds in which all processes must have come.
      patience: seconds without a sign of life after which a process counts as lost.
      on_lost: called with a sentence, in a thread, when the others can no longer go on; does not
        return.

    Raises:
      UserError: the coordinator does not answer, its port is taken, a process is missing, comes
        twice, or differs in its facts.
    """

    def __init__(
        self,
        address: str,
        *,
        process: int,
        processes: int,
        facts: Mapping[str, Any],
        timeout: float,
        patience: float,
        on_lost: Callable[[str], NoReturn] | None = None,
    ):
        self.address, self.process, self.processes = address, process, processes
        self._patience, self._on_lost = patience, on_lost or end_process
        self._closed = threading.Event()
        self._ending = threading.Lock()
        host, _, port = address.rpartition(":")
        hello = {
            "process": process,
            "processes": processes,
            "host": socket.gethostname(),
            "facts": {name: _as_seen(value) for name, value in facts.items()},
        }
        meet = gather_peers if process == 0 else call_first
        self._peers: Peers = meet(host, int(port), hello, timeout)
        for number, peer in self._peers.items():
            peer.socket.settimeout(patience)
            threading.Thread(target=self._listen, args=(number, peer), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def end(self, reason: str) -> None:
        """Tells the others that this process ends, so that they end too, with its reason."""
        global _left
        _left = True
        if not self._closed.is_set():
            self._closed.set()  # first: process 0 passes the message on, to this process too
            self._tell_all({"ended": printable(f"process {self.process} has ended: {reason}")})
            self._finish()
            time.sleep(_LAST_WORDS)

    def close(self) -> None:
        """Ends the line when all is done; the others see no loss in it."""
        self._closed.set()
        self._tell_all({"bye": True})
        self._finish()

    def wait_for_loss(self, seconds: float) -> None:
        """Gives `on_lost` time: an error of a collective comes before its cause is known."""
        time.sleep(seconds)
        with self._ending:  # held by a thread that is about to end this process
            pass

    # ---- threads

    def _listen(self, number: int, peer: Line) -> None:
        try:
            while (message := peer.receive(self._patience)) is not None:
                if message == {"bye": True}:
                    return
                if isinstance(message.get("ended"), str):
                    self._lost(printable(message["ended"]))
                    return
                if message != {"beat": True}:
                    raise ConnectionError("what it says is not of balcap")
            self._lost(f"process {number} has ended without a word")
        except (ConnectionResetError, BrokenPipeError):  # it died with something unread
            self._lost(f"process {number} has ended without a word")
        except TimeoutError:
            self._lost(f"process {number} has not answered for {self._patience:g} s")
        except OSError as error:
            self._lost(f"the connection to process {number} broke ({reason_of(error)})")

    def _beat(self) -> None:
        while not self._closed.wait(self._patience / _BEATS):
            self._tell_all({"beat": True})

    def _lost(self, sentence: str) -> None:
        if self._closed.is_set():
            return
        with self._ending:
            if self.process == 0:
                self._tell_all({"ended": sentence})
                time.sleep(_LAST_WORDS)
            self._on_lost(sentence)

    # ---- messages

    def _tell_all(self, message: dict) -> None:
        for peer in self._peers.values():
            with suppress(OSError):  # that peer's listener has seen it or will
                peer.send(message, wait=1)

    def _finish(self) -> None:
        for peer in self._peers.values():
            peer.finish()


def _as_seen(value: Any) -> Any:
    """A fact as the others will see it, and so short that a greeting holds all of them."""
    text = json.dumps(value)
    if len(text) <= _LONGEST_FACT:
        return json.loads(text)
    return f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def end_process(sentence: str) -> NoReturn:
    """Says why on stderr and leaves at once: the main thread may wait in a collective for ever."""
    sys.stdout.flush()
    sys.stderr.write(f"balcap: error: {sentence}\n")
    sys.stderr.flush()
    os._exit(_LOST)


def exit_alone(code: int) -> None:
    """Ends this process at once where it failed in a run of several: JAX would wait for them."""
    if _left:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
