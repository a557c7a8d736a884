"""LLaVA folders: examples to arrays, as Hugging Face's own processor does it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tiny_hf
import tiny_llava

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.families import layout_of
from balcap_jax.models.padding import pad_rows
from balcap_jax.models.pixels import patch_values

SIZES = ((8, 8), (30, 12), (5, 21))  # (width, height)
FULL = tiny_llava.config(vision_feature_select_strategy="full")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    tiny_llava.write_processor(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return Processor.load(folder, prefix_step=8, patch_step=1)


def examples():
    return [tiny_hf.example(f"image-{i}", size, seed=i) for i, size in enumerate(SIZES)]


def test_prompt_has_one_placeholder_per_feature(processor):
    prompts = processor.prompts(examples())
    # 8 x 8 pixels in patches of 4: 4 features. The tokenizer puts <s> first.
    words = [processor.tokenizer.convert_tokens_to_ids(w) for w in ("USER", ":")]
    after = ["describe", "the", "image", "ASSISTANT"]
    after = [processor.tokenizer.convert_tokens_to_ids(w) for w in after]
    row = [tiny_llava.BOS, *words, *[tiny_llava.IMAGE] * 4, *after]
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(prompts.tokens[i], row + [tiny_llava.PAD] * 5)
        np.testing.assert_array_equal(prompts.positions[i, 0, : len(row)], np.arange(len(row)))
        assert prompts.last_position[i] == len(row)
    assert prompts.positions.shape == (3, 1, 16)
    assert prompts.images.pixels.shape == (3, 4, 48)
    np.testing.assert_array_equal(prompts.images.positions[0], [[0, 0], [0, 1], [1, 0], [1, 1]])


@pytest.mark.parametrize("config", [tiny_llava.CONFIG, FULL], ids=["default", "full"])
def test_ids_and_pixels_equal_transformers_bit_for_bit(config, tmp_path):
    from transformers import AutoImageProcessor, AutoTokenizer, LlavaProcessor

    tiny_llava.write_processor(tmp_path, config=config)
    ours = Processor.load(tmp_path, patch_step=1)
    theirs = LlavaProcessor(
        AutoImageProcessor.from_pretrained(tmp_path, backend="pil"),
        AutoTokenizer.from_pretrained(tmp_path),
        patch_size=config.vision.patch_size,
        num_additional_image_tokens=1,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )
    for example in examples():
        prompts = ours.prompts([example])
        text = f"USER: <image>\n{example.prompt} ASSISTANT:"
        out = theirs(images=[example.image], text=[text], return_tensors="np")
        tokens = np.append(prompts.tokens[0][prompts.mask[0]], prompts.last_token[0])
        np.testing.assert_array_equal(tokens, out["input_ids"][0])
        values = np.asarray(patch_values(prompts.images, channels=3, patch_dim=48))
        pixels = values[0].reshape(2, 2, 3, 4, 4)  # row, column, channel, ...
        np.testing.assert_array_equal(
            pixels.transpose(2, 0, 3, 1, 4).reshape(3, 8, 8), out["pixel_values"][0]
        )


def test_patches_are_padded_by_whole_images(folder, tmp_path):
    assert Processor.load(folder).prompts(examples()).images.pixels.shape == (3, 28, 48)
    config = tiny_llava.config(vision={"image_size": 12})  # 9 patches: 28 is no multiple
    tiny_llava.write_processor(tmp_path, config=config)
    prompts = Processor.load(tmp_path).prompts(examples())
    assert prompts.images.pixels.shape == (3, 36, 48)
    assert (prompts.images.image_ids >= 0).sum(axis=1).tolist() == [9, 9, 9]


def test_several_images_and_none_in_one_batch():
    layout = layout_of(tiny_llava.CONFIG)
    images = layout.cut({"pixel_values": tiny_llava.images((3,))})
    image = tiny_llava.IMAGE
    rows = [
        layout.expand([9, image, 9, image, 9], images[:2]),
        layout.expand([9, 9], []),
        layout.expand([image, 9], images[2:]),
    ]
    assert rows[0].tokens.tolist() == [9, *[image] * 4, 9, *[image] * 4, 9]
    prompts = pad_rows(rows, pad_token_id=0, prefix_step=4, patch_step=layout.granule)
    np.testing.assert_array_equal(
        prompts.images.image_ids, [[0] * 4 + [1] * 4, [-1] * 8, [0] * 4 + [-1] * 4]
    )
    np.testing.assert_array_equal(prompts.last_position, [10, 1, 4])
    reference = tiny_llava.prompts((3,)).images
    np.testing.assert_array_equal(prompts.images.pixels[0], reference.pixels[0, :8])
    np.testing.assert_array_equal(prompts.images.pixels[2, :4], reference.pixels[0, 8:])
    text_only = pad_rows(rows[1:2], pad_token_id=0, prefix_step=4, patch_step=layout.granule)
    assert text_only.images.pixels.shape == (1, 0, 48)


@pytest.mark.parametrize(
    ("placeholders", "message"),
    [
        (6, "image 2 of 2 has 4 features but 2 placeholders"),
        (3, "image 1 of 2 has 4 features but 3 placeholders"),
        (9, "9 image placeholders, more than the features of 2 images"),
    ],
)
def test_the_image_without_its_placeholders_is_named(placeholders, message):
    layout = layout_of(tiny_llava.CONFIG)
    images = layout.cut({"pixel_values": tiny_llava.images((2,))})
    tokens = np.array([9, *[tiny_llava.IMAGE] * placeholders, 9], np.int32)
    with pytest.raises(ValueError, match=message):
        layout.row(tokens, images)


def test_images_of_one_size_have_one_extent(processor):
    assert processor.extent([(8, 8)]) == processor.extent([(300, 20)]) == (4, 0)


def test_a_placeholder_in_the_text_is_refused(processor):
    example = tiny_hf.example("photo-7", (16, 16), prompt="describe <image>")
    with pytest.raises(UserError, match="'photo-7'.*2 image placeholders for 1 images"):
        processor.prompts([example])


def test_image_processor_of_another_size_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings["crop_size"] = {"height": 12, "width": 12}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"\(3, 12, 12\) do not fit .* takes \(3, 8, 8\)") as error:
        Processor.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_works_without_torch(folder):
    # A process of its own; test_prompts.py has one of Qwen2.5-VL.
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None)\n"
        "from balcap_jax.data.prompts.processor import Processor\n"
        "from balcap_jax.data.examples import Example\n"
        "from PIL import Image\n"
        f"processor = Processor.load({str(folder)!r})\n"
        "example = Example('a', Image.new('RGB', (16, 16)), 'the image', '')\n"
        "print(processor.prompts([example]).tokens.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 16)\n", "")
