"""How the processes of a run meet before JAX starts: all have come, once each, and are equal.

JAX cannot do this part: where its service does not answer, its port is taken or a process comes
twice, it ends the process in C++, with a stack trace and no sentence; and it compares nothing.

Whoever reaches the port may say anything. What is no greeting is not answered, however it is
wrong and however many come: one thread serves all connections, none waits for another's bytes.
"""

import errno
import ipaddress
import json
import os
import selectors
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.parallel.lines import (
    GREETING_BYTES,
    MESSAGE_BYTES,
    STRANGER,
    Line,
    printable,
    reason_of,
)

_SHOWN = 5  # differences that a message names
_SHOWN_VALUE = 200  # characters of a value in it
_LATECOMERS = 5.0  # seconds in which others come to hear that the run is refused
_GREETING = 5.0  # seconds in which who connects must have introduced itself
_STRANGERS = 64  # connections at once, beside one for each process, that have not
_DEEPEST = 4  # lists within lists of a setting
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"  # JAX's own variable, for its service on the same port

Peers = dict[int, Line]


# Process 0 --------------------------------------------------------------------------------------


def gather_peers(host: str, port: int, hello: Mapping[str, Any], timeout: float) -> Peers:
    """Process 0's part: a line to every other process, once all have come and fit.

    Raises:
      UserError: the port is taken, a process is missing after `timeout` s, comes twice or differs;
        those that have come are told, too.
    """
    with _listener(host, port) as server, selectors.DefaultSelector() as selector:
        meeting = _Meeting(hello, server, selector)
        try:
            return meeting.held(timeout, where=f"{host}:{port}")
        finally:
            meeting.close_strangers()


