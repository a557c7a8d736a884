"""Flops of single operations of a compiled program: dots, convolutions, attention kernels."""

import re
from collections.abc import Mapping

import numpy as np

from balcap_jax.plan.hlo import FLOATS, Computation, Instruction

# Matmuls per pair of queries and keys in the kernels of splash attention, by their names in HLO:
# scores and values; for the gradients of keys and values scores, dp, dv, dk; for queries one less.
_KERNEL_MATMULS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}


def dot_flops(where: Computation, dot: Instruction) -> float:
    """2 x the size of the result x the size of what is contracted."""
    left = where.operands(dot)[0].shape[0]
    contracted = re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or "")
    return (
        2.0
        * float(np.prod(dot.shape[0].dims))
        * float(np.prod([left.dims[int(axis)] for axis in contracted]))
    )


def convolution_flops(where: Computation, convolution: Instruction) -> float:
    """As which the compiler for TPUs writes every matmul; products with padding do not count."""
    left, right = (operand.shape[0] for operand in where.operands(convolution)[:2])
    if left.dtype not in FLOATS:
        return 0.0
    labels = re.match(r"(\w+)_(\w+)->(\w+)", convolution.attribute("dim_labels"))
    lhs, rhs, out = labels.groups()
    result = convolution.shape[0].dims
    window = re.search(r"window=\{([^}]*)\}", convolution.text)
    options = dict(re.findall(r"(\w+)=(\S+)", window.group(1))) if window else {}
    total = 2.0 * result[out.index("b")] * result[out.index("f")] * right.dims[rhs.index("i")]
    for axis in range(len(out) - 2):
        label = str(axis)

        def at(name: str, default: str, axis: int = axis) -> str:
            return options[name].split("x")[axis] if name in options else default

        low, _ = map(int, at("pad", "0_0").split("_"))
        total *= _products(
            left.dims[lhs.index(label)],
            right.dims[rhs.index(label)],
            result[out.index(label)],
            low=low,
            stride=int(at("stride", "1")),
            left_dilation=int(at("lhs_dilate", "1")),
            right_dilation=int(at("rhs_dilate", "1")),
        )
    return total


def _products(
    size: int,
    window: int,
    results: int,
    *,
    low: int,
    stride: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """Pairs of result and place in the window that meet an element, not padding or a hole."""
    places = np.arange(results)[:, None] * stride + np.arange(window)[None] * right_dilation - low
    inside = (places >= 0) & (places <= (size - 1) * left_dilation)
    return int(np.sum(inside & (places % left_dilation == 0)))


def kernel_flops(
    where: Computation, kernel: Instruction, *, attended: Mapping[int, float]
) -> float:
    """Of an attention kernel; 0 of any other custom call.

    Args:
      attended: see `costs.costs_of`.
    """
    matmuls = next((n for k, n in _KERNEL_MATMULS.items() if k in kernel.name), 0)
    if not matmuls:
        return 0.0
    queries = next(
        array
        for operand in where.operands(kernel)
        for array in operand.shape
        if array.dtype in FLOATS and len(array.dims) in (3, 4)
    )
    *_, length, head = queries.dims
    rows = int(np.prod(queries.dims[:-2]))
    share = attended.get(length, 1.0)
    return 2.0 * matmuls * rows * length * length * head * share
