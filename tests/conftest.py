"""JAX is strict in tests: 8 devices, no silent broadcasting, exact matmuls."""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
# Many tests compile the same program; each is compiled once per session. The processes that share
# the work find the folder in the environment of the one that started them.
if "BALCAP_TESTS_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="balcap-tests-")
    os.environ["BALCAP_TESTS_CACHE"] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["BALCAP_TESTS_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Shapes and dtypes are checked in tests only; the library itself pays nothing for them. The rooms
# that work on words have no arrays, and checking each of their many small calls takes minutes.
SHAPED = (
    "models", "rollout", "rl", "sharding", "metrics", "experience", "report", "checkpoint", "runs",
    "data.processing", "data.caption_files", "rewards.captions",
)  # fmt: skip
install_import_hook([f"balcap_jax.{name}" for name in SHAPED], "beartype.beartype")
