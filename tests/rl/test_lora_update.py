"""The update of adapters: the same on any mesh and any split, and only of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_update import BANNED, ONE, PARAMS, POLICY, assert_trees_close, make_batch, optimizer

from balcap_jax.models.adapters import adapted_paths, adapter_shapes
from balcap_jax.models.decoder.lora import TRAINED, A, Lora, take_adapters, without_adapters
from balcap_jax.models.selection import leaf_paths, overlaid
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.plan.costs import costs_of
from balcap_jax.plan.hlo import Program
from balcap_jax.rl.train_state import init_state
from balcap_jax.rl.update import make_reference_logprobs, make_update

LORA = Lora(alpha=6.0)
EVERYWHERE = ("decoder", "projector", "tower")


def start(*, targets=(), **options):
    """The tiny policy with adapters that change something."""
    policy = dataclasses.replace(POLICY, lora=LORA._replace(**options))
    shapes = adapter_shapes(policy, adapted_paths(policy, targets), rank=2)
    rng = np.random.default_rng(4)
    drawn = jax.tree.map(lambda x: (0.1 * rng.normal(size=x.shape)).astype(x.dtype), shapes)
    adapters = jax.device_put(drawn)
    return policy, overlaid(PARAMS, adapters)


def run(batch, mesh=ONE, *, targets=(), dropout=0.0, steps=1, **options):
    policy, params = start(targets=targets, dropout=dropout)
    state = init_state(mesh, params, optimizer(), trained=TRAINED)
    update = make_update(
        policy, optimizer(), mesh, banned_tokens=BANNED, chunk=3, trained=TRAINED, **options
    )
    for _ in range(steps):
        state, metrics = update(state, shard_batch(mesh, batch))
    return state, metrics


@pytest.fixture(scope="module")
def batch():
    return make_batch()


@pytest.fixture(scope="module")
def reference(batch):
    return run(batch)


def test_the_base_stays_and_every_adapter_moves(batch, reference):
    state, metrics = reference
    _, before = start()
    tiny.assert_equal_trees(
        jax.device_get(without_adapters(state.params)), jax.device_get(without_adapters(before))
    )
    old, new = (take_adapters(params)[1] for params in (before, state.params))
    for path, leaves in new.items():
        for name, leaf in leaves.items():
            assert np.abs(np.asarray(leaf) - np.asarray(old[path][name])).max() > 0, (path, name)
    assert metrics["grad_norm"] > 0
    arrays = [path for path in leaf_paths(state.opt_state) if "/mu/" in path or "/nu/" in path]
    assert len(arrays) == 2 * 14
    assert all(path.rpartition("/")[2] in ("lora_A", "lora_B") for path in arrays)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_eight_devices_are_one(batch, reference, sizes):
    data, fsdp, tensor = sizes
    state, metrics = run(batch, make_mesh(data=data, fsdp=fsdp, tensor=tensor))
    assert_trees_close(state.params, reference[0].params, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(metrics["loss"], reference[1]["loss"], rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], reference[1]["grad_norm"], rtol=1e-4)


def test_micro_batches_change_nothing(batch, reference):
    state, metrics = run(batch, micro_batches=4)
    assert_trees_close(state.params, reference[0].params, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(metrics["grad_norm"], reference[1]["grad_norm"], rtol=1e-4)


def test_adapters_of_the_tower_get_gradients(batch):
    """Then the features of the rollout are not read."""
    stale = batch._replace(features=jnp.full_like(batch.features, jnp.nan))
    state, metrics = run(stale, targets=EVERYWHERE)
    assert np.isfinite(metrics["loss"])
    _, before = start(targets=EVERYWHERE)
    for side in ("blocks", "merger"):
        old, new = (take_adapters(params["visual"][side])[1] for params in (before, state.params))
        assert old
        for path, leaves in old.items():
            assert np.abs(np.asarray(new[path][A]) - np.asarray(leaves[A])).max() > 0, path


def test_the_reference_is_the_policy_without_adapters(batch):
    policy, params = start()
    logprobs = make_reference_logprobs(policy, ONE, banned_tokens=BANNED, chunk=3)
    np.testing.assert_array_equal(
        logprobs(without_adapters(params), batch), logprobs(PARAMS, batch)
    )
    assert np.abs(logprobs(params, batch) - logprobs(PARAMS, batch)).max() > 0.01


@pytest.mark.slow
def test_dropout_is_another_in_each_step_and_the_same_on_any_mesh(batch, reference):
    state, metrics = run(batch, dropout=0.3, seed=7)
    assert metrics["loss"] != reference[1]["loss"]
    again, same = run(batch, dropout=0.3, seed=7)
    tiny.assert_equal_trees(jax.device_get(again.params), jax.device_get(state.params))
    _, other = run(batch, dropout=0.3, seed=8)
    assert other["loss"] != metrics["loss"]
    spread, on_mesh = run(batch, make_mesh(data=2, fsdp=2, tensor=2), dropout=0.3, seed=7)
    np.testing.assert_allclose(on_mesh["loss"], metrics["loss"], rtol=1e-4)
    assert_trees_close(spread.params, state.params, rtol=1e-4, atol=2e-5)


def test_the_compiled_update_makes_no_gradient_of_the_base(batch):
    """Counted in flops: the products that only gradients of whole weights need are not there."""

    def flops(policy, params, trained):
        state = init_state(ONE, params, optimizer(), trained=trained)
        update = make_update(policy, optimizer(), ONE, banned_tokens=BANNED, trained=trained)
        with jax.set_mesh(ONE):
            compiled = update.__wrapped__.lower(state, batch).compile()
        return costs_of(Program(compiled.as_text())).flops

    with_adapters = flops(*start(), TRAINED)
    whole = flops(POLICY, PARAMS, POLICY.parts["decoder"])
    # Forward, gradient of inputs, gradient of weights: a third less, rank 2 of width 32 apart.
    assert with_adapters < 0.85 * whole
