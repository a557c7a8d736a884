"""Pixels travel as bytes: on the device they are the image processor's floats to the last bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hf
import tiny_llava
from PIL import Image

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.pixels import as_computed, patch_values
from balcap_jax.parallel.sharding import make_mesh, shard_batch

SIZES = ((16, 16), (48, 16), (37, 21))
# As folders have them: Qwen's and CLIP's own, others' halves, no rescaling, no normalising.
SETTINGS = (
    {},
    {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
    {"do_rescale": False, "image_mean": [110.0, 120.0, 130.0], "image_std": [60.0, 61.0, 62.0]},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False},
)
WRITERS = {"qwen": tiny_hf.write_processor, "llava": tiny_llava.write_processor}


def loaded(folder, family, **settings):
    WRITERS[family](folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return Processor.load(folder)


def floats(processor, examples):
    """The processor's own arrays, as a policy took them before there were bytes."""
    images = [example.image for example in examples]
    cut = processor.layout.cut(processor.image_processor(images=images, return_tensors="np"))
    return [image.pixels for image in cut]


def values(processor, prompts):
    vision = processor.config.vision
    channels = processor.layout.channels
    return jax.jit(
        lambda images: patch_values(images, channels=channels, patch_dim=vision.patch_dim)
    )(prompts.images)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("family", WRITERS)
def test_the_floats_of_the_processor_are_found_to_the_last_bit(family, settings, tmp_path):
    processor = loaded(tmp_path, family, **settings)
    examples = [tiny_hf.example(str(i), size, seed=i) for i, size in enumerate(SIZES)]
    prompts = processor.prompts(examples)
    assert prompts.images.pixels.dtype == np.uint8
    found = values(processor, prompts)
    assert found.dtype == jnp.float32
    for row, theirs in zip(np.asarray(found), floats(processor, examples), strict=True):
        ours = np.ascontiguousarray(row[: len(theirs)])
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.astype("f4").view(np.uint32))


def test_every_byte_of_every_channel_is_the_processors_float(tmp_path):
    """Not only those of an image: 16 x 16 pixels of one colour are one number a channel."""
    processor = loaded(tmp_path, "qwen")
    for byte in (*range(0, 256, 15), 1, 2, 127, 128, 254):
        colour = (byte, 255 - byte, byte ^ 0x55)
        image = Image.new("RGB", (16, 16), colour)
        theirs = processor.image_processor(images=[image], return_tensors="np")["pixel_values"]
        for channel, value in enumerate(colour):
            own = theirs.reshape(-1, 3, 32)[:, channel]
            assert (own.view(np.uint32) == processor.levels[channel, value].view(np.uint32)).all()


@pytest.mark.parametrize("family", ["qwen", "llava"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_those_of_the_floats(family, dtype, tmp_path):
    processor = loaded(tmp_path, family)
    made = tiny.policy if family == "qwen" else tiny_llava.policy
    policy, params = made(dtype=jnp.dtype(dtype))
    examples = [tiny_hf.example(str(i), size, seed=i) for i, size in enumerate(SIZES)]
    prompts = processor.prompts(examples)
    as_floats = np.asarray(values(processor, prompts))
    plain = prompts._replace(images=prompts.images._replace(pixels=as_floats, levels=None))
    encode = jax.jit(policy.encode_images)
    wanted = np.asarray(encode(params, plain.images))
    np.testing.assert_array_equal(np.asarray(encode(params, prompts.images)), wanted)
    # Floats that travel as the tower rounds them are half as many bytes, and the same to it.
    narrow = as_computed(plain, policy.dtype)
    assert (narrow is plain) == (dtype == "float32")
    np.testing.assert_array_equal(np.asarray(encode(params, narrow.images)), wanted)


def test_floats_are_kept_where_bytes_do_not_tell_them(tmp_path):
    """Padding with a float; and a processor that makes of a byte what depends on its image."""
    processor = loaded(tmp_path / "padded", "llava", do_pad=True)
    assert processor.levels is None
    prompts = processor.prompts([tiny_hf.example("a", (16, 16))])
    (theirs,) = floats(processor, [tiny_hf.example("a", (16, 16))])
    np.testing.assert_array_equal(prompts.images.pixels[0, : len(theirs)], theirs)
    processor = loaded(tmp_path / "odd", "qwen")
    plain = processor.image_processor.normalize
    processor.image_processor.normalize = lambda image, *rest: plain(image, *rest) - image.mean()
    del processor.__dict__["levels"]  # as loaded
    assert processor.levels is None
    prompts = processor.prompts([tiny_hf.example("a", (16, 16))])
    (theirs,) = floats(processor, [tiny_hf.example("a", (16, 16))])
    found = np.asarray(values(processor, prompts))[0]
    assert prompts.images.pixels.dtype == np.float32
    np.testing.assert_array_equal(found[: len(theirs)], theirs)


def test_an_eighth_of_the_bytes_travel(tmp_path):
    """64 photos of 896 x 896 pixels: 1.23 GB as floats with their repeated frame."""
    config = tiny.config(vision={"patch_size": 14, "window_size": 112})
    tiny_hf.write_processor(tmp_path, config=config)
    bounds = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}}
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | bounds))
    processor = Processor.load(tmp_path)
    example = tiny_hf.example("a", (896, 896))
    images = processor.row(example).images
    (before,) = floats(processor, [example])
    assert 64 * before.nbytes == 64 * 64**2 * 3 * 2 * 14**2 * 4 == 1_233_125_376
    assert 64 * images.pixels.nbytes == 154_140_672
    assert images.levels.nbytes == 3 * 256 * 4


def test_each_device_looks_up_its_own_prompts(tmp_path):
    processor = loaded(tmp_path, "qwen")
    examples = [tiny_hf.example(str(i), (16, 16), seed=i) for i in range(8)]
    prompts = processor.prompts(examples)
    mesh = make_mesh(data=2, fsdp=4)
    images = shard_batch(mesh, prompts.images)
    look = jax.jit(lambda images: patch_values(images, channels=3, patch_dim=96))
    with jax.set_mesh(mesh):
        compiled = look.lower(images).compile()
        found = compiled(images)
    text = compiled.as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    np.testing.assert_array_equal(found, values(processor, prompts))
