"""LLaVA's configuration, weights and fast paths, without torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava
from safetensors.numpy import load_file, save_file

from balcap_jax.errors import UserError
from balcap_jax.models.decoder.rotary import RopeScaling
from balcap_jax.models.families import FAMILIES, load_config, make_policy
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.llava.policy import Llava
from balcap_jax.models.selection import EVERYTHING
from balcap_jax.rl.train_state import split_trainable
from balcap_jax.rollout.sampling import caption_keys, sample

# As the LLaVA-1.5-7B folder of llava-hf is published: most of the decoder goes without saying.
PUBLISHED = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def qwen(hidden, intermediate, layers, heads, kv_heads, vocabulary, *, tied):
    """config.json as Qwen2.5-VL is published, of one size."""
    return {
        "model_type": "qwen2_5_vl",
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vocab_size": vocabulary,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": hidden,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }


REAL_SIZES = {
    "LLaVA-1.5-7B": (PUBLISHED, 7_063_427_072),
    "Qwen2.5-VL-3B": (qwen(2048, 11008, 36, 16, 2, 151936, tied=True), 3_754_622_976),
    "Qwen2.5-VL-7B": (qwen(3584, 18944, 28, 28, 4, 152064, tied=False), 8_292_166_656),
}


@pytest.mark.parametrize("name", REAL_SIZES)
def test_parameter_counts_of_the_real_sizes(name):
    config, expected = REAL_SIZES[name]
    sizes = FAMILIES[config["model_type"]].config.from_hf(config)
    shapes = jax.eval_shape(make_policy(sizes).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


# ---- config.json


def test_published_config_has_the_sizes_that_go_without_saying():
    config = LlavaConfig.from_hf(PUBLISHED, {"eos_token_id": 2, "pad_token_id": 32001})
    text = config.text
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (4096, 11008, 32)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (32, 32, 128)
    assert (text.rms_norm_eps, text.rope_theta, text.attention_bias) == (1e-5, 1e4, False)
    assert (config.stop_tokens, config.pad_token_id, config.image_token_id) == ((2,), 32001, 32000)
    assert config.feature_layers == (23,)
    assert config.image_tokens == 576
    assert config.banned_tokens == (32000,)
    assert not config.tie_word_embeddings


@pytest.mark.parametrize(
    "config",
    [
        tiny_llava.CONFIG,
        tiny_llava.config(vision_feature_layer=(-2, 1), vision_feature_select_strategy="full"),
        tiny_llava.config(text={"attention_bias": True}, text_model_type="qwen2"),
        tiny_llava.config(text={"attention_head_dim": 12}, text_model_type="mistral"),
    ],
)
def test_config_reads_what_it_writes(config):
    assert LlavaConfig.from_hf(config.to_hf(), config.to_hf_generation()) == config


def edited(text=None, vision=None, **top):
    config = tiny_llava.CONFIG.to_hf() | top
    config["text_config"] |= text or {}
    config["vision_config"] |= vision or {}
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (edited(text={"model_type": "gemma"}), "text_config.model_type is 'gemma'"),
        (edited(text={"hidden_act": "gelu"}), "text_config.hidden_act is 'gelu'"),
        (edited(vision={"model_type": "siglip_vision_model"}), "'siglip_vision_model'"),
        (edited(vision={"hidden_act": "tanh"}), "vision_config.hidden_act is 'tanh'"),
        (edited(vision={"image_size": 10}), "image_size is 10 .* multiple of patch_size = 4"),
        (edited(vision_feature_layer=9), "vision_feature_layer 9 must .* 3 layers, -4 to 3"),
        (edited(vision_feature_layer=[]), "vision_feature_layer"),
        (edited(vision_feature_select_strategy="cls"), "strategy is 'cls'"),
        (edited(projector_hidden_act="tanh"), "projector_hidden_act is 'tanh'"),
        (edited(image_token_index=48), "within the vocabulary of 48"),
        (edited(text={"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}), "'dynamic'"),
        (edited(text={"rope_parameters": {"rope_type": "linear"}}), "lacks 'factor'"),
        (edited(text={"model_type": "mistral", "sliding_window": 64}), "sliding_window is 64"),
        (
            edited(text={"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
            "partial_rotary_factor is 0.5",
        ),
    ],
)
def test_what_is_not_supported_is_one_sentence(config, message):
    with pytest.raises(UserError, match=message) as error:
        LlavaConfig.from_hf(config)
    assert "\n" not in str(error.value)


def test_rope_scaling_of_older_files():
    text = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}
    config = LlavaConfig.from_hf(PUBLISHED | {"text_config": PUBLISHED["text_config"] | text})
    assert config.text.rope_scaling.factor == 2
    assert config.text.rope_theta == 5e5


# ---- weights


@pytest.fixture
def folder(tmp_path):
    policy, params = tiny_llava.policy()
    save_pretrained(tmp_path / "policy", policy, params)
    return tmp_path / "policy"


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors")


def test_round_trip_is_exact_under_published_names(folder):
    policy, params = tiny_llava.policy()
    loaded_policy, loaded = load_pretrained(folder)
    assert loaded_policy == policy
    assert isinstance(loaded_policy, Llava)
    tiny.assert_equal_trees(loaded, params)
    tensors = load_file(folder / "model.safetensors")
    assert {
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "vision_tower.vision_model.pre_layrnorm.bias",
        "vision_tower.vision_model.encoder.layers.2.mlp.fc1.bias",
        "vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.linear_1.weight",
    } <= tensors.keys()
    patches = tensors["vision_tower.vision_model.embeddings.patch_embedding.weight"]
    assert patches.shape == (16, 3, 4, 4)


@pytest.mark.parametrize("tower", ["vision_tower.", "vision_tower.vision_model."])
def test_module_names_of_transformers_load(folder, tower):
    _, params = load_pretrained(folder)
    prefixes = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.vision_model.": f"model.{tower}",
        "multi_modal_projector.": "model.multi_modal_projector.",
    }

    def rename(tensors):
        renamed = {}
        for key, tensor in tensors.items():
            old, new = next(item for item in prefixes.items() if key.startswith(item[0]))
            renamed[new + key.removeprefix(old)] = tensor
        return renamed

    rewrite(folder, rename)
    tiny.assert_equal_trees(load_pretrained(folder)[1], params)


def test_buffers_of_older_files_are_no_weights(folder):
    _, params = load_pretrained(folder)

    def add(tensors):
        tensors["vision_tower.vision_model.embeddings.position_ids"] = np.arange(5)[None]
        name = "language_model.model.layers.0.self_attn.rotary_emb.inv_freq"
        tensors[name] = np.ones(4, np.float32)

    rewrite(folder, add)
    tiny.assert_equal_trees(load_pretrained(folder)[1], params)


def test_missing_unexpected_and_misshapen_are_all_named(folder):
    def spoil(tensors):
        del tensors["multi_modal_projector.linear_1.bias"]
        tensors["vision_tower.vision_model.head.weight"] = np.zeros(3, np.float32)
        tensors["language_model.lm_head.weight"] = np.zeros((7, 32), np.float32)

    rewrite(folder, spoil)
    with pytest.raises(UserError) as error:
        load_pretrained(folder)
    for part in (
        "1 missing: multi_modal_projector.linear_1.bias (32,)",
        "1 unexpected: vision_tower.vision_model.head.weight (3,)",
        "language_model.lm_head.weight (7, 32), not (48, 32)",
    ):
        assert part in str(error.value)


def test_folder_is_read_as_the_family_it_says(folder):
    assert load_config(folder) == tiny_llava.CONFIG
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava_next"}))
    with pytest.raises(UserError, match="'llava_next' is not supported; .*'qwen2_5_vl' or 'llava'"):
        load_config(folder)


def test_tower_and_projector_are_frozen_together():
    params = {"vision_tower": 1, "multi_modal_projector": 2, "language_model": 3, "lm_head": 4}
    trainable, frozen = split_trainable(params, trained=Llava.parts["decoder"])
    assert trainable.keys() == {"language_model", "lm_head"}
    assert frozen.keys() == {"vision_tower", "multi_modal_projector"}
    assert split_trainable(params, trained=EVERYTHING) == (params, {})


# ---- the shared prompt


COUNTS = (1, 2, 0)


@pytest.mark.parametrize("rope", [None, RopeScaling("yarn", 4.0, 32, attention_factor=1.3)])
def test_shared_prompt_and_decoding_equal_the_plain_forward(rope):
    """Prompts with one, two and no images; groups of two completions."""
    model, params = tiny_llava.policy(config=tiny_llava.config(text={"rope_scaling": rope}))
    prompts = tiny_llava.prompts(COUNTS)
    rng = np.random.default_rng(0)
    B, G, C = len(COUNTS), 2, 3
    completions = rng.integers(tiny_llava.FIRST_TEXT, 48, (B, G, C)).astype(np.int32)
    features = jax.jit(model.encode_images)(params, prompts.images)
    hidden = jax.jit(model.completion_hidden)(params, prompts, features, completions)
    shared = np.asarray(model.project(params, hidden))

    rows = tiny_llava.rows(COUNTS)
    length = max(map(len, rows)) + C - 1
    tokens = np.zeros((B, G, length), np.int32)
    for b, row in enumerate(rows):
        tokens[b, :, : len(row)] = row
        tokens[b, :, len(row) : len(row) + C - 1] = completions[b, :, :-1]
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (B * G, 1, length))
    plain = jax.jit(model.token_logits)(
        params,
        tokens.reshape(B * G, length),
        positions,
        np.ones((B * G, length), bool),  # what stands behind a token is not seen anyway
        jnp.repeat(features, G, axis=0),
    ).reshape(B, G, length, -1)
    for b, row in enumerate(rows):
        reference = np.asarray(plain[b, :, len(row) - 1 : len(row) - 1 + C])
        np.testing.assert_allclose(shared[b], reference, atol=1e-5 * np.ptp(reference))

    @jax.jit
    def decode(params):
        cache = model.init_cache(B, G, C)
        weights = model.decode_weights(params)
        prompt_cache = model.prefill(params, prompts, features)
        token, logits = jnp.broadcast_to(prompts.last_token[:, None], (B, G)), []
        for step in range(C):
            positions = jnp.broadcast_to(prompts.last_position[:, None] + step, (B, G))
            step_logits, cache = model.decode_step(
                weights, prompt_cache, prompts.mask, cache, token, positions, step
            )
            logits.append(step_logits.T.reshape(B, G, -1))
            token = completions[:, :, step]
        return jnp.stack(logits, axis=2)

    np.testing.assert_allclose(decode(params), shared, atol=1e-5 * np.ptp(shared))


def test_no_image_token_is_ever_sampled():
    model, params = tiny_llava.policy()
    prompts = tiny_llava.prompts(COUNTS)
    # Without the ban the placeholder would be the likeliest token everywhere.
    params["lm_head"]["weight"] = params["lm_head"]["weight"].at[tiny_llava.IMAGE].set(0)
    params["lm_head"]["weight"] = params["lm_head"]["weight"] * 1e-6
    features = jax.jit(model.encode_images)(params, prompts.images)
    keys = caption_keys(jax.random.key(0), np.arange(3), group_size=16)
    options = {"max_new_tokens": 16, "stop_tokens": (tiny_llava.STOP,), "pad_token_id": 0}
    free = sample(model, params, prompts, features, keys, **options)
    assert (np.asarray(free.tokens) == tiny_llava.IMAGE).any()  # all tokens are about as likely
    banned = sample(
        model, params, prompts, features, keys, banned_tokens=model.config.banned_tokens, **options
    )
    assert not (np.asarray(banned.tokens) == tiny_llava.IMAGE).any()
    # One of 48 tokens is gone: the others have 1 / 47 each, in the sampler's logprobs too.
    logprobs = np.asarray(banned.logprobs)[np.asarray(banned.mask)]
    np.testing.assert_allclose(logprobs, -np.log(47), atol=1e-3)


def test_pixels_of_the_second_image_change_its_prompt_only():
    model, params = tiny_llava.policy()
    prompts = tiny_llava.prompts(COUNTS)
    completions = np.full((3, 1, 2), 7, np.int32)

    @jax.jit
    def run(pixels):
        features = model.encode_images(params, prompts.images._replace(pixels=pixels))
        return model.completion_hidden(params, prompts, features, completions)

    pixels = prompts.images.pixels.copy()
    pixels[1, model.config.vision.patches :] += 1.0
    difference = np.abs(run(pixels) - run(prompts.images.pixels)).max(axis=(1, 2, 3))
    assert difference[1] > 1e-3
    assert difference[0] == difference[2] == 0


def test_prompts_without_images_need_no_pixels():
    model, params = tiny_llava.policy()
    prompts = tiny_llava.prompts((0, 0))
    assert prompts.images.pixels.shape == (2, 0, 48)
    features = jax.jit(model.encode_images)(params, prompts.images)
    assert features.shape == (2, 0, 32)
    completions = np.full((2, 1, 2), 7, np.int32)
    hidden = jax.jit(model.completion_hidden)(params, prompts, features, completions)
    assert np.isfinite(np.asarray(hidden)).all()
