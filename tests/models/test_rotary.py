"""Rotary embedding: two ways to compute it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.models.decoder.rotary import rotate, rotate_by_matmul


def test_by_hand():
    x = jnp.array([3.0, 5.0, 4.0, 6.0]).reshape(1, 1, 4)  # pairs (3, 4) and (5, 6)
    angles = jnp.array([[np.pi / 2, np.pi]])
    for function in (rotate, rotate_by_matmul):
        np.testing.assert_allclose(
            function(x, angles), jnp.array([-4.0, -5.0, 3.0, -6.0]).reshape(1, 1, 4), atol=1e-5
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_matmul_computes_the_same_in_values_and_gradients(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 7, 3, 16)).astype(dtype)
    weight = jax.random.normal(keys[1], x.shape)
    for rows in (1, 2):
        angles = 10 * jax.random.normal(keys[2], (rows, 7, 8))

        def of(function, angles=angles):
            def objective(x):
                out = function(x, angles)
                return jnp.sum(jnp.sin(out.astype(jnp.float32)) * weight), out

            return jax.jit(jax.value_and_grad(objective, has_aux=True))(x)

        (loss, value), gradient = of(rotate)
        (ours, our_value), our_gradient = of(rotate_by_matmul)
        assert our_value.dtype == value.dtype == dtype
        exact = dtype == jnp.float32
        as_float = [np.asarray(a, np.float32) for a in (our_value, value, our_gradient, gradient)]
        np.testing.assert_allclose(*as_float[:2], rtol=0, atol=2e-6 if exact else 0.05)
        np.testing.assert_allclose(*as_float[2:], rtol=0, atol=5e-6 if exact else 0.1)
        assert float(ours) == pytest.approx(float(loss), rel=1e-5 if exact else 0.02)
