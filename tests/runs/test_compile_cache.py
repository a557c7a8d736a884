"""The folder that keeps compiled programs for the next run."""

import os
import subprocess
import sys
from pathlib import Path

COMPILES = """
import jax
from balcap_jax.runs.compilation import Compilations, use_persistent_cache

use_persistent_cache()
count = Compilations()
print(jax.jit(lambda x: (x @ x.T).sum())(jax.numpy.ones((8, 8))))
print("from the cache:", count.from_cache)
"""


def test_a_broken_entry_is_replaced(tmp_path):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", COMPILES],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )

    run()
    entries = list(tmp_path.glob("*-cache"))
    assert entries
    assert f"from the cache: {len(entries)}" in run().stdout
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:50])
    broken = run()
    assert "512.0" in broken.stdout
    assert "from the cache: 0" in broken.stdout
    assert f"from the cache: {len(entries)}" in run().stdout
