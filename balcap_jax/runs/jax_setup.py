"""What is set before JAX opens its devices."""

import ctypes
import importlib.metadata
import importlib.util
import os
from contextlib import suppress

import jax

from balcap_jax.runs.compilation import use_persistent_cache
from balcap_jax.runs.cores import even_shares, usable_cores

# glibc's malloc.h: what `mallopt` sets.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_XLA_DEVICES = "xla_force_host_platform_device_count"
_MOST = 2**31 - 1  # bytes at the end of the heap that are kept

_made_of_cores = False  # whether `open_cores` has said how many devices there are


def set_up_jax() -> None:
    """For every command that computes, before it asks for devices; twice is fine.

    Compiled programs are kept on the disk (`use_persistent_cache`), and freed memory in the process
    (`set_up_memory`).
    """
    use_persistent_cache()
    set_up_memory()


def set_up_memory() -> None:
    """`keep_freed_memory` where it helps, on CPUs."""
    if computes_on_cpu():
        keep_freed_memory()


def open_cores(parts: int) -> None:
    """Where JAX will find CPUs alone, devices for as many of the cores as share out `parts` evenly.

    Nothing changes where JAX has opened its devices, or where someone has said how many there are.
    """
    told = jax.config.jax_num_cpu_devices > 0 or _XLA_DEVICES in os.environ.get("XLA_FLAGS", "")
    if told or not computes_on_cpu():
        return
    with suppress(RuntimeError):  # JAX has opened them
        jax.config.update("jax_num_cpu_devices", even_shares(parts, usable_cores()))
        global _made_of_cores  # noqa: PLW0603 - as the devices, which are of the process
        _made_of_cores = True


def cores_are_devices() -> bool:
    """Whether the devices of this process are there by `open_cores`."""
    return _made_of_cores


def computes_on_cpu() -> bool:
    """Whether JAX will find no device but CPUs, told without opening any."""
    asked = jax.config.jax_platforms
    if asked:
        return asked == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    names = ("jax_plugins", "libtpu")
    return not plugins and not any(importlib.util.find_spec(name) for name in names)


def keep_freed_memory() -> None:
    """Tells glibc to give no freed memory back to the system; nothing where there is no glibc.

    XLA allocates the temporaries of a program, hundreds of MB, for each call, in threads of its
    own. Left alone, glibc maps and unmaps them each time, and the system clears every page again: a
    sixth of the default run's time. Kept memory is reused; the most that a process has does not
    grow. It must be said before these threads are there: afterwards they have heaps of their own,
    which are too small for that.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
