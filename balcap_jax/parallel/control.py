"""The line between the processes of a run, beside JAX: who takes part, and who has ended.

Process 0 listens at the coordinator's address, compares what the others say of themselves, and
keeps one connection to each. A process that ends, however it does, is known to all within a
second, and one that no longer answers after `patience`. JAX has such a service too, but it knows
nothing of settings and ends a process in C++, with a stack trace and no sentence: also where the
coordinator does not answer or a port is taken. So all of this is settled before JAX starts its
service on the same port.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from balcap_jax.errors import UserError

_BEATS = 6  # beats within `patience`
_LOST = 3  # exit code of a process that ends because another has ended
_SHOWN = 5  # differences that a message names
_LATECOMERS = 5.0  # seconds in which others come to hear that the run is refused
_LAST_WORDS = 1.0  # seconds for the others to read a message before its connection ends

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
        self._values: dict[tuple[int, str], queue.Queue] = defaultdict(queue.Queue)
        host, _, port = address.rpartition(":")
        hello = {
            "process": process,
            "processes": processes,
            "host": socket.gethostname(),
            "facts": json.loads(json.dumps(facts)),  # as the others will see it
        }
        meet = _gather_peers if process == 0 else _call_first
        self._peers: dict[int, _Peer] = meet(host, int(port), hello, timeout)
        for number, peer in self._peers.items():
            peer.socket.settimeout(patience)
            threading.Thread(target=self._listen, args=(number, peer), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    # ---- what the processes tell one another

    def gather(self, value: Any, *, tag: str) -> list:
        """The values of all processes, in their order, on all of them.

        All processes must call it, in the same order among the calls of one `tag`.

        Args:
          value: plain JSON; NaN is allowed.
          tag: keeps the calls of different threads apart.
        """
        if self.process == 0:
            return self.from_process_zero(
                [value, *(self._receive(i, tag) for i in range(1, self.processes))], tag=tag
            )
        self._peers[0].send({"tag": tag, "value": value})
        return self.from_process_zero(None, tag=tag)

    def from_process_zero(self, value: Any, *, tag: str) -> Any:
        """The value of process 0, on all; the others wait for it however long it takes."""
        if self.process != 0:
            return self._receive(0, tag)
        for peer in self._peers.values():
            peer.send({"tag": tag, "value": value})
        return value

    def end(self, reason: str) -> None:
        """Tells the others that this process ends, so that they end too, with its reason."""
        global _left
        _left = True
        if not self._closed.is_set():
            self._tell_all({"ended": f"process {self.process} has ended: {reason}"})
            self._close()
            time.sleep(_LAST_WORDS)

    def close(self) -> None:
        """Ends the line when all is done; the others see no loss in it."""
        self._tell_all({"bye": True})
        self._close()

    def wait_for_loss(self, seconds: float) -> None:
        """Gives `on_lost` time: an error of a collective comes before its cause is known."""
        time.sleep(seconds)
        with self._ending:  # held by a thread that is about to end this process
            pass

    # ---- threads

    def _listen(self, number: int, peer: "_Peer") -> None:
        try:
            while message := peer.receive():
                if "bye" in message:
                    return
                if "ended" in message:
                    self._lost(message["ended"])
                if "tag" in message:
                    self._values[number, message["tag"]].put(message["value"])
            self._lost(f"process {number} has ended without a word")
        except (ConnectionResetError, BrokenPipeError):  # it died with something unread
            self._lost(f"process {number} has ended without a word")
        except TimeoutError:
            self._lost(f"process {number} has not answered for {self._patience:g} s")
        except OSError as error:
            self._lost(f"the connection to process {number} broke ({_reason(error)})")

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

    def _receive(self, number: int, tag: str) -> Any:
        return self._values[number, tag].get()

    def _tell_all(self, message: dict) -> None:
        for peer in self._peers.values():
            with suppress(OSError):  # that peer's listener has seen it or will
                peer.send(message, wait=1)

    def _close(self) -> None:
        self._closed.set()
        for peer in self._peers.values():
            peer.finish()


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


class _Peer:
    """A connection that carries one JSON object per line."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._lines = connection.makefile("rb")
        self._sending = threading.Lock()

    def send(self, message: Mapping[str, Any], *, wait: float = -1) -> None:
        """Sends the message, or nothing where another thread has been sending for `wait` s."""
        if self._sending.acquire(timeout=wait):
            try:
                self.socket.sendall(json.dumps(message).encode() + b"\n")
            finally:
                self._sending.release()

    def receive(self) -> dict:
        """The next message; empty when the other has ended the connection.

        Raises:
          OSError: the connection broke, or TimeoutError: nothing came in its time.
        """
        line = self._lines.readline()
        try:
            message = json.loads(line) if line.endswith(b"\n") else {}
        except ValueError as error:
            raise ConnectionError("what answers there is not balcap") from error
        if not isinstance(message, dict):
            raise ConnectionError("what answers there is not balcap")
        return message

    def finish(self) -> None:
        """Nothing more will be sent."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)


# Meeting ----------------------------------------------------------------------------------------


def _gather_peers(
    host: str, port: int, hello: Mapping[str, Any], timeout: float
) -> dict[int, _Peer]:
    """Process 0's part: every other process has come, and fits."""
    processes = hello["processes"]
    deadline = time.monotonic() + timeout
    peers: dict[int, _Peer] = {}
    turned_away: list[_Peer] = []
    refusal = ""
    with _listener(host, port) as server:
        while len(peers) + len(turned_away) < processes - 1:
            left = deadline - time.monotonic()
            if left <= 0 and refusal:
                break
            if left <= 0:
                missing = ", ".join(str(i) for i in range(1, processes) if i not in peers)
                raise _refused(
                    peers.values(),
                    f"Of {processes} processes, {missing} did not come to {host}:{port} within "
                    f"{timeout:g} s; start each with its --dist.process, or wait longer with "
                    "--dist.start-timeout.",
                )
            server.settimeout(left)
            try:
                peer = _Peer(server.accept()[0])
                peer.socket.settimeout(5)
                other = peer.receive()
            except OSError:
                continue
            if not {"process", "processes", "facts"} <= set(other):  # a stranger, or silent
                continue
            if misfit := _misfit(hello, other, peers):
                turned_away.append(peer)
                refusal = refusal or misfit
                # Those on their way shall hear of it, too.
                deadline = min(deadline, time.monotonic() + _LATECOMERS)
            else:
                peers[other["process"]] = peer
        if refusal:
            raise _refused([*turned_away, *peers.values()], refusal)
    for peer in peers.values():
        peer.send({"welcome": True})
    return peers


