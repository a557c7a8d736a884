"""What processes tell one another by JAX's own service; here as threads, each with its client."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from addresses import free_address
from jax._src.lib import _jax

from balcap_jax.parallel.exchange import Exchange


class Counted:
    """A client of JAX that remembers its keys."""

    def __init__(self, client, keys: set[str]):
        self._client, self._keys = client, keys
        self.blocking_key_value_get = client.blocking_key_value_get

    def key_value_set(self, key: str, value: str) -> None:
        self._keys.add(key)
        self._client.key_value_set(key, value)

    def key_value_delete(self, key: str) -> None:
        self._keys.remove(key)
        self._client.key_value_delete(key)


@contextmanager
def exchanges(count: int) -> Iterator[tuple[list[Exchange], set[str], list]]:
    """(one of each process, the keys that JAX holds, JAX's clients)"""
    address = free_address()
    service = _jax.get_distributed_runtime_service(address, count)
    clients = [_jax.get_distributed_runtime_client(address, i) for i in range(count)]
    keys: set[str] = set()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        try:
            yield (
                [
                    Exchange(Counted(client, keys), process=i, processes=count)
                    for i, client in enumerate(clients)
                ],
                keys,
                clients,
            )
        finally:
            list(pool.map(lambda client: client.shutdown(), clients))
            service.shutdown()


def together(members: list, call) -> list:
    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(call, members))


def test_values_reach_all_in_the_order_of_the_processes():
    with exchanges(3) as (members, keys, _):
        for _ in range(3):  # one after the other, and much at once
            said = together(members, lambda e: e.gather([e.process, float("inf")], tag="a"))
            assert said == [[[0, float("inf")], [1, float("inf")], [2, float("inf")]]] * 3
        large = "é" * 10**6
        assert together(members, lambda e: e.gather(large, tag="a")) == [[large] * 3] * 3
        told = together(members, lambda e: e.from_process_zero(f"by {e.process}", tag="b"))
        assert told == ["by 0"] * 3
        assert keys == {"balcap/a/4/all", "balcap/b/1/all"}  # a long run leaves no more


def test_calls_of_two_threads_do_not_mix():
    """Each process asks for two things at once, in another order."""

    def both(member: Exchange):
        tags = ("a", "b") if member.process else ("b", "a")
        with ThreadPoolExecutor(2) as pool:
            asked = {tag: pool.submit(member.gather, [tag], tag=tag) for tag in tags}
            return {tag: asked[tag].result() for tag in ("a", "b")}

    with exchanges(2) as (members, _, _):
        assert together(members, both) == [{"a": [["a"], ["a"]], "b": [["b"], ["b"]]}] * 2


def test_a_slow_process_is_waited_for(monkeypatch):
    """Longer than one question to JAX takes."""
    monkeypatch.setattr("balcap_jax.parallel.exchange._WAIT_MS", 50)

    def late(member: Exchange):
        time.sleep(0.4 * member.process)
        return member.gather(member.process, tag="a")

    with exchanges(2) as (members, _, _):
        assert together(members, late) == [[0, 1]] * 2


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[1, 2", "[" * 10**5, "1", '{"a": 1}', "[1]", "[1, 2, 3]"]
)
def test_what_a_stranger_writes_there_is_no_value(text):
    """JAX's service lets anyone write who reaches its port."""
    with exchanges(2) as (members, _, clients):
        clients[1].key_value_set("balcap/a/1/all", text)
        found = []

        def second():
            with pytest.raises(RuntimeError, match="cannot be read|not 2 values") as error:
                members[1].gather(1, tag="a")
            found.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=60)
        assert found
