"""The functions of `import balcap_jax`, on the arrays that a processor returns."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_llava
from jax.sharding import PartitionSpec as P

import balcap_jax
from balcap_jax.errors import UserError
from balcap_jax.parallel.sharding import make_mesh

COUNTS = (1, 2, 0)


def llava_inputs(side="right"):
    """Three prompts with one, two and no images, as LLaVA's processor returns them."""
    tokens, mask = tiny.pad(tiny_llava.rows(COUNTS), side)
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "pixel_values": tiny_llava.images(COUNTS),
    }


def qwen_inputs():
    """Two prompts with an image each, of different sizes, as Qwen2.5-VL's processor makes them."""
    prompts = jax.tree.map(np.asarray, tiny.prompts(2))
    rows = [
        np.append(tokens[mask], last)
        for tokens, mask, last in zip(prompts.tokens, prompts.mask, prompts.last_token, strict=True)
    ]
    tokens, mask = tiny.pad(rows)
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "pixel_values": prompts.images.pixels[prompts.images.image_ids >= 0],
        "image_grid_thw": np.array([(1, *grid) for grid in tiny.GRIDS[:2]]),
        "mm_token_type_ids": None,
    }


FAMILIES = {
    "llava": (tiny_llava.policy, llava_inputs),
    "qwen2_5_vl": (tiny.policy, qwen_inputs),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_is_the_likeliest_next_token(family):
    """Each token is the argmax of `logits` over the prompt with the answer so far."""
    make, inputs = FAMILIES[family]
    (policy, params), inputs = make(), inputs()
    new = 3
    tokens = balcap_jax.generate(policy, params, inputs, max_new_tokens=new, stop_tokens=())
    assert tokens.shape == (len(inputs["input_ids"]), new)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    # The answer goes after the padding too: on that side it may stand anywhere.
    whole = inputs | {
        "input_ids": np.concatenate([ids, tokens[:, :-1]], axis=1),
        "attention_mask": np.concatenate([mask, np.ones_like(tokens[:, :-1])], axis=1),
    }
    logits = np.array(policy.logits(params, **whole))
    logits[..., list(policy.config.banned_tokens)] = -np.inf
    likeliest = logits.argmax(axis=-1)
    for b, row in enumerate(mask.astype(bool)):
        first = np.flatnonzero(row)[-1]
        places = [first, *range(ids.shape[1], ids.shape[1] + new - 1)]
        np.testing.assert_array_equal(likeliest[b, places], tokens[b])


def test_padding_side_does_not_change_answers():
    policy, params = tiny_llava.policy()
    options = {"max_new_tokens": 4, "stop_tokens": ()}
    right, left = (
        balcap_jax.generate(policy, params, llava_inputs(side), **options)
        for side in ("right", "left")
    )
    np.testing.assert_array_equal(right, left)


def test_answers_end_with_a_stop_token_and_then_pad():
    policy, params = tiny_llava.policy()
    free = balcap_jax.generate(policy, params, llava_inputs(), max_new_tokens=4, stop_tokens=())
    stop = int(free[0, 1])
    ended = balcap_jax.generate(
        policy, params, llava_inputs(), max_new_tokens=4, stop_tokens=(stop,)
    )
    end = list(free[0]).index(stop) + 1
    np.testing.assert_array_equal(ended[0], [*free[0, :end], *[tiny_llava.PAD] * (4 - end)])


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_to_policy_and_back(family, tmp_path):
    make, _ = FAMILIES[family]
    policy, params = make()
    balcap_jax.save_pretrained(tmp_path / "policy", policy, params)
    loaded, narrow = balcap_jax.load_pretrained(tmp_path / "policy")
    assert loaded.config == policy.config
    assert loaded.dtype == jnp.bfloat16
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), narrow, params
    )
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    _, spread = balcap_jax.load_pretrained(tmp_path / "policy", "float32", mesh)
    jax.tree.map(np.testing.assert_array_equal, spread, params)
    up = spread["language_model"]["layers"]["mlp"]["up_proj"]["weight"]
    assert up.sharding.spec == P(None, "tensor", "fsdp")
    assert up.addressable_shards[0].data.shape == (2, 24, 16)


def cut_inside_an_image(inputs):
    return inputs | {name: inputs[name][:, :5] for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i: i | {"pixels": i["pixel_values"]}, "'pixels'"),
        (lambda i: {"pixel_values": i["pixel_values"]}, "must have input_ids"),
        (lambda i: i | {"attention_mask": np.ones((3, 2))}, r"attention_mask \(3, 2\)"),
        (lambda i: i | {"input_ids": i["input_ids"] + 40}, "the vocabulary has 48 tokens"),
        (lambda i: i | {"pixel_values": i["pixel_values"][:2]}, "Prompt 1: 8 image placeholders"),
        (lambda i: i | {"pixel_values": i["pixel_values"][..., :4]}, r"\(3, 8, 4\) do not fit"),
        (cut_inside_an_image, "Prompt 0: image 1 of 1 has 4 features but"),
        (lambda i: i | {"input_ids": i["input_ids"][:, :0], "attention_mask": None}, "Prompt"),
    ],
)
def test_bad_inputs_are_one_sentence(spoil, message):
    policy, params = tiny_llava.policy()
    with pytest.raises(UserError, match=message) as error:
        balcap_jax.generate(policy, params, spoil(llava_inputs()))
    assert "\n" not in str(error.value)


def test_import_loads_no_framework():
    code = (
        "import sys, balcap_jax\n"
        "assert {'Trainer', 'generate', '__version__'} < set(dir(balcap_jax))\n"
        "print([name for name in ('jax', 'torch', 'transformers') if name in sys.modules])\n"
        "balcap_jax.generate\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n[]\n", "")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'chat'"):
        _ = balcap_jax.chat


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_shorter_than_the_policys_positions(family):
    make, inputs = FAMILIES[family]
    policy, params = make()
    positions = policy.config.text.max_position_embeddings
    for count in (positions, 10**20):
        with pytest.raises(UserError, match=f"max_new_tokens={count} must be below .*={positions}"):
            balcap_jax.generate(policy, params, inputs(), max_new_tokens=count)
