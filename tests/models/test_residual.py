"""A residual stream in bfloat16: near float32, alike on all paths, and as transformers has it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hf
import tiny_llava

from balcap_jax.config.sections import ModelConfig
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.packing import Packing, Room

B, G, C = 3, 2, 5
# All but the stream in float32: paths then differ where one of them has another stream.
NARROW = {"residual": "bfloat16", "attention": "xla"}
# Where XLA joins a rounding with what reads it, it may leave it out, on one path and not another.
ROUNDING = {"xla_allow_excess_precision": False}
FAMILIES = {"qwen2_5_vl": tiny, "llava": tiny_llava}
both_families = pytest.mark.parametrize(
    "family", ["qwen2_5_vl", pytest.param("llava", marks=pytest.mark.slow)]
)


def apart(ours, theirs):
    """The root of the mean squared difference."""
    return float(np.sqrt(np.mean((np.asarray(ours) - np.asarray(theirs)) ** 2)))


def agree(ours, theirs, wide):
    """The two are nearer to each other than to what the stream in float32 gives: a number that lies
    at the border of two of bfloat16 is rounded now up, now down, and no more.
    """
    assert apart(ours, theirs) < apart(theirs, wide) / 3


@partial(jax.jit, static_argnums=0, compiler_options=ROUNDING)
def by_prefill_and_decoding(model, params, prompts, completions):
    """Logits [b g c v] of each token of the completions."""
    features = model.encode_images(params, prompts.images)
    prompt_cache, cache = model.prefill(params, prompts, features), model.init_cache(B, G, C)
    weights = model.decode_weights(params)
    tokens = jnp.broadcast_to(prompts.last_token[:, None], (B, G))
    found = []
    for t in range(C):
        positions = jnp.broadcast_to(prompts.last_position[:, None] + t, (B, G))
        logits, cache = model.decode_step(
            weights, prompt_cache, prompts.mask, cache, tokens, positions, t
        )
        found.append(logits.T.reshape(B, G, -1))
        tokens = completions[:, :, t]
    return jnp.stack(found, axis=2)


@partial(jax.jit, static_argnums=0, compiler_options=ROUNDING)
def by_update(model, params, prompts, completions):
    features = model.encode_images(params, prompts.images)
    hidden = model.completion_hidden(params, prompts, features, completions)
    assert hidden.dtype == model.residual
    return model.project(params, hidden)


@partial(jax.jit, static_argnums=0, compiler_options=ROUNDING)
def by_full_forward(model, params, prompts, completions):
    """Of the first prompt, which has no padding, with its first completion behind it."""
    first = jax.tree.map(lambda x: x[:1], prompts)
    own = jnp.concatenate([first.last_token[:, None], completions[:1, 0, :-1]], axis=1)
    axes = first.positions.shape[1]
    places = first.last_position[:, None, None] + jnp.arange(C)[None, None]
    places = jnp.broadcast_to(places, (1, axes, C))
    logits = model.token_logits(
        params,
        jnp.concatenate([first.tokens, own], axis=1),
        jnp.concatenate([first.positions, places], axis=2),
        jnp.ones((1, first.tokens.shape[1] + C), bool),
        model.encode_images(params, first.images),
    )
    return logits[0, -C:]


@both_families
def test_prefill_decoding_update_and_the_plain_forward_agree(family):
    model, params = FAMILIES[family].policy(**NARROW)
    if family == "qwen2_5_vl":
        prompts = tiny.prompts(B, grids=[(4, 6), (4, 4), (6, 2)])
    else:
        prompts = jax.tree.map(jnp.asarray, tiny_llava.prompts((2, 1, 0)))
    assert np.asarray(prompts.mask[0]).all()
    completions = tiny.completions(B, G, C)
    arguments = (params, prompts, completions)
    update = by_update(model, *arguments)
    wide = by_update(dataclasses.replace(model, residual="float32"), *arguments)
    agree(by_prefill_and_decoding(model, *arguments), update, wide)
    agree(by_full_forward(model, *arguments), update[0, 0], wide[0, 0])


def test_packed_tokens_have_the_logprobs_of_padded_ones():
    model, params = tiny.policy(**NARROW)
    prompts, completions = tiny.prompts(B), tiny.completions(B, G, C)
    lengths = np.array([[5, 2], [3, 4], [1, 5]])
    mask = jnp.asarray(np.arange(C) < lengths[..., None])
    features = jax.jit(model.encode_images)(params, prompts.images)

    @partial(jax.jit, static_argnums=(0, 2), compiler_options=ROUNDING)
    def logprobs(model, params, room):
        packing = None if room is None else Packing.of(room, prompts.mask, mask, rows=1)
        found = completion_logprobs(model, params, prompts, features, completions, packing=packing)[
            0
        ]
        return jnp.where(mask, found, 0)

    packed = logprobs(model, params, Room(own=24, prefix=int(prompts.mask.sum())))
    wide = dataclasses.replace(model, residual="float32")
    agree(packed, logprobs(model, params, None), logprobs(wide, params, None))


@both_families
def test_it_predicts_what_float32_predicts_but_for_near_ties(family):
    """In bfloat16 with either stream, against float32 all through: likeliest tokens, logprobs."""
    module = FAMILIES[family]
    exact, params = module.policy(attention="xla")
    prompts = (
        tiny.prompts(32)
        if family == "qwen2_5_vl"
        else jax.tree.map(jnp.asarray, tiny_llava.prompts((1, 2, 0, 1) * 8))
    )
    completions = tiny.completions(32, G, C)
    expected = np.asarray(by_update(exact, params, prompts, completions), np.float64)
    best = np.argmax(expected, axis=-1)
    farthest, agreement = {}, {}
    for residual in ("float32", "bfloat16"):
        model = dataclasses.replace(exact, dtype=jnp.bfloat16, residual=residual)
        logits = by_update(model, params, prompts, completions)
        assert logits.dtype == jnp.float32
        difference = np.asarray(jax.nn.log_softmax(logits)) - np.asarray(
            jax.nn.log_softmax(jnp.asarray(expected, jnp.float32))
        )
        farthest[residual] = np.sqrt(np.mean(difference**2))
        agreement[residual] = np.mean(np.argmax(np.asarray(logits), axis=-1) == best)
    print(family, agreement, farthest)
    assert agreement["bfloat16"] > 0.95
    assert farthest["float32"] < farthest["bfloat16"] < 3 * farthest["float32"]
    assert farthest["bfloat16"] < 0.1


def test_the_stream_of_bfloat16_is_the_one_of_transformers(tmp_path):
    """Whose norms, too, round what they scale; so ours is as near to its logits as rounding lets.

    Text alone: a tower differs by more than what is looked at.
    """
    torch = pytest.importorskip("torch", reason="the test extra has torch")
    config = tiny.config(text={"num_hidden_layers": 6}, initializer_range=0.1)
    hf = tiny_hf.model(config)
    hf.save_pretrained(tmp_path)
    _, params = load_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(tiny.FIRST_TEXT, 48, (4, 40))
    inputs = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    with torch.no_grad():
        torch_inputs = {name: torch.tensor(x) for name, x in inputs.items()}
        wide = hf(**torch_inputs).logits.numpy()
        theirs = hf.to(torch.bfloat16)(**torch_inputs).logits.float().numpy()
    rms = {}
    for residual in ("float32", "bfloat16"):
        model, _ = tiny.policy(config=config, dtype=jnp.bfloat16, residual=residual)
        ours = np.asarray(model.logits(params, **inputs))
        rms[residual] = np.sqrt(np.mean((ours - theirs) ** 2)) / np.ptp(theirs)
    print(rms)
    of_dtype = np.sqrt(np.mean((theirs - wide) ** 2)) / np.ptp(theirs)
    assert rms["bfloat16"] < 1.5 * of_dtype
    assert rms["bfloat16"] < 0.02


def test_gradients_are_near_those_of_float32():
    """And float32 where the weights are."""
    prompts, completions = tiny.prompts(B), tiny.completions(B, G, C)
    exact, params = tiny.policy(attention="xla")
    features = jax.jit(exact.encode_images)(params, prompts.images)
    narrow = dataclasses.replace(exact, dtype=jnp.bfloat16, residual="bfloat16")

    @partial(jax.jit, static_argnums=0)
    def gradient(model, params):
        def loss(params):
            logprobs, _ = completion_logprobs(model, params, prompts, features, completions)
            return jnp.sum(logprobs)

        return jax.grad(loss)(params)["language_model"]

    for ours, theirs in zip(
        *(jax.tree.leaves(gradient(model, params)) for model in (narrow, exact)), strict=True
    ):
        assert ours.dtype == jnp.float32
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 0.1


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="residual='half' must be one of float32, bfloat16; choose"):
        tiny.policy(residual="half")
    with pytest.raises(UserError, match=r"model\.residual='half' must be .*float32.*bfloat16"):
        ModelConfig(residual="half")
    with pytest.raises(
        UserError,
        match=r"model\.residual='bfloat16' would round more than the matmuls of model\.dtype="
        r"'float32'; set .*model\.dtype bfloat16 too",
    ):
        ModelConfig(residual="bfloat16")
    assert ModelConfig(dtype="bfloat16", residual="bfloat16").residual == "bfloat16"
