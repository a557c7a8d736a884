"""Rows of an array taken to other places, by gathers both ways."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped


@jax.custom_vjp
def rearrange(
    x: Shaped[Array, "b s *x"], source: Int[Array, "b t"], target: Int[Array, "b s"]
) -> Shaped[Array, "b t *x"]:
    """`x[source]`, 0 where the source is -1; the gradient is `gradient[target]`.

    A gather both ways, where JAX's own gradient of a gather is a scatter: slow on accelerators.

    Args:
      target: the inverse of `source`: where each row of `x` goes, -1 for those that go nowhere.
    """
    source = source.reshape(*source.shape, *[1] * (x.ndim - 2))
    taken = jnp.take_along_axis(x, jnp.maximum(source, 0), axis=1, mode="clip")
    return jnp.where(source >= 0, taken, 0)


def _rearrange_forward(x: Array, source: Array, target: Array) -> tuple[Array, tuple]:
    return rearrange(x, source, target), (source, target)


def _rearrange_backward(saved: tuple, gradient: Array) -> tuple[Array, None, None]:
    source, target = saved
    return rearrange(gradient, target, source), None, None


rearrange.defvjp(_rearrange_forward, _rearrange_backward)
