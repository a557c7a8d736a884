"""Programs that are called on their mesh."""

import jax
import jax.numpy as jnp
import numpy as np

from balcap_jax.parallel.compiled import on_mesh
from balcap_jax.parallel.sharding import make_mesh


def test_a_program_sees_its_mesh_and_its_options():
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    seen = []

    def scaled(x, factor):
        seen.append(jax.sharding.get_abstract_mesh().shape["data"])
        return factor * x

    program = on_mesh(mesh, scaled, static_argnums=1)
    np.testing.assert_array_equal(program(jnp.arange(3.0), 2), [0, 2, 4])
    assert seen == [2]
    with jax.set_mesh(mesh):  # the jitted function itself
        assert program.__wrapped__.lower(jnp.arange(3.0), 3).compile() is not None
