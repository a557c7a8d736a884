"""The control port is open while processes meet: what comes there may not end or delay a run."""

import json
import random
import re
import resource
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import pytest
import strangers
from addresses import free_address, free_port

from balcap_jax.errors import UserError
from balcap_jax.parallel import meeting
from balcap_jax.parallel.control import Control


def start(pool: ThreadPoolExecutor, address: str, process: int, lost: list, **changes) -> Future:
    """A process of a run of three, as a thread: its Control to come, or the sentence it met."""
    options = {"processes": 3, "facts": {}, "timeout": 60, "patience": 30} | changes

    def one() -> Control | str:
        try:
            return Control(address, process=process, on_lost=lost.append, **options)
        except UserError as error:
            return str(error)

    return pool.submit(one)


def wait_until_open(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            strangers.call(address, b"")
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def assert_meets_through(noise: Callable[[str, int], None]) -> None:
    """A run of three meets, with `noise(address, stage)` while none, one and two others are there;
    and nothing is lost afterwards.
    """
    address, lost = free_address(), []
    with ThreadPoolExecutor(3) as pool:
        coming = [start(pool, address, 0, lost)]
        wait_until_open(address)
        for process in (1, 2):
            noise(address, process - 1)
            coming.append(start(pool, address, process, lost))
            if process == 1:
                time.sleep(0.1)
                assert not coming[0].done()
        controls = [future.result(timeout=60) for future in coming]
    assert all(isinstance(control, Control) for control in controls), controls
    time.sleep(0.1)
    assert lost == []
    for control in controls:
        control.close()


def test_noise_of_every_kind():
    def noise(address: str, stage: int) -> None:
        for sent in strangers.fixed():
            strangers.call(address, sent, leave=("reset", "close")[stage])

    assert_meets_through(noise)


def test_drawn_noise():
    fuzz(seed=12, count=150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_much_drawn_noise(seed):
    fuzz(seed=seed, count=3000)


def fuzz(*, seed: int, count: int) -> None:
    random_ = random.Random(seed)

    def noise(address: str, stage: int) -> None:
        stay = []
        for _ in range(count // 2):
            leave = random_.choice(("close", "reset", "half", "stay"))
            stay.append(strangers.call(address, strangers.drawn(random_), leave=leave))
            del stay[:-200]

    assert_meets_through(noise)


def test_silent_connections_take_no_time_from_others():
    """Six of them once took 5 s each, of the time in which all must have come."""
    silent = []
    begun = time.monotonic()

    def noise(address: str, stage: int) -> None:
        silent.extend(strangers.call(address, b"", leave="stay") for _ in range(6))
        silent.extend(strangers.call(address, b'{"pro', leave="stay") for _ in range(6))

    assert_meets_through(noise)
    assert time.monotonic() - begun < 50  # 24 x 5 s
    assert len(silent) == 24


def test_a_thousand_connections():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    kept = []

    def noise(address: str, stage: int) -> None:
        kept.extend(strangers.call(address, b"", leave="stay") for _ in range(500))

    try:
        assert_meets_through(noise)
        assert len(kept) == 1000
    finally:
        for connection in kept:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_an_endless_line_takes_no_memory():
    """100 MB of one line, of which process 0 keeps no more than a greeting may have."""

    def noise(address: str, stage: int) -> None:
        host, port = address.split(":")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            try:
                for _ in range(100):
                    connection.sendall(b"x" * 2**20)
            except (ConnectionError, TimeoutError):
                pass
            else:
                pytest.fail("all of it was taken")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024  # KiB

    assert_meets_through(noise)


def test_a_line_that_never_ends_is_given_up(monkeypatch):
    """A byte now and then is no sign of life."""
    monkeypatch.setattr(meeting, "_GREETING", 0.5)

    def noise(address: str, stage: int) -> None:
        connection = strangers.call(address, b"{", leave="stay")
        assert connection is not None
        with connection:
            assert is_turned_away(connection, b" ")

    assert_meets_through(noise)


def is_turned_away(connection: socket.socket, drop: bytes) -> bool:
    """Whether the other side has closed it within a minute of drops."""
    for _ in range(600):
        try:
            connection.sendall(drop)
        except ConnectionError:
            return True
        time.sleep(0.1)
    return False


# Those that were let in -------------------------------------------------------------------------


def pair(**options) -> tuple[Control, socket.socket, list]:
    """Process 0 of a run of two, and a process 1 that is only a socket."""
    address, lost = free_address(), []
    with ThreadPoolExecutor(1) as pool:
        first = start(pool, address, 0, lost, processes=2, **options)
        wait_until_open(address)
        other = strangers.call(address, strangers.greeting(processes="2"), leave="stay")
        assert other is not None
        control = first.result(timeout=60)
    assert isinstance(control, Control)
    assert json.loads(other.makefile().readline()) == {"welcome": True}
    return control, other, lost


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\n", b"[1]\n", b'{"ended": [1]}\n', b'{"tag": "a", "value": 1}\n', b'{"a": 1}\n',
        b"[" * 60_000 + b"\n", b"x" * 10**6, b"{}\n", b"\xff\n", strangers.HTTP2,
    ],
)  # fmt: skip
def test_a_process_that_says_something_else_is_lost_with_a_sentence(said):
    control, other, lost = pair()
    with suppress(ConnectionError):
        other.sendall(said)
    wait_for_one(lost)
    assert lost[0].startswith("the connection to process 1 broke (what ")
    control.close()


def test_a_process_that_ends_with_odd_words():
    control, other, lost = pair()
    other.sendall(b'{"ended": "a\\ud83d\\u001b[31m\\nb' + b"x" * 30_000 + b'"}\n')
    wait_for_one(lost)
    assert lost[0].startswith("a??[31m?bxxx")
    assert len(lost[0]) == 4000
    lost[0].encode()
    control.close()


def test_beats_without_an_end_are_no_sign_of_life():
    control, other, lost = pair(patience=0.6)
    begun = time.monotonic()
    while not lost:
        assert time.monotonic() - begun < 60
        other.sendall(b" ")
        time.sleep(0.1)
    assert lost == ["process 1 has not answered for 0.6 s"]
    control.close()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_one(lost: list) -> None:
    wait_for(lambda: lost)
    assert len(lost) == 1


# Killed and started again -----------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_process_that_is_started_again_while_others_are_awaited(leave):
    """It was there already when it was killed, once and again."""

    def noise(address: str, stage: int) -> None:
        if stage == 0:
            for _ in range(3):
                killed = strangers.call(address, strangers.greeting(), leave="stay")
                assert killed is not None
                time.sleep(0.1)
                strangers_leave(killed, leave)

    assert_meets_through(noise)


def strangers_leave(connection: socket.socket, leave: str) -> None:
    if leave == "reset":
        strangers.reset(connection)
    connection.close()


def test_process_zero_is_started_again_while_others_wait():
    address, lost = free_address(), []
    with ThreadPoolExecutor(4) as pool:
        others = [start(pool, address, process, lost) for process in (1, 2)]
        host, port = address.split(":")
        for _ in range(2):  # it hears them, and is killed
            with socket.create_server((host, int(port))) as server:
                for _ in range(2):
                    connection, _ = server.accept()
                    connection.recv(100)
                    strangers.reset(connection)
                    connection.close()
        first = start(pool, address, 0, lost)
        controls = [future.result(timeout=60) for future in (first, *others)]
    assert all(isinstance(control, Control) for control in controls), controls
    for control in controls:
        control.close()
    assert lost == []


@pytest.mark.parametrize(
    ("come", "expected"),
    [
        ("1", r"Of 3 processes, 2 did not come to .* within 60 s; .* \(1 came and ended again\)\."),
        ("12", r"Of 3 processes, 1, 2 came to \S+ and ended before the others were there; read "),
    ],
)
def test_one_that_came_and_was_killed_is_named(come, expected, meetings):
    address, lost = free_address(), []
    with ThreadPoolExecutor(1) as pool:
        first = start(pool, address, 0, lost)
        wait_until_open(address)
        for number, process in enumerate(come):  # one after the other: they are never all there
            killed = strangers.call(address, strangers.greeting(process=process), leave="stay")
            assert killed is not None
            wait_for(lambda n=number: len(meetings.came) > n)
            killed.close()
            wait_for(lambda n=number: len(meetings.left) > n)
        meetings.ahead = 61.0
        said = first.result(timeout=60)
    assert re.match(expected, said), said


# What a process of the run may be told ----------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n", b"{}\n", b'{"welcome": "a"}\n', b'{"refused": 1}\n',
        b"[" * 10**5 + b"\n", b"x" * 10**6, b"\x00\x00\x12\x04" + bytes(20), b"",
        strangers.greeting(),
    ],
)  # fmt: skip
def test_who_answers_without_being_process_zero(answer):
    address, server = strangers.talk(lambda: answer)
    with server, pytest.raises(UserError, match="has not let process 1 begin within 0.3 s"):
        Control(address, process=1, processes=2, facts={}, timeout=0.3, patience=9)


