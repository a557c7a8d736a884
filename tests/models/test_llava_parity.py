"""LLaVA against Hugging Face's torch model, block by block and whole, in float32."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava
import torch_gradient

import balcap_jax
from balcap_jax.models.attention.plain import attend_causal, attend_rows
from balcap_jax.models.decoder.rotary import RopeScaling, rotate, rotate_by_matmul
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.llava.policy import Llava
from balcap_jax.models.policy import take_layer

torch = pytest.importorskip("torch", reason="the test extra has torch")
pytestmark = pytest.mark.torch

CONFIGS = {
    "grouped": tiny_llava.config(initializer_range=0.1),
    "one key-value head, tied, last layer": tiny_llava.config(
        text={"num_key_value_heads": 1},
        tie_word_embeddings=True,
        vision_feature_layer=-1,
    ),
    "as many key-value heads, class token kept": tiny_llava.config(
        text={"num_key_value_heads": 4, "num_hidden_layers": 3},
        vision_feature_select_strategy="full",
    ),
    "layer from the front, other tower": tiny_llava.config(
        vision={
            "image_size": 12,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-3,
        },
        vision_feature_layer=1,
    ),
    "several layers, projector without bias": tiny_llava.config(
        vision_feature_layer=(-2, 3, 0),
        projector_hidden_act="relu",
        multimodal_projector_bias=False,
    ),
    "class token of several layers, tied": tiny_llava.config(
        vision_feature_layer=(-1, 1),
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    ),
    "linear rope": tiny_llava.config(
        text={"rope_scaling": RopeScaling("linear", 2.5), "rms_norm_eps": 1e-5}
    ),
    "llama3 rope, wide heads, all biases": tiny_llava.config(
        text={
            "rope_scaling": RopeScaling("llama3", 8.0, 64),
            "rope_theta": 5e3,
            "attention_head_dim": 24,
            "attention_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
        }
    ),
    "yarn rope": tiny_llava.config(
        text={"rope_scaling": RopeScaling("yarn", 4.0, 32, attention_factor=1.14)}
    ),
    "qwen2": tiny_llava.config(text={"attention_bias": True}, text_model_type="qwen2"),
    "dinov2": tiny_llava.config(vision=tiny_llava.DINOV2, initializer_range=0.1),
    "dinov2, last layer, class token kept": tiny_llava.config(
        vision=dataclasses.replace(tiny_llava.DINOV2, image_size=12, qkv_bias=False),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        text_model_type="qwen2",
        text={"attention_bias": True},
    ),
    "dinov2, several layers, no mask token": tiny_llava.config(
        vision=dataclasses.replace(tiny_llava.DINOV2, use_mask_token=False, hidden_act="relu"),
        vision_feature_layer=(-2, 0, 3),
    ),
    "mistral": tiny_llava.config(text={"attention_head_dim": 12}, text_model_type="mistral"),
}
COUNTS = (1, 2, 0)  # images of each prompt


def close(ours, theirs, case=""):
    """Within 1e-4 of the range of values."""
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.ptp(theirs), err_msg=case)


def pair(config, folder):
    """A random Hugging Face model, and the policy loaded from the folder it saves."""
    hf = tiny_llava.model(config)
    hf.save_pretrained(folder)
    policy, params = load_pretrained(folder)
    assert isinstance(policy, Llava)
    assert policy.config.text == config.text
    return hf, policy, params


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, tmp_path):
    """Prompts with one, two and no images in one batch, padded on the right and on the left."""
    config = CONFIGS[name]
    hf, policy, params = pair(config, tmp_path)
    pixels = tiny_llava.images(COUNTS, config)
    for side in ("right", "left"):
        tokens, mask = tiny.pad(tiny_llava.rows(COUNTS, config), side)
        mask = mask.astype(bool)
        assert not mask.all()
        with torch.no_grad():
            theirs = hf(
                input_ids=torch.tensor(tokens).long(),
                attention_mask=torch.tensor(mask).long(),
                pixel_values=torch.tensor(pixels),
            ).logits
        ours = policy.logits(params, input_ids=tokens, attention_mask=mask, pixel_values=pixels)
        assert ours.dtype == jnp.float32
        ours = np.asarray(ours)
        close(ours[mask], theirs[torch.tensor(mask)], side)


def test_greedy_tokens_equal_transformers(tmp_path):
    """64 tokens of 20 prompts; the placeholder, which we never sample, is suppressed there too."""
    config, counts = CONFIGS["grouped"], (1, 2, 0, 1) * 5
    hf, policy, params = pair(config, tmp_path)
    tokens, mask = tiny.pad(tiny_llava.rows(counts, config))
    pixels = tiny_llava.images(counts, config)
    hf.generation_config.eos_token_id = None
    theirs = hf.generate(
        input_ids=torch.tensor(tokens).long(),
        attention_mask=torch.tensor(mask).long(),
        pixel_values=torch.tensor(pixels),
        max_new_tokens=64,
        do_sample=False,
        suppress_tokens=[tiny_llava.IMAGE],
    )
    inputs = {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels}
    ours = balcap_jax.generate(policy, params, inputs, max_new_tokens=64, stop_tokens=())
    np.testing.assert_array_equal(ours, theirs[:, tokens.shape[1] :].numpy())
    assert len(set(ours.flatten())) > 3


# ---- block by block


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return trace("grouped", tmp_path_factory.mktemp("traced"))


@pytest.fixture(scope="module")
def traced_dinov2(tmp_path_factory):
    return trace("dinov2", tmp_path_factory.mktemp("traced"))


def trace(name, folder):
    """One forward of a config with what goes in and out of each of its blocks."""
    config = CONFIGS[name]
    hf, policy, params = pair(config, folder)
    seen = {}

    def record(name):
        def hook(_, args, kwargs, out):
            seen[name] = ((args or tuple(kwargs.values()))[0].detach().numpy(), out)

        return hook

    tower, decoder = hf.model.vision_tower, hf.model.language_model
    blocks = {
        **{name: getattr(tower, name) for name in policy.tower.entry},
        "projector": hf.model.multi_modal_projector,
        **{f"tower{i}": x for i, x in enumerate(tower.get_submodule(policy.tower.layers))},
        **{f"layer{i}": layer for i, layer in enumerate(decoder.layers)},
    }
    for name, block in blocks.items():
        block.register_forward_hook(record(name), with_kwargs=True)
    tokens = torch.tensor(tiny_llava.rows((2,), config)[0][None]).long()
    pixels = torch.tensor(tiny_llava.images((2,), config))
    with torch.no_grad():
        hf(input_ids=tokens, pixel_values=pixels)
    return policy, params, seen


def test_clip_embeddings(traced):
    policy, params, seen = traced
    patches = tiny_llava.prompts((2,), config=policy.config).images.pixels
    vision = policy.config.vision
    embed = policy.definitions["vision_tower.embeddings"](params["vision_tower"]["embeddings"])
    ours = embed(jnp.asarray(patches).reshape(-1, vision.patches, vision.patch_dim))
    close(ours, seen["embeddings"][1])
    norm = policy.definitions["vision_tower.pre_layrnorm"](params["vision_tower"]["pre_layrnorm"])
    close(norm(ours), seen["pre_layrnorm"][1])


@pytest.mark.parametrize("i", [0, 1])
def test_clip_block(traced, i):
    policy, params, seen = traced
    hidden, out = seen[f"tower{i}"]
    weights = take_layer(params["vision_tower"]["encoder"]["layers"], i)
    x = jnp.asarray(hidden)
    attend = partial(attend_rows, sizes=jnp.full(x.shape[0], x.shape[1]))
    close(policy.definitions["vision_tower.encoder.layers"](weights)(x, attend), out)


def test_dinov2_embeddings(traced_dinov2):
    policy, params, seen = traced_dinov2
    patches = tiny_llava.prompts((2,), config=policy.config).images.pixels
    vision = policy.config.vision
    embed = policy.definitions["vision_tower.embeddings"](params["vision_tower"]["embeddings"])
    ours = embed(jnp.asarray(patches).reshape(-1, vision.patches, vision.patch_dim))
    close(ours, seen["embeddings"][1])


@pytest.mark.parametrize("i", [0, 1])
def test_dinov2_block(traced_dinov2, i):
    policy, params, seen = traced_dinov2
    hidden, out = seen[f"tower{i}"]
    weights = take_layer(params["vision_tower"]["encoder"]["layer"], i)
    # Factors that are all one would hide a missing one.
    assert float(jnp.ptp(weights["layer_scale1"]["lambda1"])) > 0.1
    x = jnp.asarray(hidden)
    attend = partial(attend_rows, sizes=jnp.full(x.shape[0], x.shape[1]))
    close(policy.definitions["vision_tower.encoder.layer"](weights)(x, attend), out)


def test_projector(traced):
    policy, params, seen = traced
    hidden, out = seen["projector"]
    projector = policy.definitions["multi_modal_projector"](params["multi_modal_projector"])
    close(projector(jnp.asarray(hidden)), out)


@pytest.mark.parametrize("i", [0, 1])
def test_decoder_layer(traced, i):
    policy, params, seen = traced
    hidden, out = seen[f"layer{i}"]
    length = hidden.shape[1]
    layer = policy.definitions["language_model.layers"](
        take_layer(params["language_model"]["layers"], i)
    )
    angles = policy.prompt_angles(np.arange(length)[None, None])
    for way in (rotate, rotate_by_matmul):
        q, kv = layer.project(jnp.asarray(hidden), angles, way)
        attended = attend_causal(q, *kv, jnp.ones((1, length), bool))
        close(layer.finish(jnp.asarray(hidden), attended), out)


# ---- folders


@pytest.mark.parametrize(
    "name",
    [
        "one key-value head, tied, last layer",
        "llama3 rope, wide heads, all biases",
        "qwen2",
        "dinov2",
        "dinov2, several layers, no mask token",
    ],
)
def test_to_transformers_and_back(name, tmp_path):
    """From transformers to us and back again: bit-equal, and no key missing or unexpected."""
    hf, policy, params = pair(CONFIGS[name], tmp_path / "theirs")
    save_pretrained(tmp_path / "ours", policy, params)
    again, report = type(hf).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in report), report
    theirs, ours = hf.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    for key in theirs:
        assert torch.equal(theirs[key], ours[key]), key


# ---- gradients


@pytest.mark.parametrize(
    ("name", "temperature"),
    [("grouped", 0.7), ("class token of several layers, tied", 1.0), ("dinov2", 1.0)],
)
def test_policy_gradient_equals_torch(name, temperature, tmp_path):
    """Of the shared prompt, all of it trainable, tower and projector included."""
    config = CONFIGS[name]
    hf, policy, params = pair(config, tmp_path)
    prompts = tiny_llava.prompts(COUNTS, config=config)
    completions, advantages = torch_gradient.random_completions(
        policy, len(COUNTS), first=tiny_llava.FIRST_TEXT
    )
    value, gradient = torch_gradient.our_gradient(
        policy, params, prompts, completions, advantages, temperature=temperature
    )
    rows, pixels = tiny_llava.rows(COUNTS, config), tiny_llava.images(COUNTS, config)
    ends = np.cumsum(COUNTS)

    def logits_of(b, completion):
        tokens = torch.tensor(np.concatenate([rows[b], completion])[None]).long()
        own = torch.tensor(pixels[ends[b] - COUNTS[b] : ends[b]])
        out = hf(input_ids=tokens, **({"pixel_values": own} if COUNTS[b] else {}))
        return out.logits[0, len(rows[b]) - 1 : -1]

    reference = torch_gradient.torch_loss(
        logits_of, completions, advantages, config.banned_tokens, temperature=temperature
    )
    reference.backward()
    assert value == pytest.approx(reference.item(), rel=1e-4)
    # Torch has no gradient above the layer that is read.
    torch_gradient.assert_equal_gradients(hf, policy, gradient, tower="vision_tower", unread=True)
