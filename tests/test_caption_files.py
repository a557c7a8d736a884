"""Caption files: good rows become examples, each kind of bad input one sentence."""

import json
import logging
import zlib

import numpy as np
import pytest
from PIL import Image

from balcap_jax.data.caption_files import BadImageError, CaptionFile, open_image
from balcap_jax.data.examples import PROMPT, iterate
from balcap_jax.data.scenes import make_scene
from balcap_jax.errors import UserError

RED = (220, 30, 40)


def write_rows(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def red(folder, name="red.png", *, mode="RGB", size=(16, 12), **options):
    path = folder / name
    Image.new("RGB", size, RED).convert(mode).save(path, **options)
    return path


# Rows -------------------------------------------------------------------------------------------


def test_rows_become_examples(tmp_path):
    red(tmp_path)
    scene = make_scene(0, "train", 3)
    path = write_rows(
        tmp_path,
        [
            {"image": "red.png", "caption": "A red wall.", "id": 7, "prompt": "What is it?"},
            {"image": str(tmp_path / "red.png"), "caption": "Red.", "scene": scene.to_json()},
        ],
    )
    source = CaptionFile(path)
    first, second = iterate(source)
    assert (first.id, first.prompt, first.reference) == ("7", "What is it?", "A red wall.")
    assert first.scene is None
    assert first.image.mode == "RGB"
    assert first.image.size == (16, 12)
    assert first.image.getpixel((3, 3)) == RED
    assert (second.id, second.prompt) == ("data-000002", PROMPT)
    assert second.scene == scene


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    red(tmp_path)
    path = tmp_path / "data.jsonl"
    path.write_text('\ufeff\n{"image": "red.png", "caption": "A\u2028 b"}\r\n\n', encoding="utf-8")
    assert [example.id for example in iterate(CaptionFile(path))] == ["data-000002"]


ROW = '{"image": "red.png", "caption": "Red."}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        (ROW + "\n{'image'}", "line 2 is not JSON"),
        (ROW + "\n\n[1]", "line 3 is not a JSON object"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"image": "red.png"}', 'line 1 has no "caption"'),
        ('{"caption": "Red."}', 'line 1 has no "image"'),
        ('{"image": "red.png", "caption": "  "}', "must be a text that is not empty"),
        ('{"image": 3, "caption": "Red."}', '"image": 3'),
        ('{"image": "red.png", "caption": "Red.", "prompt": 1}', '"prompt": 1'),
        ('{"image": "red.png", "caption": "Red.", "id": [1]}', '"id": [1]'),
        ('{"image": "red.png", "caption": "Red.", "scene": {"a": 1}}', "line 1: scene"),
        (ROW[:-1] + ', "id": 1}\n' + ROW[:-1] + ', "id": "1"}', "'1' twice"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, said):
    red(tmp_path)
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        CaptionFile(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="missing.jsonl cannot be read .No such file"):
        CaptionFile(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="cannot be read .Is a directory"):
        CaptionFile(tmp_path)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8"):
        CaptionFile(binary)


# Images -----------------------------------------------------------------------------------------


def truncated(folder):
    rng = np.random.default_rng(0)
    path = folder / "truncated.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def truncated_png(folder):
    path = folder / "truncated.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def text_file(folder):
    path = folder / "text.jpg"
    path.write_text("no picture")
    return path


def empty(folder):
    path = folder / "empty.png"
    path.touch()
    return path


def bomb(folder):
    """A PNG whose header promises 40,000 x 40,000 pixels."""
    path = red(folder, "bomb.png")
    data = bytearray(path.read_bytes())
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    # The header's checksum must fit, or the file is broken in another way.
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def animated(folder, suffix="gif"):
    path = folder / f"moving.{suffix}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path


BAD = [
    (truncated, "truncated"),
    (truncated_png, "cannot be read"),
    (text_file, "not an image"),
    (empty, "empty"),
    (lambda folder: red(folder, "cmyk.jpg", mode="CMYK"), "colours are CMYK"),
    (lambda folder: red(folder, "one.png", size=(1, 1)), "1 x 1 pixels"),
    (lambda folder: red(folder, "thin.png", size=(400, 7)), "400 x 7 pixels"),
    (lambda folder: red(folder, "strip.png", size=(8 * 201, 8)), "strip"),
    (bomb, "1600000000 pixels are more pixels than is safe"),
    (lambda folder: folder / "missing.png", "no such file"),
    (lambda folder: folder, "no such file"),
    (animated, "it has 3 frames, not one"),
    (lambda folder: animated(folder, "png"), "it has 3 frames, not one"),
    (lambda folder: animated(folder, "webp"), "it has 3 frames, not one"),
    (lambda folder: red(folder, "wide.png", size=(20_000, 120)), "20000 x 120 pixels are above"),
]


@pytest.mark.parametrize(("make", "reason"), BAD)
def test_bad_images_say_why(tmp_path, make, reason):
    with pytest.raises(BadImageError, match=reason):
        open_image(make(tmp_path))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("rgb.png", "RGB", {}),
        ("rgba.png", "RGBA", {}),
        ("palette.gif", "RGB", {}),  # written with a palette
        ("webp_inside.jpg", "RGB", {"format": "WEBP", "lossless": True}),
        ("old.bmp", "RGB", {}),
    ],
)
def test_formats_and_modes_become_rgb(tmp_path, name, mode, options):
    image = open_image(red(tmp_path, name, mode=mode, **options))
    assert image.mode == "RGB"
    assert image.getpixel((4, 4)) == RED


