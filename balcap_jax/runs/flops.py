"""Floating-point operations of a program, counted in its jaxpr: matmuls and convolutions only.

A multiplication with its addition counts two. Loops count as often as they run, which the
`cost_analysis` of XLA does not do.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

# Kernels hide their matmuls in programs of their own, run once per cell of a grid.
OPAQUE = ("pallas_call", "tpu_custom_call", "ffi_call", "custom_call")


def flops_of(function: Callable, *args: Any, trips: int | None = None) -> int:
    """The flops of `function(*args)`, rematerialisation included.

    Args:
      args: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
      trips: see `count`.
    """
    return count(jax.make_jaxpr(function)(*args).jaxpr, trips=trips)


def count(jaxpr: Jaxpr, *, trips: int | None = None) -> int:
    """The flops of a jaxpr, with all that it calls.

    The costliest branch of a conditional counts. Multiplications with zeros that a convolution pads
    or dilates with count.

    Args:
      trips: how often the body of a while loop runs; needed if one has flops.

    Raises:
      ValueError: a while loop with flops and no `trips`, or an operation that hides its own.
    """
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inner = [count(inner, trips=trips) for inner in _jaxprs(eqn.params.values())]
        if name == "dot_general":
            total += _dot_general(eqn)
        elif name == "conv_general_dilated":
            total += _convolution(eqn)
        elif name == "scan":
            total += eqn.params["length"] * sum(inner)
        elif name == "while":
            if sum(inner) and trips is None:
                raise ValueError("a while loop has flops and trips=None; say how often it runs")
            total += sum(inner) * (trips or 0)
        elif name == "cond":
            total += max(inner, default=0)
        elif any(name.startswith(opaque) for opaque in OPAQUE):
            raise ValueError(f"the flops of {name} cannot be counted; count the plain path")
        else:
            total += sum(inner)
    return total


@contextmanager
def without_remat() -> Iterator[None]:
    """What is traced inside keeps its activations: its flops are the model's own.

    Programs must be made inside as well: JAX remembers what it has traced, with or without.
    """

    def keep(function: Callable | None = None, **_: Any) -> Callable:
        return keep if function is None else function

    with mock.patch.object(jax, "checkpoint", keep):
        yield


def _dot_general(eqn: Any) -> int:
    """2 x the size of the result x the size of what is contracted."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(eqn: Any) -> int:
    """Each number of the result is a sum over the kernel of one output feature."""
    kernel = eqn.invars[1].aval
    features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * eqn.outvars[0].aval.size * (kernel.size // features)


def _jaxprs(values: Any) -> Iterator[Jaxpr]:
    """The jaxprs among the parameters of an equation."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