def test_a_refusal_is_shown_printably():
    address, server = strangers.talk(lambda: b'{"refused": "no\\u001b[2J\\ud83d"}\n')
    with server, pytest.raises(UserError, match=r"^no\?\[2J\?$"):
        Control(address, process=1, processes=2, facts={}, timeout=60, patience=9)


def test_what_differs_is_shown_printably():
    address, lost = free_address(), []
    odd = '{"a\\n": "\\u001b[31m\\ud83d", "b": "' + "x" * 5000 + '", "c": NaN}'
    with ThreadPoolExecutor(1) as pool:
        first = start(pool, address, 0, lost, processes=2)
        wait_until_open(address)
        greeting = strangers.greeting(processes="2", host='"h\\r"', facts=odd)
        other = strangers.call(address, greeting, leave="stay")
        said = first.result(timeout=60)
    assert "process 1 on h? differs" in said
    assert "a? (?[31m?, not None), b (" + "x" * 200 + ", not None), c (nan, not None);" in said
    assert json.loads(other.makefile().readline()) == {"refused": said}


def test_facts_of_any_length_are_compared():
    facts = {"long": "x" * 10**6, "nan": float("nan"), "list": [1, [2, "a"]]}
    address, lost = free_address(), []
    with ThreadPoolExecutor(3) as pool:
        coming = [start(pool, address, i, lost, facts=dict(facts)) for i in range(3)]
        controls = [future.result(timeout=60) for future in coming]
        assert all(isinstance(control, Control) for control in controls), controls
        for control in controls:
            control.close()
        address = free_address()
        other = facts | {"long": "x" * 10**6 + "y"}
        coming = [
            start(pool, address, i, lost, processes=2, facts=f)
            for i, f in enumerate((facts, other))
        ]
        said = {future.result(timeout=60) for future in coming}
    assert len(said) == 1
    assert "in long (1000003 characters, sha256 " in said.pop()