def test_greys_become_rgb(tmp_path):
    # 8 bit: 77 stays; 1 bit: white is 255; 16 bit: 257 * 77 is the same grey in 16 bits.
    Image.new("L", (9, 9), 77).save(tmp_path / "grey.png")
    Image.new("1", (9, 9), 1).save(tmp_path / "bit.png")
    Image.fromarray(np.full((9, 9), 257 * 77, np.uint16)).save(tmp_path / "deep.png")
    for name, level in (("grey.png", 77), ("bit.png", 255), ("deep.png", 77)):
        image = open_image(tmp_path / name)
        assert image.mode == "RGB", name
        assert image.getpixel((4, 4)) == (level,) * 3, name


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (9, 9), (*RED, 0)).save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    red(tmp_path, "turned.jpg", size=(32, 16), exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (16, 32)


def test_large_images_keep_their_size(tmp_path):
    assert open_image(red(tmp_path, size=(3000, 2000))).size == (3000, 2000)


# Limits -----------------------------------------------------------------------------------------


def mixed_file(folder):
    """Good and bad images in turn: good ids are "0", "2", "4" ..."""
    rows = []
    for index, (make, _) in enumerate(BAD[:5]):
        red(folder, f"good{index}.png")
        rows.append({"id": 2 * index, "image": f"good{index}.png", "caption": "Red."})
        rows.append({"id": 2 * index + 1, "image": str(make(folder)), "caption": "Bad."})
    return write_rows(folder, rows)


def test_bad_images_are_skipped_up_to_the_limit(tmp_path, caplog):
    path = mixed_file(tmp_path)
    with caplog.at_level(logging.WARNING):
        source = CaptionFile(path, max_bad_images=5)
    assert [example.id for example in iterate(source)] == ["0", "2", "4", "6", "8"]
    names = [image.path.name for image in source.skipped]
    assert names == ["truncated.jpg", "truncated.png", "text.jpg", "empty.png", "cmyk.jpg"]
    assert sum("skipped the image" in message for message in caplog.messages) == 5


def test_the_photo_of_a_phone_with_previews_is_its_first_picture(tmp_path):
    path = tmp_path / "phone.jpg"
    preview = Image.new("RGB", (8, 8), "blue")
    Image.new("RGB", (16, 16), "red").save(
        path, format="MPO", save_all=True, append_images=[preview]
    )
    image = open_image(path)
    assert image.size == (16, 16)
    assert image.getpixel((4, 4))[0] > 200


def test_more_bad_images_than_the_limit_stop(tmp_path):
    path = mixed_file(tmp_path)
    with pytest.raises(UserError) as error:
        CaptionFile(path, max_bad_images=4)
    sentence = str(error.value)
    assert "5 bad images of 10, more than data.max_bad_images=4" in sentence
    assert "text.jpg (it is not an image), ..." in sentence  # the first three
    assert "empty.png" not in sentence
    assert "--data.max-bad-images 5" in sentence


def test_a_file_without_a_good_image_stops(tmp_path):
    path = write_rows(tmp_path, [{"image": "missing.png", "caption": "A cat."}])
    with pytest.raises(UserError, match="no image that can be read.*missing.png"):
        CaptionFile(path, max_bad_images=1)


def test_an_image_that_goes_bad_later_stops(tmp_path):
    image = red(tmp_path)
    source = CaptionFile(write_rows(tmp_path, [{"image": "red.png", "caption": "Red."}]))
    assert len(source) == 1
    image.unlink()
    with pytest.raises(UserError, match=r"red\.png was good .* no such file"):
        source[0]
