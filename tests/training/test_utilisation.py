"""Model flops utilisation by hand; what is not known is left out and said."""

from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from balcap_jax.models.attention.backends import xla
from balcap_jax.models.families import make_policy
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.training import utilisation
from balcap_jax.training.utilisation import Utilisation

POLICY = make_policy(tiny.CONFIG, remat="full")
MATMUL = 2 * 3 * 4 * 5


def counted(monkeypatch, told, peak=1000.0):
    monkeypatch.setattr(utilisation, "peak_flops", lambda devices: peak * len(devices))
    return Utilisation(make_mesh(devices=jax.devices()[:2], fsdp=2), POLICY, tell=told.append)


def test_by_hand(monkeypatch):
    told, seen = [], []
    mfu = counted(monkeypatch, told)

    def make(policy):
        seen.append((policy.attention, policy.remat))

        def program(a, b):
            loop = jax.lax.while_loop(
                lambda c: jnp.sum(c) < 9.0, lambda c: jax.checkpoint(jnp.matmul)(c, b.T @ b), a
            )
            return a @ b.T, loop

        return jax.jit(program)

    a, b = jnp.ones((3, 5)), jnp.ones((4, 5))
    square = 2 * 5 * 5 * 4 + 2 * 3 * 5 * 5  # b.T @ b and c @ that, in each trip
    mfu.ran("rollout", "loop", make, a, b, times=2, trips=7)
    mfu.ran("update", "loop", make, a, b)
    assert len(seen) == 1  # one tracing for all runs of these shapes
    assert seen == [(xla(), "none")]
    row = mfu.take({"seconds/rollout": 4.0, "seconds/update": 0.5, "seconds/step": 5.0})
    rollout, update = 2 * (MATMUL + 7 * square), MATMUL
    assert row == pytest.approx(
        {
            "mfu/rollout": rollout / (4.0 * 2000),
            "mfu/update": update / (0.5 * 2000),
            "mfu/step": (rollout + update) / (5.0 * 2000),
        }
    )
    assert mfu.take({"seconds/step": 5.0}) == {}
    mfu.ran("update", "loop", make, jnp.ones((6, 5)), b)  # other shapes: counted anew
    assert len(seen) == 2
    assert mfu.take({"seconds/update": 1.0})["mfu/update"] == pytest.approx(2 * MATMUL / 2000)
    assert not told


def test_what_cannot_be_counted_ends_the_counting_and_not_the_run(monkeypatch):
    told = []
    mfu = counted(monkeypatch, told)

    def refuses(policy):
        raise ValueError("a kernel hides its flops")

    for _ in range(2):
        mfu.ran("update", "update", refuses, jnp.ones(3))
        assert mfu.take({"seconds/update": 1.0, "seconds/step": 1.0}) == {}
    assert told == ["the flops of update cannot be counted: no more mfu (a kernel hides its flops)"]


@pytest.mark.parametrize(("platform", "lines"), [("gpu", 1), ("cpu", 0)])
def test_an_unknown_accelerator_is_said(platform, lines):
    device = Mock(spec=jax.Device, platform=platform, device_kind="NVIDIA Foo", id=0)
    device.coords = None
    told = []
    mfu = Utilisation(SimpleNamespace(devices=np.array([device])), POLICY, tell=told.append)
    mfu.ran("update", "update", lambda policy: pytest.fail("is not made"), jnp.ones(3))
    assert mfu.take({"seconds/update": 1.0}) == {}
    assert told == ["the rate of NVIDIA Foo is not known: metrics have no mfu"][:lines]