def _listener(host: str, port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen at {host}:{port} ({_reason(error)}); choose another port for "
            "--dist.coordinator, on all processes."
        ) from error


def _misfit(hello: Mapping[str, Any], other: Mapping[str, Any], peers: Mapping[int, _Peer]) -> str:
    """Why the other process cannot take part; empty if it can."""
    number, processes = other.get("process"), hello["processes"]
    who = f"process {number} on {other.get('host')}"
    if other.get("processes") != processes:
        return (
            f"{who} was told of {other.get('processes')} processes, process 0 of {processes}; "
            "give all the same --dist.processes."
        )
    if number in peers:
        return (
            f"Two processes are process {number} of {processes}, the second of them on "
            f"{other.get('host')}; give each its own --dist.process."
        )
    mine, theirs = hello["facts"], other["facts"]
    differences = [
        f"{name} ({theirs.get(name)}, not {mine.get(name)})"
        for name in {**mine, **theirs}
        if mine.get(name) != theirs.get(name)
    ]
    if not differences:
        return ""
    more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return (
        f"{who} differs from process 0 on {hello['host']} in {', '.join(differences[:_SHOWN])}"
        f"{more}; start all processes with the same settings, files and versions."
    )


def _refused(peers: Iterable[_Peer], sentence: str) -> UserError:
    for peer in peers:
        with suppress(OSError):
            peer.send({"refused": sentence})
            peer.finish()
    return UserError(sentence)


def _call_first(host: str, port: int, hello: Mapping[str, Any], timeout: float) -> dict[int, _Peer]:
    """The other processes' part: process 0 has answered, and lets this one take part."""
    deadline = time.monotonic() + timeout
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            first = _Peer(socket.create_connection((host, port), timeout=min(left, 10)))
            reason = "it still waits for other processes"
            first.socket.settimeout(left)
            first.send(hello)
            answer = first.receive()
        except TimeoutError:
            continue
        except OSError as error:
            reason = _reason(error)
            answer = {}
        if "refused" in answer:
            raise UserError(answer["refused"])
        if answer:
            return {0: first}
        time.sleep(min(0.2, left))  # process 0 may start later
    raise UserError(
        f"The coordinator at {host}:{port} has not let process {hello['process']} begin within "
        f"{timeout:g} s ({reason}); check that process 0 runs there and that the port is open, or "
        "wait longer with --dist.start-timeout."
    )


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
