"""The matmul of a linear layer, with a backward pass that fits the devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


@jax.custom_vjp
def matmul(x: Array, weight: Array) -> Array:
    """x @ weight.T, whose backward pass contracts the rows of the output's gradient where they lie.

    JAX's own rule leaves XLA the choice, and XLA on CPUs transposes that gradient within the loop
    that makes it, strided over every input of that loop.
    """
    return x @ weight.T


def _forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight.T, (x, weight)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = saved
    rows = (((0,), (0,)), ((), ()))
    return gradient @ weight, jax.lax.dot_general(gradient, x, rows)


matmul.defvjp(_forward, _backward)


@jax.custom_vjp
def matmul_float32(x: Array, weight: Array) -> Array:
    """x @ weight.T in float32, whose backward pass multiplies in the dtype of `x` and `weight`.

    By JAX's own rule the float32 gradient decides, and a GPU multiplies the logits' gradient by a
    bfloat16 head at half the rate and less. Rounded, it is as exact as the head.
    """
    return jnp.matmul(x, weight.T, preferred_element_type=jnp.float32)


def _backward_float32(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    return _backward(saved, gradient.astype(saved[1].dtype))


matmul_float32.defvjp(lambda x, weight: (matmul_float32(x, weight), (x, weight)), _backward_float32)
