"""Rematerialisation changes memory and nothing else."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tpu_compiler

from balcap_jax.errors import UserError
from balcap_jax.models.attention.backends import cudnn, splash
from balcap_jax.models.decoder.remat import POLICIES, rematerialise
from balcap_jax.models.logprobs import completion_logprobs


def objective(model, prompts, completions):
    def loss(params):
        features = model.encode_images(params, prompts.images)
        logprobs, _ = completion_logprobs(model, params, prompts, features, completions)
        return jnp.sum(jnp.sin(logprobs))

    return jax.value_and_grad(loss)


@pytest.fixture(scope="module")
def plain():
    model, params = tiny.policy(attention="xla")
    prompts, completions = tiny.prompts(2), tiny.completions(2)
    return (
        model,
        params,
        prompts,
        completions,
        jax.jit(objective(model, prompts, completions))(params),
    )


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "none"])
def test_loss_and_gradients_are_the_same(plain, name):
    model, params, prompts, completions, expected = plain
    other = dataclasses.replace(model, remat=name)
    ours = jax.jit(objective(other, prompts, completions))(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(float(jnp.abs(b).max()), 1e-3))


@pytest.mark.long
@pytest.mark.slow
def test_memory_falls_from_name_to_name():
    """Eight layers, so that what they keep outweighs one layer at work."""
    config = tiny.config(text={"num_hidden_layers": 8})
    prompts, completions = tiny.prompts(2, prefix=128), tiny.completions(2, 4, 64)
    temporary = {}
    for name in POLICIES:
        model, params = tiny.policy(config=config, attention="xla", remat=name)
        compiled = jax.jit(objective(model, prompts, completions)).lower(params).compile()
        temporary[name] = compiled.memory_analysis().temp_size_in_bytes
    sizes = list(temporary.values())
    assert sizes == sorted(sizes, reverse=True), temporary
    assert len(set(sizes)) == len(sizes), temporary


def test_cudnn_runs_once_where_its_output_is_kept(monkeypatch):
    """A decoder layer has two calls, of the prefix and of the completions."""
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    if not hasattr(kernels, "check_cudnn_version"):
        pytest.skip("this JAX asks for cuDNN's version elsewhere")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)
    prompts, completions = tiny.prompts(2), tiny.completions(2)
    features = jnp.ones((2, 8, 32), jnp.bfloat16)
    calls = {}
    for name in ("attention", "full"):
        model, params = tiny.policy(attention=cudnn(), remat=name, dtype=jnp.bfloat16)

        def loss(params, model=model):
            return jnp.sum(completion_logprobs(model, params, prompts, features, completions)[0])

        program = jax.jit(jax.grad(loss)).trace(params).lower(lowering_platforms=("cuda",))
        calls[name] = len(re.findall(r"@__cudnn\$fmha\w*Softmax\(", program.as_text()))
    assert calls == {"attention": 2, "full": 4}


def test_splash_runs_once_where_its_output_is_kept():
    chip = tpu_compiler.chip()
    calls = {}

    def layer(x, kernel):
        q = (x @ kernel)[:, :, None]
        attended = splash().causal(q, q, q, jnp.ones(x.shape[:2], bool))
        return x + attended[:, :, 0] @ kernel.T, None

    for name in ("attention", "full"):

        def loss(x, kernels, name=name):
            x, _ = jax.lax.scan(rematerialise(name, layer), x, kernels)
            return jnp.sum(jnp.sin(x.astype(jnp.float32)))

        arguments = (
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=chip)
            for shape in ((1, 256, 128), (3, 128, 128))
        )
        with jax.default_matmul_precision("default"):  # the kernel takes no other with bfloat16
            program = jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().as_text()
        calls[name] = len(re.findall(r"%splash_mha_fwd\S* = ", program))
    assert calls == {"attention": 1, "full": 2}


def test_unknown_names_are_refused():
    with pytest.raises(
        UserError, match="remat='most' must be one of none, dots, attention, sums, full"
    ):
        tiny.policy(remat="most")
