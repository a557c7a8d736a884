"""Qwen2.5-VL against Hugging Face's torch model, block by block and whole, in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hf
import torch_gradient

import balcap_jax
from balcap_jax.models.attention.plain import attend_causal, attend_rows, attend_segments
from balcap_jax.models.decoder.rotary import rotate, rotate_by_matmul
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.qwen2_5_vl.vision import patch_angles
from balcap_jax.models.qwen2_5_vl.windows import attend_windows, index_windows

torch = pytest.importorskip("torch", reason="the test extra has torch")
pytestmark = pytest.mark.torch

CONFIGS = {
    "tied": tiny.config(initializer_range=0.1),
    # one key-value head, windows of 3 x 3 merged tokens, more layers
    "untied": tiny.config(
        text={"num_key_value_heads": 1, "num_hidden_layers": 3},
        vision={"window_size": 24},
        tie_word_embeddings=False,
    ),
    # as many key-value heads as heads, windowed blocks only, smallest vision heads
    "windowed": tiny.config(
        text={"num_key_value_heads": 4, "mrope_section": (1, 1, 2)},
        vision={"num_heads": 4, "fullatt_block_indexes": ()},
    ),
    # fewer, wider heads, full blocks first and last, other patches, rotary base and epsilon
    "wide": tiny.config(
        text={
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "mrope_section": (2, 3, 3),
            "rope_theta": 1e4,
            "rms_norm_eps": 1e-5,
        },
        vision={
            "depth": 3,
            "patch_size": 2,
            "window_size": 8,
            "fullatt_block_indexes": (0, 2),
        },
    ),
    "one merged token per window": tiny.config(vision={"window_size": 8}),
    "window larger than any image, full blocks only": tiny.config(
        vision={"window_size": 64, "fullatt_block_indexes": (0, 1)}, tie_word_embeddings=False
    ),
    "no merging": tiny.config(vision={"spatial_merge_size": 1, "window_size": 8}),
    "wider decoder than tower, eight heads": tiny.config(
        text={
            "hidden_size": 64,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "mrope_section": (1, 2, 1),
        },
        vision={"depth": 4, "fullatt_block_indexes": (1, 3)},
        tie_word_embeddings=False,
    ),
}


def close(ours, theirs):
    """Within 1e-4 of the range of values."""
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.ptp(theirs))


def pair(config, tmp_path):
    """A random Hugging Face model, and the policy loaded from the folder it saves."""
    hf = tiny_hf.model(config)
    hf.save_pretrained(tmp_path)
    return hf, *load_pretrained(tmp_path)


def real_pixels(prompts):
    """The patches of all prompts one after another, as Hugging Face takes them, and the grids."""
    real = np.asarray(prompts.images.image_ids) >= 0
    grids = [(1, *tiny.GRIDS[i % len(tiny.GRIDS)]) for i in range(len(real))]
    return torch.tensor(np.asarray(prompts.images.pixels)[real]), torch.tensor(grids)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, tmp_path):
    """Four images of odd grids in one padded batch; positions are computed by each side."""
    config = CONFIGS[name]
    hf, policy, params = pair(config, tmp_path)
    prompts = tiny.prompts(4, config=config, prefix=34, patches=32)
    pixels, grids = real_pixels(prompts)
    tokens = torch.tensor(np.asarray(prompts.tokens)).long()
    with torch.no_grad():
        theirs = hf(
            input_ids=tokens,
            attention_mask=torch.tensor(np.asarray(prompts.mask)).long(),
            mm_token_type_ids=(tokens == tiny.IMAGE).int(),
            pixel_values=pixels,
            image_grid_thw=grids,
        ).logits

    @jax.jit
    def forward(params, prompts):
        features = policy.encode_images(params, prompts.images)
        return policy.token_logits(
            params, prompts.tokens, prompts.positions, prompts.mask, features
        )

    mask = np.asarray(prompts.mask)
    assert not mask.all()
    close(forward(params, prompts)[mask], theirs[torch.tensor(mask)])


def test_inputs_of_a_processor(tmp_path):
    """Logits and 64 greedy tokens of 20 prompts with two images, one and none, of all sizes.

    The placeholders, which we never sample, are suppressed there too.
    """
    hf, policy, params = pair(CONFIGS["tied"], tmp_path)
    cycle = [tiny.GRIDS[i % 4 :][: (2, 1, 1, 0, 1)[i % 5]] for i in range(20)]
    inputs = tiny.processor_inputs(cycle, config=policy.config)
    mask = inputs["attention_mask"].astype(bool)
    theirs = {name: torch.tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        logits = hf(**theirs).logits
    close(np.asarray(policy.logits(params, **inputs))[mask], logits[torch.tensor(mask)])
    hf.generation_config.eos_token_id = None
    tokens = hf.generate(
        **theirs,
        max_new_tokens=64,
        do_sample=False,
        suppress_tokens=list(policy.config.banned_tokens),
    )
    ours = balcap_jax.generate(policy, params, inputs, max_new_tokens=64, stop_tokens=())
    np.testing.assert_array_equal(ours, tokens[:, mask.shape[1] :].numpy())


@pytest.mark.parametrize(("name", "temperature"), [("tied", 1.0), ("untied", 0.7)])
def test_policy_gradient_equals_torch(name, temperature, tmp_path):
    """-mean(advantage * logprob), all of it trainable, the vision tower included."""
    config = CONFIGS[name]
    hf, policy, params = pair(config, tmp_path)
    prompts = tiny.prompts(3, config=config)
    completions, advantages = torch_gradient.random_completions(policy, 3, first=tiny.FIRST_TEXT)
    value, gradient = torch_gradient.our_gradient(
        policy, params, prompts, completions, advantages, temperature=temperature
    )
    pixels, grids = real_pixels(prompts)
    ends = np.cumsum(grids.prod(dim=1).numpy())

    def logits_of(b, completion):
        own = np.asarray(prompts.tokens)[b][np.asarray(prompts.mask)[b]]
        tokens = np.concatenate([own, [np.asarray(prompts.last_token)[b]], completion])
        tokens = torch.tensor(tokens[None]).long()
        return hf(
            input_ids=tokens,
            mm_token_type_ids=(tokens == tiny.IMAGE).int(),
            pixel_values=pixels[ends[b] - grids[b].prod() : ends[b]],
            image_grid_thw=grids[b : b + 1],
        ).logits[0, len(own) : -1]

    reference = torch_gradient.torch_loss(
        logits_of, completions, advantages, config.banned_tokens, temperature=temperature
    )
    reference.backward()
    assert value == pytest.approx(reference.item(), rel=1e-4)
    torch_gradient.assert_equal_gradients(hf, policy, gradient, tower="visual")


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """One forward of the first config with what goes in and out of each of its blocks."""
    hf, policy, params = pair(CONFIGS["tied"], tmp_path_factory.mktemp("traced"))
    prompts = tiny.prompts(1, seed=1, grids=tiny.GRIDS[1:], config=CONFIGS["tied"])
    tokens = torch.tensor(np.asarray(prompts.tokens)).long()
    seen = {}

    def record(name):
        def hook(_, args, kwargs, out):
            seen[name] = (args[0] if args else kwargs["hidden_states"], out)

        return hook

    visual, decoder = hf.model.visual, hf.model.language_model
    for i, block in enumerate(visual.blocks):
        block.register_forward_hook(record(f"block{i}"), with_kwargs=True)
    for i, layer in enumerate(decoder.layers):
        layer.register_forward_hook(record(f"layer{i}"), with_kwargs=True)
    visual.merger.register_forward_hook(record("merger"), with_kwargs=True)
    visual.patch_embed.register_forward_hook(record("patch_embed"), with_kwargs=True)
    with torch.no_grad():
        hf(
            input_ids=tokens,
            mm_token_type_ids=(tokens == tiny.IMAGE).int(),
            pixel_values=torch.tensor(np.asarray(prompts.images.pixels[0])),
            image_grid_thw=torch.tensor([(1, *tiny.GRIDS[1])]),
        )
    return policy, params, prompts, seen


def window_order(prompts):
    """Patches in the order of Hugging Face's vision tower: window by window."""
    windows = np.asarray(prompts.images.windows[0])
    return windows[windows >= 0]


