"""The lock of a folder in a bucket: an object that is made only where there is none, and that its
holder keeps renewing; one that is no longer renewed may be taken over.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.storage.bucket import BucketPath
from balcap_jax.storage.held import taken
from balcap_jax.storage.refusals import as_disk_error

SECONDS = 60.0  # after its last renewal a lease is nobody's
_SKEW = 10.0  # seconds that the clocks of two machines may differ


class Lease:
    """The lease `path`, renewed by a thread until `close`.

    A lease of a process that has ended on this machine is taken over at once, any other one when it
    has not been renewed for `seconds`, which is waited for.

    Args:
      what: what it locks, in words; default: the run in its folder.
      told: prints a line where it has to wait.

    Raises:
      UserError: another process holds it and lives.
      OSError: the bucket refuses.
    """

    def __init__(
        self,
        path: BucketPath,
        *,
        what: str = "",
        seconds: float = SECONDS,
        told: Callable[[str], None] = lambda line: None,
    ):
        from google.cloud import storage  # noqa: PLC0415 - takes a second

        self.path, self._seconds, self._told = path, seconds, told
        self._what = what or f"The run {path.parent}"
        self._me = {**_this_process(), "id": uuid.uuid4().hex}
        self._ended = threading.Event()
        try:
            client = storage.Client(project=os.environ.get("GOOGLE_CLOUD_PROJECT"))
            self._blob = client.bucket(path.bucket).blob(path.key)
            self._generation = self._take()
        except UserError:
            raise
        except Exception as error:
            raise as_disk_error(error, str(path)) from error
        taken.pop(str(path.parent), None)
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Gives the lease back; closing twice is fine."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        if str(self.path.parent) not in taken:
            with suppress(Exception):  # it ends by itself
                self._blob.delete(if_generation_match=self._generation)

    # ---- taking

    def _take(self) -> int:
        """The generation of the lease as this process wrote it."""
        generation = self._write(0)
        if generation is not None:
            return generation
        seen, since = None, time.monotonic()
        while True:
            found = self._read()
            if found is None:
                generation = self._write(0)
                if generation is not None:
                    return generation
                continue
            now, holder = found
            if holder.get("id") == self._me["id"]:  # the answer to our write was lost
                return now
            if seen is None:
                seen, since = now, time.monotonic()
                wait = self._left(holder)
                if wait > 0:
                    self._told(
                        f"{self._what} is held by {_name(holder)}; waiting up to "
                        f"{wait:.0f} s for a sign of life of it"
                    )
            if now != seen:  # renewed, or taken by another that waited
                raise UserError(
                    f"{self._what} is being written by {_name(holder)}, and only one process may; "
                    "wait for it or stop it, or choose another name."
                )
            if time.monotonic() - since >= wait:
                generation = self._write(now)
                if generation is not None:
                    return generation
                seen = None
                continue
            time.sleep(min(1.0, self._seconds / 10))

    def _left(self, holder: dict[str, Any]) -> float:
        """Seconds that a lease must stay as it is before it is nobody's."""
        if _has_ended(holder):
            return 0.0
        seconds = float(holder.get("seconds", self._seconds))
        age = time.time() - float(holder.get("time", 0))
        # By the other's clock; it is waited for by our own, which cannot be wrong about a minute.
        return 0.0 if age > seconds + _SKEW else min(seconds, max(seconds - age, 0) + _SKEW)

    def _read(self) -> tuple[int, dict[str, Any]] | None:
        from google.api_core.exceptions import NotFound  # noqa: PLC0415

        try:
            text = self._blob.download_as_bytes()
        except NotFound:
            return None
        try:
            holder = json.loads(text)
        except ValueError:
            holder = {}
        return int(self._blob.generation), holder if isinstance(holder, dict) else {}

    def _write(self, generation: int) -> int | None:
        """Writes where the object is of this generation (0: none); its new one, None where not."""
        from google.api_core.exceptions import PreconditionFailed  # noqa: PLC0415

        text = json.dumps({**self._me, "time": time.time(), "seconds": self._seconds})
        try:
            self._blob.upload_from_string(
                text, content_type="application/json", if_generation_match=generation
            )
        except PreconditionFailed:
            return None
        return int(self._blob.generation)

    # ---- keeping

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds / 3):
            try:
                generation = self._write(self._generation)
                if generation is None:
                    found = self._read()
                    if found is None or found[1].get("id") != self._me["id"]:
                        self._lose("nobody" if found is None else _name(found[1]))
                        return
                    generation = found[0]
                self._generation, self._renewed = generation, time.monotonic()
            except Exception:  # noqa: BLE001 - the network; the next try may succeed
                if time.monotonic() - self._renewed > self._seconds:
                    self._lose("nobody, as it could not be renewed")
                    return

    def _lose(self, to: str) -> None:
        taken[str(self.path.parent)] = to


# Processes ----------------------------------------------------------------------------------------


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is no more."""
    machine, number = _machine(), holder.get("process")
    if not machine or holder.get("machine") != machine or not isinstance(number, int):
        return False
    return _started(number) != holder.get("started")


def _machine() -> str:
    """Of the running system and its numbers of processes; "" where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began, by the system's clock; "" where there is none, or it is dead."""
    try:
        told = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if told[0] in "ZX" else told[19]


def _name(holder: dict[str, Any]) -> str:
    return f"process {holder.get('process', '?')} of {holder.get('host', 'an unknown host')}"
