"""Processes of a run meet, compare themselves, and learn of one another's end; here as threads."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from addresses import free_address

from balcap_jax.errors import UserError
from balcap_jax.parallel.control import Control


def meet(count: int, *, facts=None, lost=None, timeout: float = 60, patience: float = 30) -> list:
    """Both ends of the line for each of `count` processes, or the error that it met."""
    address = free_address()
    facts = facts or [{"jax": "1"}] * count

    def one(process: int):
        try:
            return Control(
                address,
                process=process,
                processes=count,
                facts=facts[process],
                timeout=timeout,
                patience=patience,
                on_lost=None if lost is None else lost[process].append,
            )
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def assert_connected(controls: list, lost: list[list]) -> None:
    """Each lets the others go at the end, and nobody misses anyone."""
    assert all(isinstance(control, Control) for control in controls), controls
    for control in controls:
        control.close()
    time.sleep(0.2)
    assert not any(lost)


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.01)


def test_processes_that_differ_are_refused_on_all_of_them():
    facts = [{"jax": "0.10.2", "rl.eps": 0.1}, {"jax": "0.10.2", "rl.eps": 0.1}]
    facts.append({"jax": "0.10.1", "rl.eps": 0.2, "extra": 1})
    said = meet(3, facts=facts)
    assert len(set(said)) == 1
    assert "process 2 on " in said[0]
    assert "differs from process 0" in said[0]
    assert "jax (0.10.1, not 0.10.2), rl.eps (0.2, not 0.1), extra (1, not None)" in said[0]
    assert "start all processes with the same settings, files and versions" in said[0]


def test_many_differences_are_cut_short():
    said = meet(2, facts=[{}, {f"f{i}": i for i in range(9)}])
    assert "f4 (4, not None) and 4 more;" in said[0]


def connect(address: str) -> socket.socket:
    """A connection to process 0, as soon as it listens."""
    host, port = address.split(":")
    deadline = time.monotonic() + 60
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=60)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def raw(address: str, hello: dict) -> str:
    """What process 0 answers to this greeting."""
    with connect(address) as line:
        line.sendall(json.dumps(hello).encode() + b"\n")
        return line.makefile().readline()


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"processes": 4}, "was told of 4 processes, process 0 of 3; give all the same"),
        ({}, "Two processes are process 1 of 3"),
    ],
)
def test_a_process_that_was_started_wrongly_is_refused(changes, refusal):
    address = free_address()
    found = []

    def first():
        try:
            Control(address, process=0, processes=3, facts={}, timeout=60, patience=60)
        except UserError as error:
            found.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    hello = {"process": 1, "processes": 3, "host": "h", "facts": {}}
    if not changes:  # a first process 1, in the background: it is not answered yet
        threading.Thread(target=raw, args=(address, hello), daemon=True).start()
        time.sleep(0.3)
    answer = raw(address, {**hello, **changes})
    thread.join()
    assert refusal in found[0]
    assert json.loads(answer)["refused"] == found[0]


def test_a_coordinator_that_does_not_answer():
    address = free_address()
    with pytest.raises(UserError) as error:
        Control(address, process=1, processes=2, facts={}, timeout=0.5, patience=30)
    said = str(error.value)
    assert f"coordinator at {address} has not let process 1 begin within 0.5 s" in said
    assert "refused" in said  # by the machine: nobody listens
    assert "--dist.start-timeout" in said


def test_a_host_that_does_not_exist():
    with pytest.raises(UserError, match=r"no-such-host\.invalid:999 .*Name or service|Temporary"):
        Control(
            "no-such-host.invalid:999", process=1, processes=2, facts={}, timeout=0.5, patience=30
        )


def test_a_process_that_does_not_come(meetings):
    address = free_address()
    said = {}

    def one(process: int, timeout: float):
        try:
            Control(address, process=process, processes=3, facts={}, timeout=timeout, patience=30)
        except UserError as error:
            said[process] = str(error)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(one, 0, 60)
        pool.submit(one, 1, 600)
        wait_for(lambda: meetings.came == [1])
        meetings.ahead = 61.0
    assert "Of 3 processes, 2 did not come to " in said[0]
    assert "within 60 s; start each with its --dist.process" in said[0]
    assert said[1] == said[0]


def test_a_process_whose_own_time_is_over_first_says_what_it_waits_for(meetings):
    address = free_address()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            Control, address, process=0, processes=3, facts={}, timeout=60, patience=30
        )
        connect(address).close()  # it listens
        with pytest.raises(UserError, match="it still waits for other processes"):
            Control(address, process=1, processes=3, facts={}, timeout=0.3, patience=30)
        meetings.ahead = 61.0
        with pytest.raises(UserError, match=r"did not come to .* within 60 s"):
            first.result()


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"cannot listen at 127\.0\.0\.1:\d+ \(.*in use"):
            Control(address, process=0, processes=2, facts={}, timeout=1, patience=30)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_is_missed_at_once(victim):
    lost = [[], [], []]
    controls = meet(3, lost=lost)
    controls[victim]._closed.set()  # the dead do not report the ends of their own connections
    for peer in controls[victim]._peers.values():  # as the kernel does for a dead process
        peer.socket.shutdown(socket.SHUT_RDWR)
    others = [process for process in range(3) if process != victim]
    wait_for(lambda: all(lost[process] for process in others))
    for process in others:
        assert lost[process][0] == f"process {victim} has ended without a word"


@pytest.mark.parametrize("victim", [0, 2])
def test_a_process_says_why_it_ends(victim, monkeypatch):
    # set by `end`, and put back after it
    monkeypatch.setattr("balcap_jax.parallel.control._left", False)
    lost = [[], [], []]
    controls = meet(3, lost=lost)
    # It is slow to go on, and hears its own end from process 0 meanwhile.
    tell_all = controls[victim]._tell_all
    controls[victim]._tell_all = lambda message: (tell_all(message), time.sleep(0.3))
    controls[victim].end("the disk is full")
    others = [process for process in range(3) if process != victim]
    wait_for(lambda: all(lost[process] for process in others))
    for process in others:
        assert lost[process][0] == f"process {victim} has ended: the disk is full"
    assert lost[victim] == []


def test_a_process_that_hangs_is_given_up(monkeypatch):
    """It holds its connections, and says nothing; the others say something all the time."""
    # Many, so that the machine may stop for most of the time.
    monkeypatch.setattr("balcap_jax.parallel.control._BEATS", 200)
    lost = [[], [], []]
    controls = meet(3, lost=lost, patience=2)
    time.sleep(2.2)
    assert lost == [[], [], []]
    # Process 0 alone misses it early, the others are as patient with one another as before.
    controls[0]._peers[2].socket.settimeout(0.3)
    time.sleep(0.1)  # a beat comes, after which that counts
    controls[2]._closed.set()  # ends its beats, not its connection
    wait_for(lambda: lost[0] and lost[1])
    assert lost[0][0] == lost[1][0] == "process 2 has not answered for 2 s"