def layer_of(stacked, i):
    return jax.tree.map(lambda x: x[i], stacked)


def test_patch_embed(traced):
    policy, params, prompts, seen = traced
    embed = policy.definitions["visual.patch_embed"](params["visual"]["patch_embed"])
    close(embed(prompts.images.pixels)[0], seen["patch_embed"][1])


@pytest.mark.parametrize("i", [0, 1])
def test_vision_block(traced, i):
    """Block 0 attends within windows, block 1 to the whole image; Hugging Face reorders patches."""
    policy, params, prompts, seen = traced
    vision = policy.config.vision
    order = window_order(prompts)
    hidden, out = (x.detach().numpy() for x in seen[f"block{i}"])
    x = np.empty_like(hidden)
    x[order] = hidden
    angles = patch_angles(
        prompts.images.positions, head_dim=vision.head_dim, theta=vision.rope_theta
    )
    block = policy.definitions["visual.blocks"](layer_of(params["visual"]["blocks"], i))
    index = index_windows(prompts.images.windows, len(order))
    attend = (
        partial(attend_windows, index=index, attend_rows=attend_rows),
        partial(attend_segments, segments=prompts.images.image_ids),
    )[i]
    ours = block(jnp.asarray(x)[None], angles, attend)[0]
    close(ours[order], torch.tensor(out))


def test_merger(traced):
    policy, params, _, seen = traced
    hidden, out = seen["merger"]
    merger = policy.definitions["visual.merger"](params["visual"]["merger"])
    close(merger(jnp.asarray(hidden.detach().numpy())[None])[0], out)


@pytest.mark.parametrize("i", [0, 1])
def test_decoder_layer(traced, i):
    """With image tokens inside, so that the three axes of the positions differ."""
    policy, params, prompts, seen = traced
    hidden, out = seen[f"layer{i}"]
    assert (np.ptp(prompts.positions[0], axis=0) > 0).any()
    angles = policy.prompt_angles(prompts.positions)
    layer = policy.definitions["language_model.layers"](
        layer_of(params["language_model"]["layers"], i)
    )
    x = jnp.asarray(hidden.detach().numpy())
    for way in (rotate, rotate_by_matmul):
        q, kv = layer.project(x, angles, way)
        close(layer.finish(x, attend_causal(q, *kv, prompts.mask)), out)
