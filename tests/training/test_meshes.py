"""Any split of 8 devices computes what 1 device does, and a checkpoint goes from one to another."""

import itertools
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava
from jax.sharding import Mesh

from balcap_jax.models.inputs import Prompts
from balcap_jax.parallel.sharding import make_mesh, param_shardings, replicate, shard_batch
from balcap_jax.rl.train_state import TrainState, init_state, make_optimizer
from balcap_jax.rl.update import Batch, make_update
from balcap_jax.rollout.decoding import Rollout
from balcap_jax.rollout.sampling import caption_keys, sample
from balcap_jax.training.checkpoint import Checkpoints

B, G, C = 8, 2, 6
FAMILIES = {
    "qwen2_5_vl": (tiny, (1, 7, 8), (tiny.VISION_START, tiny.VISION_END, tiny.IMAGE, tiny.VIDEO)),
    "llava": (tiny_llava, (2, 7, 8), (tiny_llava.IMAGE,)),
}
SPLITS = [
    sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(sizes) == 8
]  # (data, fsdp, tensor)
# Slow: every axis alone and all together, which tests/rl/test_update.py has of Qwen2.5-VL; the
# other splits are long.
SLOW = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


def marks_of(sizes: tuple[int, ...]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow, *([] if sizes in SLOW else [pytest.mark.long])]


ONE = make_mesh(devices=jax.devices()[:1])


class Step(NamedTuple):
    """What one training step gave."""

    rollout: Rollout
    state: TrainState
    metrics: dict


@cache
def parts(family: str):
    module, *_ = FAMILIES[family]
    policy, params = module.policy()
    # eps is large for Adam: at 1e-8 a gradient of rounding errors makes a step of full size
    return policy, params, make_optimizer(learning_rate=1e-2, eps=1e-3)


def prompts_of(family: str) -> Prompts:
    if family == "llava":
        return tiny_llava.prompts((1, 2, 0, 1, 1, 2, 1, 1))
    return tiny.prompts(B)


@cache
def on_one_device(family: str) -> Step:
    return step(family, ONE)


def step(family: str, mesh: Mesh) -> Step:
    """Captions are sampled on the mesh, and the policy learns from them there."""
    policy, params, optimizer = parts(family)
    _, stop_tokens, banned = FAMILIES[family]
    state = init_state(mesh, params, optimizer, trained=policy.parts["decoder"])
    prompts = shard_batch(mesh, jax.tree.map(np.asarray, prompts_of(family)))
    with jax.set_mesh(mesh):
        keys = caption_keys(
            replicate(mesh, jax.random.key(0)), shard_batch(mesh, np.arange(B)), group_size=G
        )
        features = jax.jit(policy.encode_images)(state.params, prompts.images)
        rollout = sample(
            policy,
            state.params,
            prompts,
            features,
            keys,
            max_new_tokens=C,
            stop_tokens=stop_tokens,
            pad_token_id=0,
            banned_tokens=banned,
        )
    rng = np.random.default_rng(0)
    batch = Batch(
        prompts=prompts,
        tokens=rollout.tokens,
        mask=rollout.mask,
        old_logprobs=rollout.logprobs,
        advantages=shard_batch(mesh, rng.normal(size=(B, G)).astype(np.float32)),
        valid=shard_batch(mesh, rng.random((B, G)) < 0.9),
        features=features,
    )
    update = make_update(policy, optimizer, mesh, banned_tokens=banned, chunk=3)
    return Step(rollout, *update(state, batch))


@pytest.mark.parametrize(
    ("family", "sizes"),
    [pytest.param(*case, marks=marks_of(case[1])) for case in itertools.product(FAMILIES, SPLITS)],
)
def test_every_split_of_8_devices_equals_1_device(family, sizes):
    expected = on_one_device(family)
    ours = step(family, make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))))
    np.testing.assert_array_equal(ours.rollout.tokens, expected.rollout.tokens)
    np.testing.assert_array_equal(ours.rollout.ended, expected.rollout.ended)
    assert len(np.unique(ours.rollout.tokens)) > 10  # of 48 words
    np.testing.assert_allclose(ours.rollout.logprobs, expected.rollout.logprobs, atol=1e-5)
    for name in expected.metrics:
        np.testing.assert_allclose(
            ours.metrics[name], expected.metrics[name], rtol=1e-5, atol=1e-5, err_msg=name
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        ours.state.params,
        expected.state.params,
    )
    before = parts(family)[1]
    moved = [
        float(jnp.abs(np.asarray(new) - np.asarray(old)).max())
        for new, old in zip(*map(jax.tree.leaves, (ours.state.params, before)), strict=True)
    ]
    assert max(moved) > 1e-3


# Elastic restore --------------------------------------------------------------------------------

RESTORES = {
    "8 to 1": ((2, 2, 2), None),
    "1 to 8": (None, (1, 8, 1)),
    "another split": ((1, 2, 4), (4, 2, 1)),
}


@pytest.mark.parametrize(
    "name",
    ["another split", *(pytest.param(n, marks=pytest.mark.slow) for n in ("8 to 1", "1 to 8"))],
)
def test_a_checkpoint_of_one_mesh_restores_on_another(name, tmp_path):
    """Parameters and both moments of the optimizer, bit for bit, each where its rule says."""

    def mesh_of(sizes) -> Mesh:
        return ONE if sizes is None else make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])

    before, after = map(mesh_of, RESTORES[name])
    policy, params, optimizer = parts("qwen2_5_vl")
    state = init_state(before, params, optimizer, trained=policy.parts["decoder"])
    numbers = iter(range(10**6))  # moments that are not zero, no two the same
    noise = jax.tree.map(
        lambda x: np.random.default_rng(next(numbers)).normal(size=x.shape).astype(x.dtype),
        state.opt_state,
    )
    state = state._replace(
        opt_state=jax.device_put(noise, param_shardings(before, state.opt_state))
    )
    other = jax.tree.map(jnp.zeros_like, params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {"step": 3})
        restored, extra = checkpoints.restore(
            init_state(after, other, optimizer, trained=policy.parts["decoder"])
        )
    assert extra == {"step": 3}
    tiny.assert_equal_trees(jax.device_get(restored), jax.device_get(state))
    expected = param_shardings(after, restored)
    for leaf, sharding in zip(*map(jax.tree.leaves, (restored, expected)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