class _Meeting:
    """Who has come so far.

    Attributes:
      peers: those that fit, by their number.
      turned_away: those that do not, until they are told.
    """

    def __init__(
        self, hello: Mapping[str, Any], server: socket.socket, selector: selectors.BaseSelector
    ):
        self._hello, self._server, self._selector = hello, server, selector
        self._processes = hello["processes"]
        self._strangers: dict[Line, float] = {}  # when each must have greeted; the oldest first
        self.peers: Peers = {}
        self.turned_away: list[Line] = []
        self._left: set[int] = set()  # numbers of those that came and ended
        self._refusal = ""
        self._deadline = 0.0
        server.setblocking(False)  # noqa: FBT003
        selector.register(server, selectors.EVENT_READ)

    def held(self, timeout: float, *, where: str) -> Peers:
        """The lines to all others when they have come; see `gather_peers`."""
        self._deadline = time.monotonic() + timeout
        while len(self.peers) + len(self.turned_away) < self._processes - 1:
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            for key, _ in self._selector.select(min(left, 0.5)):
                if key.data is None:
                    self._accept()
                elif key.data in self._strangers:
                    self._hear(key.data)
                else:
                    self._notice(key.data)
            self._drop_silent()
        if not self._refusal and len(self.peers) < self._processes - 1:
            self._refusal = self._who_is_missing(timeout, where)
        everyone = [*self.turned_away, *self.peers.values()]
        answer = {"refused": self._refusal} if self._refusal else {"welcome": True}
        for line in everyone:
            line.socket.settimeout(_GREETING)
            with suppress(OSError):  # it has just died: those who listen to its line will know
                line.send(answer)
            if self._refusal:
                line.finish()
        if self._refusal:
            raise UserError(self._refusal)
        return self.peers

    def _who_is_missing(self, timeout: float, where: str) -> str:
        missing = [i for i in range(1, self._processes) if i not in self.peers]
        never = ", ".join(str(i) for i in missing if i not in self._left)
        again = ", ".join(str(i) for i in missing if i in self._left)
        if not never:
            return (
                f"Of {self._processes} processes, {again} came to {where} and ended before the "
                "others were there; read what it printed, and start it again."
            )
        return (
            f"Of {self._processes} processes, {never} did not come to {where} within "
            f"{timeout:g} s; start each with its --dist.process, or wait longer with "
            f"--dist.start-timeout{again and f' ({again} came and ended again)'}."
        )

    def close_strangers(self) -> None:
        """Ends the connections of those that have not introduced themselves."""
        for line in self._strangers:
            line.close()

    def _accept(self) -> None:
        for _ in range(_STRANGERS):  # those who have come are heard in between
            try:
                connection, _address = self._server.accept()
            except OSError as error:  # nobody is left, or has left again
                if error.errno in (errno.EMFILE, errno.ENFILE):  # no more files to open
                    if self._strangers:
                        self._drop(next(iter(self._strangers)))
                    else:
                        time.sleep(0.05)
                return
            line = Line(connection, limit=GREETING_BYTES)
            connection.setblocking(False)  # noqa: FBT003
            self._selector.register(connection, selectors.EVENT_READ, line)
            self._strangers[line] = time.monotonic() + _GREETING
            if len(self._strangers) > _STRANGERS + self._processes:
                self._drop(next(iter(self._strangers)))

    def _hear(self, line: Line) -> None:
        """Part of a greeting, or all of it."""
        try:
            ended = not line.read()
            message = line.message()
        except BlockingIOError:
            return
        except OSError:
            self._drop(line)
            return
        if message is None:
            if ended:
                self._drop(line)
            return
        if not _is_greeting(message) or not line.is_empty() or line.has_left():
            self._drop(line)
            return
        number = message["process"]
        if number in self.peers and self.peers[number].has_left():
            self._leave(number)  # it was killed and has been started again
        misfit = _misfit(self._hello, message, self.peers)
        if not misfit and not 0 < number < self._processes:
            self._drop(line)
            return
        del self._strangers[line]
        if misfit:
            self._selector.unregister(line.socket)
            self.turned_away.append(line)
            self._refusal = self._refusal or misfit
            # Those on their way shall hear of it, too.
            self._deadline = min(self._deadline, time.monotonic() + _LATECOMERS)
        else:
            self.peers[number] = line
            line.limit = MESSAGE_BYTES

    def _notice(self, line: Line) -> None:
        """One that has introduced itself has nothing to say until it is answered: it has ended."""
        for number in [number for number, peer in self.peers.items() if peer is line]:
            self._leave(number)

    def _leave(self, number: int) -> None:
        line = self.peers.pop(number)
        self._left.add(number)
        self._selector.unregister(line.socket)
        line.close()

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for line in [line for line, deadline in self._strangers.items() if deadline < now]:
            self._drop(line)

    def _drop(self, line: Line) -> None:
        del self._strangers[line]
        self._selector.unregister(line.socket)
        line.close()


def _listener(host: str, port: int) -> socket.socket:
    try:
        at = bind_address(host, port)
        host_there, _, port_there = at.rpartition(":")
        host_there = host_there.strip("[]")
        if host_there == "::" and not socket.has_dualstack_ipv6():
            host_there = ""
        if host_there in ("::", ""):
            dual = host_there == "::"
            family = socket.AF_INET6 if dual else socket.AF_INET
            return socket.create_server(
                ("", int(port_there)), family=family, dualstack_ipv6=dual, backlog=1024
            )
        found = socket.getaddrinfo(host_there, int(port_there), type=socket.SOCK_STREAM)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=1024)
    except (OSError, UnicodeError, ValueError) as error:
        raise UserError(
            f"Process 0 cannot listen at {host}:{port} ({reason_of(error)}); give an address of "
            "process 0's own machine and a free port with --dist.coordinator, on all processes, or "
            f"set {_BIND} where process 0 is reached by another address than its own."
        ) from error


