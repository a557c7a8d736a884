"""What the processes of a run tell one another, through the key-value store of JAX's service."""

import json
import threading
from collections import defaultdict
from typing import Any, Protocol

_WAIT_MS = 1000  # of one question, which C++ waits for: Ctrl-C is not heard meanwhile


class Store(Protocol):
    """The part of `jaxlib`'s DistributedRuntimeClient that is needed here."""

    def key_value_set(self, key: str, value: str) -> None: ...
    def key_value_delete(self, key: str) -> None: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...


class Exchange:
    """One process's side of it.

    All processes make the same calls, in the same order among those of one `tag`.

    Args:
      store: JAX's client, connected.
    """

    def __init__(self, store: Store, *, process: int, processes: int):
        self._store, self.process, self.processes = store, process, processes
        self._counts: defaultdict[str, int] = defaultdict(int)  # calls so far, by tag
        self._read: defaultdict[str, list[str]] = defaultdict(list)  # keys for all, by tag
        self._lock = threading.Lock()

    def gather(self, value: Any, *, tag: str) -> list:
        """The values of all processes, in their order, on all of them.

        Args:
          value: plain JSON; NaN is allowed.
          tag: keeps the calls of different threads apart.

        Raises:
          RuntimeError: JAX's service has ended, or what came is not what the processes sent.
        """
        name = self._next(tag)
        self._store.key_value_set(f"{name}/{self.process}", json.dumps(value))
        if self.process == 0:
            keys = [f"{name}/{i}" for i in range(self.processes)]
            parts = [self._wait(key) for key in keys]
            # Everyone is in this call, so nobody reads what earlier ones left.
            for key in (*keys, *self._read.pop(tag, ())):
                self._store.key_value_delete(key)
            self._for_all(name, tag, f"[{','.join(parts)}]")
        values = _decoded(self._wait(f"{name}/all"))
        if not isinstance(values, list) or len(values) != self.processes:
            raise RuntimeError(f"not {self.processes} values came together for {tag!r}")
        return values

    def from_process_zero(self, value: Any, *, tag: str) -> Any:
        """The value of process 0, on all; the others wait for it however long it takes.

        Raises:
          RuntimeError: see `gather`.
        """
        name = self._next(tag)
        if self.process != 0:
            return _decoded(self._wait(f"{name}/all"))
        self._for_all(name, tag, json.dumps(value))
        return value

    def _next(self, tag: str) -> str:
        with self._lock:
            self._counts[tag] += 1
            return f"balcap/{tag}/{self._counts[tag]}"

    def _for_all(self, name: str, tag: str, text: str) -> None:
        self._store.key_value_set(f"{name}/all", text)
        self._read[tag].append(f"{name}/all")

    def _wait(self, key: str) -> str:
        while True:
            try:
                return self._store.blocking_key_value_get(key, _WAIT_MS)
            except RuntimeError as error:  # JaxRuntimeError is one
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


current: Exchange | None = None  # of this process's run; None where it is the only process


def process_index() -> int:
    """Which process of the run this is; 0 of one."""
    return 0 if current is None else current.process


def process_count() -> int:
    """How many processes the run has."""
    return 1 if current is None else current.processes


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RuntimeError("what came from another process cannot be read") from error
