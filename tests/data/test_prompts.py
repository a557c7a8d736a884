"""Examples to arrays and tokens to captions."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hf
from PIL import Image

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.inputs import CutImage
from balcap_jax.models.padding import bucket, pad_to_sizes, sizes_of
from balcap_jax.models.pixels import look_up, patch_values

# (width, height): a square, wide, high, an odd size that the processor rounds.
SIZES = ((16, 16), (48, 16), (16, 40), (37, 21))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tiny_hf.write_processor(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return Processor.load(folder, prefix_step=8, patch_step=16)


def examples():
    return [tiny_hf.example(f"image-{i}", size, seed=i) for i, size in enumerate(SIZES)]


def word(processor, text):
    return processor.tokenizer.convert_tokens_to_ids(text)


# ---- prompts


def test_prompt_of_a_square_image(processor):
    prompts = processor.prompts(examples()[:1])
    # 16 x 16 pixels, patch 4, merge 2: 4 x 4 patches, 4 image tokens; then 3 words and the answer's
    # first token, which is the last of the prompt.
    words = [word(processor, text) for text in ("describe", "the", "image")]
    row = [tiny.VISION_START, *[tiny.IMAGE] * 4, tiny.VISION_END, *words]
    np.testing.assert_array_equal(prompts.tokens[0], row + [tiny.PAD] * 7)
    np.testing.assert_array_equal(prompts.mask[0], [True] * 9 + [False] * 7)
    assert prompts.last_token[0] == word(processor, ".")
    # 0 start, image at 1 and 2, end at 3, words at 4, 5, 6, then 7.
    assert prompts.last_position[0] == 7
    np.testing.assert_array_equal(prompts.positions[0, 2, :9], [0, 1, 2, 1, 2, 3, 4, 5, 6])


def windows_of(windows: np.ndarray) -> list[tuple[int, ...]]:
    """The patches of each window that has any."""
    members = [tuple(row[row >= 0].tolist()) for row in windows]
    return [window for window in members if window]


def test_batch_is_padded_to_buckets_and_rows_do_not_change(processor):
    together = processor.prompts(examples())
    assert together.tokens.shape[1] % 8 == 0
    assert together.images.pixels.shape[1] % 16 == 0
    for i, example in enumerate(examples()):
        alone = processor.prompts([example])
        n, s = alone.mask[0].sum(), (alone.images.image_ids[0] >= 0).sum()
        np.testing.assert_array_equal(together.mask[i].sum(), n)
        np.testing.assert_array_equal(together.tokens[i, :n], alone.tokens[0, :n])
        np.testing.assert_array_equal(together.positions[i, :, :n], alone.positions[0, :, :n])
        assert together.last_position[i] == alone.last_position[0]
        for name in ("pixels", "positions", "image_ids"):
            ours, theirs = (getattr(x.images, name) for x in (together, alone))
            np.testing.assert_array_equal(ours[i, :s], theirs[0, :s])
        ours, theirs = (windows_of(x.images.windows[j]) for x, j in ((together, i), (alone, 0)))
        assert ours == theirs
        assert sorted(sum(ours, ())) == list(range(s))  # every real patch in one window, no other
        assert (together.images.image_ids[i, s:] == -1).all()
        assert (together.tokens[i] == tiny.IMAGE).sum() * 4 == s


def test_arrays_have_the_dtypes_that_jax_keeps(processor):
    for leaf in jax.tree.leaves(processor.prompts(examples()[:2])):
        assert leaf.dtype in (np.int32, np.float32, np.uint8, np.bool_)
        assert jnp.asarray(leaf).dtype == leaf.dtype


def test_several_images_in_a_prompt(processor):
    """The layout is open to it: windows and image ids stay apart, positions go on."""
    vision = tiny.CONFIG.vision
    grids = [(4, 6), (6, 2)]
    pixels = [np.ones((r * c, vision.patch_dim), np.float32) for r, c in grids]
    images = [CutImage(*image) for image in zip(pixels, grids, strict=True)]
    row = processor.layout.expand([9, tiny.IMAGE, 9, tiny.IMAGE, 9], images)
    assert row.tokens.tolist() == [9, *[tiny.IMAGE] * 6, 9, *[tiny.IMAGE] * 3, 9]
    np.testing.assert_array_equal(row.images.image_ids, [0] * 24 + [1] * 12)
    windows = windows_of(row.images.windows)
    assert sorted(sum(windows, ())) == list(range(36))
    assert all((min(window) >= 24) == (max(window) >= 24) for window in windows)
    # word 0, image 1..3, word 4, image 5..7, word 8
    assert row.positions[0, -1] == 8


def test_bad_example_is_named(processor):
    example = tiny_hf.example("photo-7", (16, 16), prompt="describe <image>")
    with pytest.raises(UserError, match="'photo-7'.*2 image placeholders for 1 images"):
        processor.prompts([*examples(), example])
    thin = tiny_hf.example("photo-8", (900, 2))
    with pytest.raises(UserError, match="'photo-8'.*aspect ratio"):
        processor.prompts([thin])


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P"])
def test_image_modes_become_rgb(processor, mode):
    example = examples()[0]._replace(image=examples()[0].image.convert(mode))
    expected = examples()[0]._replace(image=example.image.convert("RGB"))
    np.testing.assert_array_equal(
        processor.prompts([example]).images.pixels, processor.prompts([expected]).images.pixels
    )


def test_one_pixel_image_is_enlarged(processor):
    example = examples()[0]._replace(image=Image.new("RGB", (1, 1)))
    assert (processor.prompts([example]).tokens == tiny.IMAGE).sum() == 2 * 2


def test_prompts_run_through_the_policy(folder, processor, tmp_path):
    policy, params = tiny.policy()
    save_pretrained(tmp_path / "saved", policy, params, source=folder)
    policy, params = load_pretrained(tmp_path / "saved")
    again = Processor.load(tmp_path / "saved", prefix_step=8, patch_step=16)
    prompts = again.prompts(examples())
    jax.tree.map(np.testing.assert_array_equal, prompts, processor.prompts(examples()))
    features = jax.jit(policy.encode_images)(params, prompts.images)
    assert features.shape == (4, prompts.images.pixels.shape[1] // 4, 32)
    assert np.isfinite(np.asarray(features)).all()


# ---- captions


def test_captions_end_with_the_stop_token_unless_cut(processor):
    tokens, mask = processor.encode_captions([["a red square .", "a"], ["", "red " * 9]], 5)
    a, red, square, dot = (word(processor, text) for text in ("a", "red", "square", "."))
    expected = [
        [[a, red, square, dot, tiny.STOP], [a, tiny.STOP, tiny.PAD, tiny.PAD, tiny.PAD]],
        [[tiny.STOP] + [tiny.PAD] * 4, [red] * 5],
    ]
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(mask.sum(axis=-1), [[5, 2], [1, 5]])


def test_decode_stops_at_the_stop_token(processor):
    tokens, _ = processor.encode_captions([["a red square", "blue"], ["", "red " * 9]], 5)
    tokens[0, 1, 3] = word(processor, "circle")  # after the stop token: never shown
    assert processor.decode(tokens) == ["a red square", "blue", "", "red red red red red"]
    assert processor.decode(tokens[1]) == ["", "red red red red red"]


def test_special_tokens_of_the_folder(processor):
    assert processor.stop_tokens == (tiny.STOP,)
    assert processor.pad_token_id == tiny.PAD


# ---- loading


def copy_without(folder, tmp_path, *names):
    for path in folder.iterdir():
        if path.name not in names:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "config.json"])
def test_missing_file_is_named(folder, tmp_path, name):
    with pytest.raises(UserError, match=f"no (usable )?{name}"):
        Processor.load(copy_without(folder, tmp_path, name))


def test_chat_template_as_published_and_missing(folder, tmp_path):
    copy = copy_without(folder, tmp_path, "chat_template.jinja")
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="has no chat template"):
        Processor.load(copy)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": tiny_hf.CHAT_TEMPLATE}))
    assert Processor.load(copy).chat_template == tiny_hf.CHAT_TEMPLATE


def test_image_processor_of_another_model_is_refused(folder, tmp_path):
    copy = copy_without(folder, tmp_path)
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"patch_size": 14}))
    with pytest.raises(UserError, match="patch_size is 14"):
        Processor.load(copy)


def test_steps_must_fit_the_merge(folder):
    with pytest.raises(UserError, match="patch_step=6"):
        Processor.load(folder, patch_step=6)


def test_works_without_torch(folder):
    """In a process of its own where torch cannot be imported; no note on that is printed."""
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None)\n"
        "from balcap_jax.data.prompts.processor import Processor\n"
        "from balcap_jax.data.examples import Example\n"
        "from PIL import Image\n"
        "print('transformers' in sys.modules)\n"  # imported only when needed
        f"processor = Processor.load({str(folder)!r})\n"
        "example = Example('a', Image.new('RGB', (16, 16)), 'the image', '')\n"
        "print(processor.prompts([example]).tokens.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n(1, 16)\n", "")


# ---- transformers


@pytest.mark.torch
def test_pixels_equal_transformers_bit_for_bit(folder, processor):
    pytest.importorskip("torch", reason="the test extra has torch")
    from transformers import AutoImageProcessor

    prompts = processor.prompts(examples())
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")
    out = theirs(images=[example.image for example in examples()], return_tensors="pt")
    real = prompts.images.image_ids >= 0
    values = patch_values(prompts.images, channels=3, patch_dim=tiny.CONFIG.vision.patch_dim)
    np.testing.assert_array_equal(values[real], out["pixel_values"].numpy())


def test_buckets_are_few_and_hold_little_padding():
    """16 sizes up to 16 steps, then eight per doubling; what is above a step is an eighth at
    most."""
    values = range(1, 16 * 64 + 1)
    sizes = [bucket(value, 16) for value in values]
    assert sorted(set(sizes)) == [*range(16, 257, 16), *range(288, 513, 32), *range(576, 1025, 64)]
    for value, size in zip(values, sizes, strict=True):
        assert value <= size < value * 1.125 + 16
        assert bucket(size, 16) == size
    assert bucket(0, 16) == 0


@pytest.mark.parametrize(
    ("size", "least", "most", "tokens"),
    [
        # A token is 8 x 8 pixels, and the folder's own bounds are 128 and 1024.
        ((64, 32), 0, None, 10),  # 64 / sqrt(2) = 45.3 and 32 / sqrt(2) = 22.6: 5 x 2
        ((64, 32), 0, 512, 8),  # half of both: 4 x 2
        ((64, 32), 0, 10_000, 10),
        ((16, 8), 0, None, 2),
        ((16, 8), 512, None, 8),  # twice both
        (
            (16, 8),
            4096,
            None,
            18,
        ),  # bounded by 1024: 45.3 and 22.6, rounded up as transformers does
    ],
)
def test_images_have_the_pixels_that_are_asked_for(processor, size, least, most, tokens):
    limited = processor.limited(min_pixels=least, max_pixels=most)
    (image,) = limited._cut(tiny_hf.example("a", size).image)
    assert len(image.pixels) // 4 == tokens
    row = limited.row(tiny_hf.example("a", size))
    assert (row.tokens == processor.config.image_token_id).sum() == tokens


@pytest.mark.parametrize(("least", "most"), [(0, None), (300, 700)])
def test_the_extent_of_images_is_known_from_their_sizes(processor, least, most):
    limited = processor.limited(min_pixels=least, max_pixels=most)
    sizes = [(64, 32), (16, 8), (37, 21), (100, 60), (8, 90), (33, 44)]
    for size in sizes:
        row = limited.row(tiny_hf.example("a", size))
        tokens = int((row.tokens == processor.config.image_token_id).sum())
        assert limited.extent([size]) == (tokens, len(row.images.windows))
    each = [limited.extent([size]) for size in sizes]
    assert limited.extent(sizes) == tuple(np.sum(each, axis=0))
    assert limited.extent([(900, 2)]) == limited.extent([]) == (0, 0)


def test_a_batch_has_room_for_a_larger_image_where_it_is_asked_for(processor):
    small, large = tiny_hf.example("a", (16, 16)), tiny_hf.example("b", (64, 32))
    row, other = processor.row(small), processor.row(large)
    least = processor.extent([(64, 32)])
    alone, roomy = processor.pad([row]), processor.pad([row], least=least)
    assert sizes_of(roomy) == sizes_of(processor.pad([other])) != sizes_of(alone)
    again = pad_to_sizes(alone, sizes_of(roomy), pad_token_id=processor.pad_token_id)
    jax.tree.map(np.testing.assert_array_equal, roomy, again)
    assert sizes_of(processor.pad([row], least=processor.extent([]))) == sizes_of(alone)


def test_the_shortest_come_first_and_equal_ones_in_their_order(processor):
    sizes = [(64, 32), (16, 16), (24, 16), (16, 16), (64, 32)]
    given = [tiny_hf.example(str(i), size) for i, size in enumerate(sizes)]
    assert processor.shortest_first(given).tolist() == [1, 3, 2, 0, 4]


def test_bounds_are_those_of_transformers(processor):
    image = tiny_hf.example("a", (100, 60)).image
    theirs = processor.image_processor(
        images=[image], size={"shortest_edge": 128, "longest_edge": 600}, return_tensors="np"
    )
    (ours,) = processor.limited(min_pixels=64, max_pixels=600)._cut(image)
    np.testing.assert_array_equal(
        np.repeat(look_up(ours.levels, ours.pixels).reshape(-1, 3, 1, 16), 2, axis=2),
        theirs["pixel_values"].reshape(-1, 3, 2, 16),
    )
