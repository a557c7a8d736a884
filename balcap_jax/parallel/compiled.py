"""Programs of a mesh: jitted, and called on it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax.sharding import Mesh


def on_mesh(mesh: Mesh, function: Callable, **options: Any) -> Callable:
    """`function`, jitted with these `options`, called on the mesh.

    Its `__wrapped__` is the jitted function: to trace or to compile, where the mesh is set.
    """
    program = jax.jit(function, **options)

    @wraps(program)
    def call(*args):
        with jax.set_mesh(mesh):
            return program(*args)

    return call
