"""Chunked logprobs equal plain ones, values and gradients; banned tokens have no probability."""

import re
from functools import partial

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from balcap_jax.models.decoder.matmul import matmul_float32
from balcap_jax.models.logprobs import completion_logprobs, policy_logprobs, token_logprobs


def test_policy_logprobs_by_hand():
    # logits log(1, 2, 3, 4), token 3 banned: probabilities 1/6, 2/6, 3/6
    logits = jnp.log(jnp.array([[1.0, 2.0, 3.0, 4.0]]))
    out = policy_logprobs(logits, temperature=1.0, banned_tokens=(3,))
    np.testing.assert_allclose(np.exp(out[0]), [1 / 6, 2 / 6, 3 / 6, 0.0], atol=1e-6)
    # temperature 1/2 squares the odds: 1 + 4 + 9 + 16 = 30
    out = policy_logprobs(logits, temperature=0.5, banned_tokens=())
    np.testing.assert_allclose(np.exp(out[0]), [1 / 30, 4 / 30, 9 / 30, 16 / 30], atol=1e-6)
    # greedy decoding reports temperature 1
    greedy = policy_logprobs(logits, temperature=0.0, banned_tokens=())
    np.testing.assert_allclose(np.exp(greedy[0]), [0.1, 0.2, 0.3, 0.4], atol=1e-6)


def test_bfloat16_logits_become_float32():
    out = policy_logprobs(jnp.zeros((3, 5), jnp.bfloat16), temperature=1.0, banned_tokens=())
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, -np.log(5.0), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_frozen_head_gives_the_same_numbers_and_gradients(dtype, temperature):
    """But for its own, of which there is none; and no logits are made in the backward pass."""
    policy, params = tiny.policy(dtype=dtype)
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 5, 32))
    targets = tiny.completions(2, 3, 5)

    def of(hidden, *, frozen_head, params=params):
        logprobs, entropy = token_logprobs(
            policy,
            params,
            hidden,
            targets,
            temperature=temperature,
            banned_tokens=(2, 3),
            chunk=2,
            frozen_head=frozen_head,
        )
        return jnp.sum(jnp.sin(logprobs)), (logprobs, entropy)

    step = jax.jit(jax.value_and_grad(of, has_aux=True), static_argnames="frozen_head")
    (ours, theirs) = (step(hidden, frozen_head=frozen) for frozen in (True, False))
    tolerance = 1e-5 if dtype == "float32" else 0.02
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    no_gradient = jax.grad(lambda p: of(hidden, frozen_head=True, params=p)[0])(params)
    assert not any(np.any(x) for x in jax.tree.leaves(no_gradient))

    def matmuls(frozen):
        jaxpr = jax.make_jaxpr(jax.grad(lambda h: of(h, frozen_head=frozen)[0]))(hidden)
        return str(jaxpr).count("dot_general")

    assert (matmuls(True), matmuls(False)) == (2, 4)


@pytest.mark.parametrize("chunk", [1, 2, 5, 32])
def test_chunks_change_neither_values_nor_gradients(chunk):
    policy, params = tiny.policy()
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 5, 32))
    targets = tiny.completions(2, 3, 5)
    options = {"temperature": 0.7, "banned_tokens": (2, 3)}

    def plain(params, hidden):
        logprobs = policy_logprobs(policy.project(params, hidden), **options)
        entropy = -jnp.sum(jnp.exp(logprobs) * jnp.where(logprobs > -jnp.inf, logprobs, 0), -1)
        return jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0], entropy

    def chunked(params, hidden):
        return token_logprobs(policy, params, hidden, targets, chunk=chunk, **options)

    weight = jax.random.normal(jax.random.key(1), (2, 3, 5))

    def value_and_grad(f):
        def total(params, hidden):
            logprobs, entropy = f(params, hidden)
            return jnp.sum(weight * logprobs), (logprobs, entropy)

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, hidden)

    (_, ours), our_gradients = value_and_grad(chunked)
    (_, theirs), their_gradients = value_and_grad(plain)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(their_gradients[1]).max()) > 0.01
    for a, b in zip(*map(jax.tree.leaves, (our_gradients, their_gradients)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_array_of_all_tokens_and_words():
    """The largest array of forward and backward is a chunk's logits, not the batch's."""
    policy, params = tiny.policy()
    hidden, targets = jnp.zeros((2, 3, 64, 32)), jnp.zeros((2, 3, 64), jnp.int32)

    def total(hidden, chunk):
        return jnp.sum(token_logprobs(policy, params, hidden, targets, chunk=chunk)[0])

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            for var in (*equation.invars, *equation.outvars):
                if hasattr(var, "aval") and hasattr(var.aval, "shape"):
                    yield var.aval.shape
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    def has_vocabulary(shape):
        return len(shape) > 1 and shape[-1] == 48 and np.prod(shape) >= 2 * 3 * 64 * 48

    for chunk, expected in ((8, False), (64, True)):
        jaxpr = jax.make_jaxpr(jax.grad(total), static_argnums=1)(hidden, chunk).jaxpr
        assert any(map(has_vocabulary, sizes(jaxpr))) == expected


def test_banned_target_is_minus_infinity_and_gradients_stay_finite():
    policy, params = tiny.policy()
    hidden = jax.random.normal(jax.random.key(0), (1, 1, 2, 32))
    targets = jnp.array([[[tiny.IMAGE, 9]]])

    def total(hidden):
        logprobs, entropy = token_logprobs(
            policy, params, hidden, targets, banned_tokens=(tiny.IMAGE,)
        )
        safe = jnp.where(jnp.array([[[False, True]]]), logprobs, 0.0)
        return jnp.sum(safe), (logprobs, entropy)

    gradient, (logprobs, entropy) = jax.grad(total, has_aux=True)(hidden)
    assert logprobs[0, 0, 0] == -jnp.inf
    assert np.isfinite(logprobs[0, 0, 1])
    assert np.isfinite(entropy).all()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0, 0, 1]).max() > 0


