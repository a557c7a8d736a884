"""Flops counted by hand, and what a shared prompt saves at real sizes, nothing of it computed."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny
from abstract import MESH, abstract_batch

from balcap_jax.models.attention.backends import xla
from balcap_jax.models.families import make_policy
from balcap_jax.plan.workloads import random_folder
from balcap_jax.rl.train_state import make_optimizer, state_shapes
from balcap_jax.rl.update import make_update
from balcap_jax.runs.flops import count, flops_of, without_remat

X, W = jnp.ones((3, 4)), jnp.ones((4, 4))
MATMUL = 2 * 3 * 4 * 4


def test_dot_general():
    assert flops_of(jnp.matmul, X, W) == MATMUL == 96
    # batch 5, rows 2, columns 7, contracted 3 x 4: 2 * 5 * 2 * 7 * 12
    a, b = jnp.ones((5, 2, 3, 4)), jnp.ones((5, 7, 4, 3))
    assert flops_of(lambda a, b: jnp.einsum("bmij,bnji->bmn", a, b), a, b) == 1680
    assert flops_of(lambda x: jnp.sum(jnp.exp(x) * x), X) == 0


def test_convolution():
    # 1 image, 8 features out of 3 channels, 4 x 4 results of 2 x 2 x 3 products each
    image, kernel = jnp.ones((1, 3, 8, 8)), jnp.ones((8, 3, 2, 2))
    strided = lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID")  # noqa: E731
    assert flops_of(strided, image, kernel) == 2 * (8 * 4 * 4) * (2 * 2 * 3)
    # in two groups each result is a sum over half of the channels
    image, kernel = jnp.ones((1, 4, 3, 3)), jnp.ones((8, 2, 3, 3))
    grouped = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (1, 1), "VALID", feature_group_count=2
    )
    assert flops_of(grouped, image, kernel) == 2 * 8 * (3 * 3 * 2)


def test_a_scan_counts_its_length():
    def scanned(x, w):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)[0]

    assert flops_of(scanned, X, W) == 7 * MATMUL
    assert flops_of(jax.jit(scanned), X, W) == 7 * MATMUL
    assert flops_of(jax.vmap(scanned, in_axes=(0, None)), jnp.ones((2, 3, 4)), W) == 14 * MATMUL


def test_a_while_loop_needs_its_trips():
    def loop(x, w):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 9.0, lambda c: c @ w, x)

    with pytest.raises(ValueError, match="trips=None"):
        flops_of(loop, X, W)
    assert flops_of(loop, X, W, trips=5) == 5 * MATMUL
    assert flops_of(lambda x: jax.lax.while_loop(lambda c: c < 9.0, lambda c: c + 1.0, x), 1.0) == 0


def test_branches_and_custom_gradients():
    def either(x, w):
        return jax.lax.cond(jnp.sum(x) > 0, lambda: x @ w @ w, lambda: x @ w)

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda s, g: (g @ s[1].T, s[0].T @ g))

    assert flops_of(either, X, W) == 2 * MATMUL
    assert flops_of(product, X, W) == MATMUL
    gradient = jax.grad(lambda x, w: jnp.sum(product(x, w)), argnums=(0, 1))
    assert flops_of(gradient, X, W) == 3 * MATMUL


def test_a_kernel_is_refused():
    from jax.experimental import pallas

    def kernel(x, y):
        y[...] = x[...] @ x[...]

    call = pallas.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((4, 4), jnp.float32))
    with pytest.raises(ValueError, match="pallas_call cannot be counted"):
        flops_of(call, W)


def test_without_remat():
    """Two matmuls: forward 2, backward 4, and the first one again where it is rematerialised."""

    def gradient():
        @jax.checkpoint
        def loss(x, w):
            return jnp.sum(jnp.sin(x @ w) @ w)

        return jax.grad(loss, argnums=(0, 1))

    assert flops_of(gradient(), X, W) == 7 * MATMUL
    with without_remat():
        assert flops_of(gradient(), X, W) == 6 * MATMUL
    assert flops_of(gradient(), X, W) == 7 * MATMUL


# ---- a step at real sizes: shapes only

QWEN_3B = random_folder.config_of("qwen2.5-vl-3b")


def _plain(policy):
    """As runs and plans count: what a CPU multiplies in place of other work is no model's flop."""
    return dataclasses.replace(policy, attention=xla())


def update_flops(
    prompts: int, group: int, length: int, *, prefix: int = 1000, patches: int = 0, config=QWEN_3B
) -> int:
    """Model flops of an update, the tower frozen; with `patches` the images are encoded in it."""
    policy = _plain(make_policy(config, dtype="bfloat16"))
    optimizer = make_optimizer(learning_rate=1e-6)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    state = state_shapes(params, optimizer, trained=policy.parts["decoder"])
    with without_remat(), jax.set_mesh(MESH):
        update = make_update(policy, optimizer, MESH).__wrapped__
        batch = abstract_batch(config, prompts, prefix, group, length, patches)
        return count(update.trace(state, batch).jaxpr.jaxpr)


def test_update_flops_by_hand():
    """One decoder layer, P 8, G 1, C 4, one prompt: 3 x the forward, no gradient into features.

    width 32, 4 heads of 8, 2 kv-heads, mlp 48, vocabulary 48 (the two axes share nothing).
    """
    config = tiny.config(text={"num_hidden_layers": 1})
    per_token = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
    # scores and values: prefix to itself, caption to prefix, caption to itself
    attention = 2 * 2 * 32 * (8 * 8 + 4 * 8 + 4 * 4)
    forward = (8 + 4) * per_token + attention + 4 * 2 * 32 * 48
    assert update_flops(1, 1, 4, prefix=8, config=config) == 3 * forward


def test_shared_prompt_against_the_pattern_of_one_prompt_per_caption():
    """P 1000, C 200, G 8: the bar is 0.30, the decoder alone; its images come on top there."""
    ours = update_flops(1, 8, 200)
    theirs = update_flops(8, 1, 200)
    encoding = update_flops(8, 1, 200, patches=2000)
    assert ours <= 0.30 * theirs
    assert encoding > theirs


def test_the_update_grows_as_prompt_plus_captions():
    """P 1000, C 100: G from 1 to 16 at the price of P + G C tokens, within 10 %."""
    one = update_flops(1, 1, 100)
    for group in (2, 4, 8, 16):
        expected = (1000 + group * 100) / (1000 + 100)
        assert update_flops(1, group, 100) / one == pytest.approx(expected, rel=0.1)


def test_what_is_counted_does_not_depend_on_remat():
    config = tiny.CONFIG
    plain = update_flops(2, 2, 4, prefix=8, config=config)
    policy = dataclasses.replace(_plain(make_policy(config)), remat="full")
    optimizer = make_optimizer(learning_rate=1e-6)
    state = state_shapes(
        jax.eval_shape(policy.init, jax.random.key(0)), optimizer, trained=policy.parts["decoder"]
    )
    batch = abstract_batch(config, 2, 8, 2, 4, 0)

    def counted() -> int:
        with jax.set_mesh(MESH):
            update = make_update(policy, optimizer, MESH).__wrapped__
            return count(update.trace(state, batch).jaxpr.jaxpr)

    assert counted() > plain
    with without_remat():
        assert counted() == plain
