"""What is set before JAX opens its devices."""

import os
import subprocess
import sys

import jax
import pytest

from balcap_jax.runs import jax_setup

# Page faults of taking and dropping 64 MB ten times in a thread, as XLA's threads do.
FAULTS = """
import ctypes, resource, sys, threading
from balcap_jax.runs.jax_setup import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def take():
    memory = ctypes.c_void_p(libc.malloc(64 * 2**20))
    ctypes.memset(memory, 1, 64 * 2**20)
    libc.free(memory)

def taken(times):
    for _ in range(times):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(-taken(2) + taken(10))
"""


def faults(kind: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, kind], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="glibc's malloc, which other systems lack"
)
def test_memory_that_is_kept_is_not_cleared_again():
    each = 64 * 2**20 // 4096
    assert faults("left") > 5 * each
    assert faults("kept") < each


# The devices of a process with three cores, or as many as were asked for before.
CORES = """
import os, sys
import jax
from balcap_jax.runs import jax_setup

jax_setup.usable_cores = lambda: 3
if sys.argv[2] == "opened":
    jax.devices()
elif sys.argv[2] == "said":
    jax.config.update("jax_num_cpu_devices", 5)
jax_setup.open_cores(int(sys.argv[1]))
print(len(jax.devices()), jax_setup.cores_are_devices())
"""


@pytest.mark.parametrize(
    ("parts", "before", "flags", "devices"),
    [
        (6, "", "", "3 True"),
        (8, "", "", "2 True"),
        (7, "", "", "1 True"),
        (6, "opened", "", "1 False"),
        (6, "said", "", "5 False"),
        (6, "", "--xla_force_host_platform_device_count=4", "4 False"),
    ],
)
def test_cores_become_devices_unless_they_are_there(parts, before, flags, devices):
    done = subprocess.run(
        [sys.executable, "-c", CORES, str(parts), before],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.strip() == devices


@pytest.mark.parametrize(
    ("platforms", "plugins", "packages", "cpu"),
    [
        ("cpu", ["cuda"], ["libtpu"], True),
        ("cuda,cpu", [], [], False),
        (None, [], [], True),
        (None, ["xla_cuda13"], [], False),
        (None, [], ["libtpu"], False),
        (None, [], ["jax_plugins"], False),
    ],
)
def test_the_device_is_told_without_opening_it(monkeypatch, platforms, plugins, packages, cpu):
    told = []
    monkeypatch.setattr(jax_setup.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(
        jax_setup.importlib.util, "find_spec", lambda name: name if name in packages else None
    )
    monkeypatch.setattr(jax_setup, "keep_freed_memory", lambda: told.append("kept"))
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        jax_setup.set_up_memory()
    finally:
        jax.config.update("jax_platforms", before)
    assert bool(told) == cpu