def test_entropy_is_that_of_the_distribution_and_has_no_gradient():
    policy, params = tiny.policy()
    targets = jnp.zeros((1, 1, 1), jnp.int32)

    def entropy(hidden):
        return jnp.sum(token_logprobs(policy, params, hidden, targets)[1])

    # hidden states of zero give equal logits: entropy log(48)
    np.testing.assert_allclose(entropy(jnp.zeros((1, 1, 1, 32))), np.log(48.0), rtol=1e-6)
    assert not jax.grad(entropy)(jnp.ones((1, 1, 1, 32))).any()


def test_completion_logprobs_equal_the_full_forward():
    """Each token's logprob is that of the plain forward over prompt and completion in one row."""
    policy, params = tiny.policy()
    prompts = tiny.prompts(1)
    completions = tiny.completions(1, 2, 4)
    features = jax.jit(policy.encode_images)(params, prompts.images)
    ours, _ = jax.jit(partial(completion_logprobs, policy))(params, prompts, features, completions)
    full_forward = jax.jit(policy.token_logits)

    p = int(prompts.mask.sum())
    for g in range(2):
        tokens = jnp.concatenate(
            [prompts.tokens[:, :p], prompts.last_token[:, None], completions[:, g]], axis=1
        )
        own = prompts.last_position[:, None, None] + jnp.arange(5)[None, None]
        positions = jnp.concatenate(
            [prompts.positions[..., :p], jnp.broadcast_to(own, (1, 3, 5))], axis=-1
        )
        logits = full_forward(params, tokens, positions, jnp.ones_like(tokens, bool), features)
        logprobs = jax.nn.log_softmax(logits[0, p : p + 4])
        expected = jnp.take_along_axis(logprobs, completions[0, g][:, None], axis=-1)[:, 0]
        np.testing.assert_allclose(ours[0, g], expected, rtol=1e-5, atol=1e-5)


def test_a_bfloat16_head_multiplies_in_bfloat16_both_ways():
    """Logits are float32, as exact as without rounding the gradient to within bfloat16."""
    keys = jax.random.split(jax.random.key(3), 3)
    x, weight, gradient = (
        jax.random.normal(key, shape, jnp.bfloat16)
        for key, shape in zip(keys, [(6, 16), (40, 16), (6, 40)], strict=True)
    )
    gradient = gradient.astype(jnp.float32) * 1e-3

    def pulled(function):
        out, pull = jax.vjp(function, x, weight)
        return out, *pull(gradient)

    ours = pulled(matmul_float32)
    rule = pulled(lambda x, w: jnp.matmul(x, w.T, preferred_element_type=jnp.float32))
    assert [a.dtype for a in ours] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_array_equal(ours[0], rule[0])
    for one, other in zip(ours[1:], rule[1:], strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        np.testing.assert_allclose(one, other, atol=2**-7 * np.abs(other).max())
    jaxpr = jax.make_jaxpr(lambda *a: pulled(matmul_float32))(x, weight)
    factors = re.findall(r"dot_general\[.*?\] (\w+) (\w+)", str(jaxpr), re.DOTALL)
    types = dict(re.findall(r"(\w+):(\w+)\[", str(jaxpr)))
    assert len(factors) == 3
    assert {types[name] for pair in factors for name in pair} == {"bf16"}
