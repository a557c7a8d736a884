"""How many programs a run compiled, and the folder that keeps them for the next run."""

import hashlib
import os
import platform
from pathlib import Path

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
    a cluster may share the folder. A cache that cannot be written is none.
    """
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


def _processor() -> str:
    """A name for what programs compiled for this machine's processor may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
