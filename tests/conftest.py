"""JAX is strict in tests: 8 devices, no silent broadcasting, exact matmuls."""

import ctypes
import gc
import os
import sys
import tempfile
from importlib.metadata import version

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# A worker of tests has a core, not all of them: torch's threads wait for one another, spinning, and
# on a busy machine for longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Many tests compile the same program: each is compiled once per session, for all processes that
# share its work or are started by it. JAX reads these when it is imported. A directory of your own
# is kept for the next session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="balcap-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
# Tests compile much and compute little.
FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # threads that share a core only cost
]
if version("jaxlib").startswith("0.10."):  # a third of the time; later ones do not know the flag
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
if FLAGS[0] not in os.environ.get("XLA_FLAGS", ""):  # a worker has them of the process above it
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Shapes and dtypes are checked in tests only; the library itself pays nothing for them. The rooms
# that work on words have no arrays, and checking each of their many small calls takes minutes.
SHAPED = (
    "models", "rollout", "rl", "parallel.sharding", "reporting", "runs", "training.metrics",
    "training.experience", "training.checkpoint", "training.checkpoint_reading",
    "data.prompts", "data.row_index",
    "data.coco_files", "data.order", "rewards.captions", "rewards.capscore",
)  # fmt: skip
install_import_hook([f"balcap_jax.{name}" for name in SHAPED], "shape_checks.checked")


# Tracing makes so many objects that the collector would look through all of them again and again,
# a tenth of the time. What a file leaves is collected after it, see `_forget_programs`.
gc.set_threshold(20_000, 20, 1_000)

# Files that take long come first, or one process is left with the last of them.
LONG_ROOMS = ("training", "rl", "models", "bench", "commands")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in LONG_ROOMS)


@pytest.fixture(scope="session", autouse=True)
def _quick_to_compile():
    """In this process; `test_compiled`, `test_attention_backends` and runs in processes of their
    own have the real options. Sums by loops, and layers one by one, run faster and compile longer,
    which is what tests do.
    """
    from balcap_jax.models import policy
    from balcap_jax.parallel import compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "compiler_options", lambda platform: None)
        patch.setattr(policy, "MOST_BY_LAYER", 0)
        yield


@pytest.fixture(scope="session")
def _bucket_server():
    from bucket_server import BucketServer

    server = BucketServer()
    yield server
    server.close()


@pytest.fixture
def bucket(_bucket_server, monkeypatch, tmp_path_factory):
    """A new bucket of a server on this machine that the clients of this process know."""
    from bucket_server import Bucket

    for name, value in _bucket_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("BALCAP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    return Bucket(_bucket_server, f"bucket-{len(_bucket_server.buckets)}")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """A file's compiled programs go with it, or a worker grows by gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
    gc.freeze()  # what is left stays, modules mostly: the next collection need not look at it
    if sys.platform == "linux":  # glibc keeps what was freed in small pieces, most of it
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
