"""Programs of a mesh: compiled as its devices run them best, and called on it."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import jax
from jax.sharding import Mesh

# XLA's compiler for CPUs hands matmuls and sums to YNNPACK. Its sums across rows (in the gradients
# of a norm's scale and of softmax) take many times as long as XLA's own loops: a tenth of the
# default run's update. So matmuls and convolutions alone go there.
_ON_CPU = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,"
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION,LIBRARY_FUSION_TYPE_DOT"
}


def on_mesh(mesh: Mesh, function: Callable, **options: Any) -> Callable:
    """`function`, jitted with these `options`, called on the mesh.

    Its `__wrapped__` is the jitted function, to trace or to compile where the mesh is set; that
    one's is `function`, which alone can be part of another program: options are of whole ones.
    """
    platform = mesh.devices.flat[0].platform
    program = jax.jit(function, **options, compiler_options=compiler_options(platform))

    @wraps(program)
    def call(*args):
        with jax.set_mesh(mesh):
            return program(*args)

    return call


@cache
def compiler_options(platform: str) -> dict[str, str] | None:
    """Of XLA for gradients on devices of this platform ("cpu", "gpu", "tpu"); None: its own, also
    where its version does not know them.
    """
    if platform != "cpu":
        return None
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0, compiler_options=_ON_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _ON_CPU