# Where process 0 listens ------------------------------------------------------------------------


def test_process_zero_listens_at_the_given_address_alone():
    """127.0.0.2 is this machine, too, and another address."""
    port = free_port()
    lost: list = []
    with ThreadPoolExecutor(3) as pool:
        first = start(pool, f"127.0.0.2:{port}", 0, lost, processes=2)
        wait_until_open(f"127.0.0.2:{port}")
        with pytest.raises(ConnectionRefusedError):
            strangers.call(f"127.0.0.1:{port}", b"")
        second = start(pool, f"127.0.0.2:{port}", 1, lost, processes=2)
        for future in (first, second):
            future.result(timeout=60).close()


def test_the_address_to_listen_at(monkeypatch):
    assert meeting.bind_address("10.0.0.1", 8476) == "10.0.0.1:8476"
    assert meeting.bind_address("localhost", 8476) == "localhost:8476"
    assert meeting.bind_address("[::1]", 8476) == "[::1]:8476"
    # As Debian's /etc/hosts has it: the machine's own name leads to itself alone.
    monkeypatch.setattr(
        meeting.socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.1.1", 8476))]
    )
    assert meeting.bind_address("node007", 8476) == "[::]:8476"
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.0.0.7:8476")
    assert meeting.bind_address("node007", 8476) == "10.0.0.7:8476"


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 70, "é" * 70])
def test_an_address_of_another_machine_or_of_none(host):
    with pytest.raises(UserError, match=r"Process 0 cannot listen at .*; give an address of proc"):
        Control(f"{host}:8476", process=0, processes=2, facts={}, timeout=1, patience=9)


def test_a_host_that_is_no_name():
    with pytest.raises(UserError, match=r"has not let process 1 begin within 0.3 s \("):
        Control(f"{'a' * 70}:8476", process=1, processes=2, facts={}, timeout=0.3, patience=9)


def test_threads_of_the_line_end_with_it():
    before = threading.active_count()
    control, other, _ = pair(patience=0.6)
    other.sendall(b'{"bye": true}\n')
    control.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