def bind_address(host: str, port: int) -> str:
    """HOST:PORT to listen at for the address that the others were given.

    It is that host alone. All interfaces only where its name stands for this machine itself (as
    Debian's /etc/hosts has it, 127.0.1.1): no other machine would reach that.
    """
    if given := os.environ.get(_BIND):
        return given
    host = host.strip("[]")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    inward = all(ipaddress.ip_address(str(f[4][0]).partition("%")[0]).is_loopback for f in found)
    return _joined("::" if inward and not _says_loopback(host) else host, port)


def _says_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# What a greeting says ---------------------------------------------------------------------------


def _is_greeting(message: Mapping[str, Any]) -> bool:
    """Whether it has all of a greeting, each of its type."""
    return (
        all(type(message.get(name)) is int for name in ("process", "processes"))
        and isinstance(message.get("host"), str)
        and isinstance(message.get("facts"), dict)
        and all(_is_plain(value, _DEEPEST) for value in message["facts"].values())
    )


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _misfit(hello: Mapping[str, Any], other: Mapping[str, Any], peers: Mapping[int, Line]) -> str:
    """Why the other process cannot take part; empty if it can."""
    number, processes = other["process"], hello["processes"]
    host = printable(other["host"], characters=_SHOWN_VALUE)
    who = f"process {_shown(number)} on {host}"
    if other["processes"] != processes:
        return (
            f"{who} was told of {_shown(other['processes'])} processes, process 0 of {processes}; "
            "give all the same --dist.processes."
        )
    if number in peers:
        return (
            f"Two processes are process {number} of {processes}, the second of them on "
            f"{host}; give each its own --dist.process."
        )
    mine, theirs = hello["facts"], other["facts"]
    differences = [
        f"{_shown(name)} ({_shown(theirs.get(name))}, not {_shown(mine.get(name))})"
        for name in {**mine, **theirs}
        if not _equal(mine.get(name), theirs.get(name))
    ]
    if not differences:
        return ""
    more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return (
        f"{who} differs from process 0 on {hello['host']} in {', '.join(differences[:_SHOWN])}"
        f"{more}; start all processes with the same settings, files and versions."
    )


def _equal(a: Any, b: Any) -> bool:
    return a == b or json.dumps(a) == json.dumps(b)  # the latter for NaN


def _shown(value: Any) -> str:
    return printable(value, characters=_SHOWN_VALUE)


# The other processes ----------------------------------------------------------------------------


def call_first(host: str, port: int, hello: Mapping[str, Any], timeout: float) -> Peers:
    """The other processes' part: process 0 has answered, and lets this one take part.

    Raises:
      UserError: process 0 refuses the run, with its sentence, or does not answer in `timeout` s.
    """
    deadline = time.monotonic() + timeout
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        line = None
        try:
            line = _called(host, port, timeout=min(left, 10))
            reason = "it still waits for other processes"
            line.socket.settimeout(left)
            line.send(hello)
            answer = line.receive(left)
            if answer == {"welcome": True}:
                return {0: line}
            if answer is not None and isinstance(answer.get("refused"), str):
                raise UserError(printable(answer["refused"]))
            if answer is not None:
                reason = STRANGER
        except TimeoutError:
            pass
        except (OSError, UnicodeError) as error:  # the latter of a host's name
            reason = reason_of(error)
        if line is not None:
            line.close()
        time.sleep(max(0.0, min(0.2, deadline - time.monotonic())))  # process 0 may start later
    raise UserError(
        f"The coordinator at {host}:{port} has not let process {hello['process']} begin within "
        f"{timeout:g} s ({reason}); check that process 0 runs there and that the port is open, or "
        "wait longer with --dist.start-timeout."
    )


def _called(host: str, port: int, *, timeout: float) -> Line:
    connection = socket.create_connection((host.strip("[]"), port), timeout=timeout)
    # Where nobody listens at a port that machines also call from, a caller may reach itself.
    if connection.getsockname() == connection.getpeername():
        connection.close()
        raise ConnectionRefusedError("Connection refused")
    return Line(connection, limit=MESSAGE_BYTES)
