"""How many programs a run compiled, and the folder that keeps them for the next run."""

import functools
import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

# Events of jax.monitoring; `_COMPILED` is also sent for a program that came from the cache.
_COMPILED = "/jax/core/compile/backend_compile_duration"
_FROM_CACHE = "/jax/compilation_cache/cache_hits"


class Compilations:
    """Counts from its making on.

    Attributes:
      programs: programs made ready, small ones of single operations included.
      from_cache: how many of them were read from the persistent cache.
      seconds: both took together.
    """

    def __init__(self) -> None:
        self.programs, self.from_cache, self.seconds = 0, 0, 0.0
        self._closed = False
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        jax.monitoring.register_event_listener(self._on_event)

    def close(self) -> None:
        """Stops counting; twice is fine."""
        if self._closed:
            return
        self._closed = True
        jax.monitoring.unregister_event_duration_listener(self._on_duration)
        jax.monitoring.unregister_event_listener(self._on_event)

    def _on_duration(self, event: str, seconds: float, **_: object) -> None:
        if event == _COMPILED:
            self.programs += 1
            self.seconds += seconds

    def _on_event(self, event: str, **_: object) -> None:
        if event == _FROM_CACHE:
            self.from_cache += 1


def use_persistent_cache() -> None:
    """Compiled programs are kept on the disk and found by later runs, as JAX does when it is told.

    The folder is JAX_COMPILATION_CACHE_DIR where that is set (empty: no cache), else
    `balcap_jax` in the user's folder for caches, one for each kind of processor: the machines of
    a cluster may share the folder. A cache that cannot be written is none, and an entry that cannot
    be read is made again.
    """
    _replace_broken_entries()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and nobody knows this user
        return
    folder = caches / "balcap_jax" / f"compiled-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))


@functools.cache
def _replace_broken_entries() -> None:
    """JAX warns of an entry that cannot be read, compiles, and never writes over what is there."""
    from jax._src import compilation_cache  # noqa: PLC0415  there is no other way

    read = getattr(compilation_cache, "get_executable_and_time", None)
    if read is None:  # another JAX: its warnings stay
        return

    @functools.wraps(read)
    def read_or_remove(cache_key: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return read(cache_key, *args, **kwargs)
        except Exception:
            folder = jax.config.jax_compilation_cache_dir
            if folder and "://" not in folder:
                with suppress(OSError):
                    (Path(folder) / f"{cache_key}-cache").unlink()
            raise

    compilation_cache.get_executable_and_time = read_or_remove


def _processor() -> str:
    """A name for what programs compiled for this machine's processor may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
