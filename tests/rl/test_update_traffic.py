"""What devices send in an update, counted in compiled programs, and that none of it changes it."""

import dataclasses
import os
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tpu_compiler
from tiny_update import BANNED, assert_trees_close, make_batch

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import MeshConfig, ModelConfig, RLConfig, RolloutConfig
from balcap_jax.models.adapters import adapted_paths, adapter_shapes
from balcap_jax.models.decoder.lora import TRAINED, Lora
from balcap_jax.models.selection import overlaid
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.plan.costs import costs_of
from balcap_jax.plan.hlo import Program
from balcap_jax.plan.programs import Step
from balcap_jax.rl.train_state import init_state
from balcap_jax.rl.update import make_update

EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}


@cache
def optimizer() -> optax.GradientTransformation:
    """Moves nothing; its state is the last gradient."""
    return optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda updates, state, params=None: (
            jax.tree.map(jnp.zeros_like, updates),
            updates,
        ),
    )


def gradients_of(policy, params, *, trained, **options):
    """(gradients, metrics) of an update on eight devices, in two micro-batches."""
    mesh = make_mesh(**EIGHT)
    update = make_update(
        policy,
        optimizer(),
        mesh,
        banned_tokens=BANNED,
        micro_batches=2,
        trained=trained,
        **options,
    )
    state = init_state(mesh, params, optimizer(), trained=trained)
    state, metrics = update(state, shard_batch(mesh, make_batch()))
    return state.opt_state, metrics


@pytest.mark.parametrize(
    "adapters", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["weights", "adapters"]
)
def test_weights_brought_together_once_give_the_same_gradients(adapters):
    policy, params = tiny.policy(remat="full")
    trained = policy.parts["decoder"]
    if adapters:
        policy, trained = dataclasses.replace(policy, lora=Lora(alpha=6.0, dropout=0.25)), TRAINED
        shapes = adapter_shapes(policy, adapted_paths(policy, ()), rank=2)
        rng = np.random.default_rng(4)
        new = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), shapes)
        params = overlaid(params, new)
    expected, plain = gradients_of(policy, params, trained=trained)
    found, metrics = gradients_of(policy, params, trained=trained, gather_once=True)
    assert_trees_close(metrics, plain, rtol=1e-5, atol=1e-6)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    assert largest > 1e-2
    assert_trees_close(found, expected, rtol=1e-5, atol=1e-5 * largest)
    spread = jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), expected)
    assert jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), found) == spread


LAYERS, MICRO = 3, 2
# No two sizes alike, so that a shape says what it is of.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mrope_section": (16, 8, 8),
}


def update_for(devices, **options):
    """The collectives of the compiled update on fsdp 2 x tensor 2, and the tokens of a device."""
    settings = {"dtype": "bfloat16", "attention": "xla", "remat": "full"}
    config = TrainConfig(
        prompts_per_step=8,
        model=ModelConfig(**settings | options.pop("model", {})),
        rollout=RolloutConfig(group_size=2, max_new_tokens=16),
        rl=RLConfig(micro_batches=MICRO),
        mesh=MeshConfig(data=1, fsdp=2, tensor=2, **options),
    )
    step = Step(config, tiny.config(text=SIZES), devices, image=(16, 16), text_tokens=8)
    compiled = step.compile(step.trace("update"))
    tokens = step.prompt.tokens.shape[1] + 2 * 16
    return costs_of(Program(compiled.as_text())).collectives, tokens


def gathers_of_mlp(collectives) -> list[tuple[int, float]]:
    """How often each gather of a matrix of the MLP over `fsdp` runs, and what a device sends in
    all of them.
    """
    parts = ("128,320]", "320,128]")  # a quarter of a matrix; a stack has its layers in front
    return [
        (c.times, c.wire_bytes)
        for c in collectives
        if c.kind == "all-gather" and c.shape.endswith(parts)
    ]


@pytest.mark.slow
def test_weights_brought_together_once_are_sent_less_often():
    """On CPUs: each stack once per step, where it was layer by layer at least forwards and
    backwards in each micro-batch.
    """
    devices = jax.devices()[:4]
    often = gathers_of_mlp(update_for(devices)[0])
    once = gathers_of_mlp(update_for(devices, gather="update")[0])
    assert [times for times, _ in once] == [1] * 3
    assert {times for times, _ in often} == {LAYERS * MICRO}
    sent = sum(size for _, size in once)
    assert sent in (dtype * 3 * LAYERS * 128 * 320 for dtype in (2, 4))  # CPUs may widen it
    assert sum(size for _, size in often) >= 2 * MICRO * sent


@pytest.mark.slow
def test_sums_of_a_layer_on_tpus():
    """Two forwards, one of the computation that is repeated, two backwards; in bfloat16 all of them
    with a stream in bfloat16. And gradients are summed by scattering, or in steps of a ring.
    """
    tpu_compiler.chip()
    from jax.experimental import topologies

    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    narrow = {"residual": "bfloat16"}

    def sums(**options):
        collectives, tokens = update_for(list(topology.devices), **options)
        found = {"bf16": 0, "f32": 0}
        for c in collectives:
            of_stream = c.kind == "all-reduce" and f"[2,{tokens},256]" in c.shape
            if of_stream and c.times >= LAYERS:
                found[c.shape.split("[")[0]] += c.times / (LAYERS * MICRO)
        return found

    assert sums(model=narrow) == {"bf16": 5, "f32": 0}
    assert sums(model=narrow | {"remat": "sums"}) == {"bf16": 4, "f32": 0}
    assert sum(sums().values()) == 5
