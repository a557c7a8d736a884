"""The update of packed tokens is the padded one: loss, metrics and every gradient."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tiny_llava
from tiny_update import BANNED, ONE, B, C, G, assert_trees_close, make_batch

from balcap_jax.models.adapters import adapted_paths, adapter_shapes
from balcap_jax.models.decoder.lora import TRAINED, Lora
from balcap_jax.models.packing import Room
from balcap_jax.models.selection import EVERYTHING, overlaid
from balcap_jax.parallel.sharding import batch_shards, make_mesh, shard_batch
from balcap_jax.plan.costs import costs_of
from balcap_jax.plan.hlo import Program
from balcap_jax.rl.balance import Parts
from balcap_jax.rl.train_state import init_state
from balcap_jax.rl.update import make_reference_logprobs, make_update
from balcap_jax.training.rooms import least_room

FAMILIES = {"qwen2_5_vl": (tiny, BANNED), "llava": (tiny_llava, (tiny_llava.IMAGE,))}
EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
ADAPTERS = "adapters"  # in place of patterns of what trains


def keeps_gradients() -> optax.GradientTransformation:
    """An optimizer that moves nothing and whose state is the last gradient."""
    return optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda updates, state, params=None: (
            jax.tree.map(jnp.zeros_like, updates),
            updates,
        ),
    )


OPTIMIZER = keeps_gradients()


@cache
def policy_of(family: str, trained: str | tuple[str, ...], remat: str):
    policy, params = FAMILIES[family][0].policy(remat=remat)
    if trained != ADAPTERS:
        return policy, params
    policy = dataclasses.replace(policy, lora=Lora(alpha=6.0))
    shapes = adapter_shapes(policy, adapted_paths(policy, ()), rank=2)
    rng = np.random.default_rng(4)
    adapters = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), shapes)
    return policy, overlaid(params, adapters)


def batch_of(family: str):
    """Completions of all lengths, an empty one and full ones among them, one without signal."""
    batch = make_batch()
    if family == "llava":
        policy, params = policy_of(family, (), "none")
        prompts = jax.tree.map(jnp.asarray, tiny_llava.prompts((1, 2, 0, 1, 1, 2, 1, 1)))
        features = jax.jit(policy.encode_images)(params, prompts.images)
        batch = batch._replace(prompts=prompts, features=features)
    return batch._replace(mask=batch.mask.at[2, 0].set(False).at[3].set(True))


def room_of(batch, mesh, micro_batches):
    return least_room(
        np.asarray(batch.mask).sum(axis=-1),
        np.asarray(batch.valid),
        np.asarray(batch.prompts.mask).sum(axis=1),
        length=C,
        prefix_length=batch.prompts.mask.shape[1],
        parts=Parts.of(mesh, micro_batches),
    )


def compare(family, *, mesh=ONE, trained=None, remat="none", kl_coef=0.0, micro_batches=1):
    """Runs both updates and compares all that they give."""
    policy, params = policy_of(family, trained or (), remat)
    patterns = {None: policy.parts["decoder"], ADAPTERS: TRAINED}.get(trained, trained)
    options = {"banned_tokens": FAMILIES[family][1], "micro_batches": micro_batches, "chunk": 3}
    batch = batch_of(family)
    room = room_of(batch, mesh, micro_batches)
    assert room is not None
    assert sum(room) * batch_shards(mesh) * micro_batches < B * (
        batch.prompts.mask.shape[1] + G * C
    )
    if kl_coef:
        reference = make_reference_logprobs(policy, mesh, **options)
        moved = jax.tree.map(lambda x: 1.01 * x, params)
        on_mesh = shard_batch(mesh, batch)
        logprobs, packed = (reference(moved, on_mesh, r) for r in (None, room))
        live = batch.mask & batch.valid[..., None]
        np.testing.assert_allclose(packed, jnp.where(live, logprobs, 0), rtol=1e-5, atol=1e-5)
        batch = batch._replace(reference_logprobs=packed, start_logprobs=packed)
        options["importance_cap"] = 1.2  # the same logprobs, of another use
    update = make_update(policy, OPTIMIZER, mesh, kl_coef=kl_coef, trained=patterns, **options)

    def run(room: Room | None):
        state = init_state(mesh, params, OPTIMIZER, trained=patterns)
        return update(state, shard_batch(mesh, batch), room)

    (padded, plain), (state, metrics) = run(None), run(room)
    assert_trees_close(metrics, plain, rtol=1e-5, atol=1e-6)
    assert metrics["loss"] != 0
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(padded.opt_state))
    assert_trees_close(state.opt_state, padded.opt_state, rtol=1e-5, atol=1e-5 * largest)
    assert largest > 1e-2


@pytest.fixture
def apart(monkeypatch):
    """As between accelerators: a prompt stays on its device."""
    monkeypatch.setattr(Parts, "of", lambda mesh, micro: Parts(batch_shards(mesh), micro))


@pytest.mark.one_jax
def test_with_kl_and_micro_batches():
    compare("qwen2_5_vl", kl_coef=0.3, micro_batches=2)


@pytest.mark.slow
def test_with_a_tower_that_trains_and_rematerialisation():
    compare("llava", trained=EVERYTHING, remat="full")


@pytest.mark.slow
@pytest.mark.usefixtures("apart")
def test_adapters_on_eight_devices():
    compare("qwen2_5_vl", mesh=make_mesh(**EIGHT), trained=ADAPTERS)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trained": EVERYTHING, "remat": "attention", "micro_batches": 4},
        {"trained": ADAPTERS, "remat": "dots"},
        {"mesh": make_mesh(**EIGHT), "kl_coef": 0.3},
    ],
    ids=["plain", "tower", "adapters", "eight devices"],
)
def test_in_all_combinations(family, options):
    """Each setting with each family."""
    compare(family, **options)


@pytest.mark.one_jax
def test_the_order_of_completions_changes_nothing():
    policy, params = policy_of("qwen2_5_vl", (), "none")
    update = make_update(policy, OPTIMIZER, ONE, banned_tokens=BANNED)
    batch, rng = batch_of("qwen2_5_vl"), np.random.default_rng(0)
    room = room_of(batch, ONE, 1)
    order = np.stack([rng.permutation(G) for _ in range(B)])

    def ordered(x):
        return jnp.take_along_axis(x, order.reshape(B, G, *[1] * (x.ndim - 2)), axis=1)

    names = ("tokens", "mask", "old_logprobs", "advantages", "valid")
    other = batch._replace(**{name: ordered(getattr(batch, name)) for name in names})

    def run(batch):
        state = init_state(ONE, params, OPTIMIZER, trained=policy.parts["decoder"])
        return update(state, shard_batch(ONE, batch), room)

    (state, metrics), (expected, plain) = run(other), run(batch)
    assert_trees_close(metrics, plain, rtol=1e-5, atol=1e-6)
    assert_trees_close(state.opt_state, expected.opt_state, rtol=1e-5, atol=1e-6)
    # A room that is too small leaves nothing out without a word: the step is skipped.
    small = Room(room.own // 4 * 2, room.prefix)
    state = init_state(ONE, params, OPTIMIZER, trained=policy.parts["decoder"])
    _, metrics = update(state, shard_batch(ONE, batch), small)
    assert metrics["skipped"] == 1
    assert np.isnan(metrics["loss"])


@pytest.mark.usefixtures("apart")
@pytest.mark.one_jax
def test_packing_sends_nothing_between_devices_that_padding_does_not():
    """Tokens are packed on the device that has their prompt."""
    policy, params = policy_of("qwen2_5_vl", (), "none")
    mesh = make_mesh(**EIGHT)
    batch = batch_of("qwen2_5_vl")
    update = make_update(policy, OPTIMIZER, mesh, banned_tokens=BANNED).__wrapped__
    state = init_state(mesh, params, OPTIMIZER, trained=policy.parts["decoder"])

    def sent(room):
        with jax.set_mesh(mesh):
            compiled = update.lower(state, shard_batch(mesh, batch), room).compile()
        return costs_of(Program(compiled.as_text())).collectives

    def largest(collectives):
        return max(collective.operand_bytes for collective in collectives)

    padded, packed = sent(None), sent(room_of(batch, mesh, 1))
    assert len(packed) <= len(padded)
    assert largest(packed) <= largest(padded)
