"""Image files: good ones become RGB, each kind of bad one says why."""

import io

import numpy as np
import pytest
from images import RED, animated, bomb, empty, red, text_file, truncated, truncated_png
from PIL import Image

from balcap_jax.data.images import BadImageError, open_image

BAD = [
    (truncated, "truncated"),
    (truncated_png, "cannot be read"),
    (text_file, "not an image"),
    (empty, "empty"),
    (lambda folder: red(folder, "lab.tif", mode="LAB"), "colours are LAB"),
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


def test_the_photo_of_a_phone_with_previews_is_its_first_picture(tmp_path):
    path = tmp_path / "phone.jpg"
    preview = Image.new("RGB", (8, 8), "blue")
    Image.new("RGB", (16, 16), "red").save(
        path, format="MPO", save_all=True, append_images=[preview]
    )
    image = open_image(path)
    assert image.size == (16, 16)
    assert image.getpixel((4, 4))[0] > 200


def test_colours_for_print_become_rgb(tmp_path):
    # Cyan 0, magenta and yellow 255, key 0: no cyan leaves all red, the others take green and blue.
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    cmyk.save(tmp_path / "print.jpg", quality=100)
    cmyk.save(tmp_path / "print.tif")
    for name in ("print.jpg", "print.tif"):
        image = open_image(tmp_path / name)
        assert image.mode == "RGB"
        np.testing.assert_allclose(image.getpixel((4, 4)), (255, 0, 0), atol=3)


def test_the_bytes_of_a_file_are_as_good_as_the_file(tmp_path):
    path = red(tmp_path)
    assert open_image(path.read_bytes()).tobytes() == open_image(path).tobytes()
    buffer = io.BytesIO()
    Image.new("L", (9, 9), 77).save(buffer, "JPEG")
    assert open_image(buffer.getvalue()).getpixel((4, 4)) == (77, 77, 77)
    for data, reason in ((b"", "the file is empty"), (b"no picture", "not an image")):
        with pytest.raises(BadImageError, match=reason):
            open_image(data)
