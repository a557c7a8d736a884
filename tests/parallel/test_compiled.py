"""Options of XLA by platform, and programs that are called on their mesh."""

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.parallel import compiled
from balcap_jax.parallel.compiled import compiler_options, on_mesh
from balcap_jax.parallel.sharding import make_mesh


@pytest.fixture
def asked_anew():
    """`compiler_options` asks XLA once; here it asks again, and after the test, too."""
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


@pytest.fixture(autouse=True)
def real_options(monkeypatch):
    """As in a run."""
    monkeypatch.setattr(compiled, "compiler_options", compiler_options)


def test_cpus_keep_sums_from_the_library_of_matmuls():
    [kinds] = compiler_options("cpu").values()
    assert "DOT" in kinds
    assert "REDUCE" not in kinds


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_other_platforms_keep_their_own_options(platform):
    assert compiler_options(platform) is None


def test_an_xla_that_does_not_know_an_option_goes_without(monkeypatch, asked_anew):
    monkeypatch.setattr(compiled, "_ON_CPU", {"xla_cpu_no_such_option": "1"})
    assert compiler_options("cpu") is None
    twice = on_mesh(make_mesh(devices=jax.devices()[:1]), lambda x: 2 * x)
    assert float(twice(jnp.ones(()))) == 2


def test_a_program_sees_its_mesh_and_its_options():
    mesh = make_mesh(data=2, devices=jax.devices()[:2])
    assert compiler_options("cpu")
    seen = []

    def scaled(x, factor):
        seen.append(jax.sharding.get_abstract_mesh().shape["data"])
        return factor * x

    program = on_mesh(mesh, scaled, static_argnums=1)
    np.testing.assert_array_equal(program(jnp.arange(3.0), 2), [0, 2, 4])
    assert seen == [2]
    with jax.set_mesh(mesh):  # the jitted function itself
        assert program.__wrapped__.lower(jnp.arange(3.0), 3).compile() is not None
    assert unwrap(program) is scaled
