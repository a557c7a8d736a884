"""Image files: good ones become RGB, each kind of bad one says why."""

import io
import struct
import zlib

import numpy as np
import pytest
from images import RED, animated, bomb, empty, red, text_file, truncated, truncated_png
from PIL import Image

from balcap_jax.data.images import BadImageError, Pixels, check_file, image_size, open_image

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


# Sizes --------------------------------------------------------------------------------------------

MEGAPIXEL = 1024 * 1024


@pytest.mark.parametrize(
    ("size", "most", "wanted"),
    [
        # sqrt(1048576 / 12e6) = 0.29560: 4000 x 0.29560 = 1182.4, 3000 x 0.29560 = 886.8
        ((4000, 3000), MEGAPIXEL, (1182, 886)),
        ((1024, 1024), MEGAPIXEL, (1024, 1024)),
        ((640, 480), MEGAPIXEL, (640, 480)),
        ((4000, 3000), None, (4000, 3000)),
        ((2000, 16), 16_000, (1414, 11)),  # sqrt(1 / 2): 1414.2, 11.3
    ],
)
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
def test_large_images_are_shrunk_in_their_proportions(tmp_path, size, most, wanted, name):
    image = open_image(red(tmp_path, name, size=size), pixels=Pixels(most=most))
    assert image.size == wanted
    assert most is None or image.width * image.height <= most


@pytest.mark.parametrize(("least", "most"), [(0, None), (0, 300_000), (1000, 3000)])
def test_the_head_of_a_file_tells_the_size_that_it_is_opened_with(tmp_path, most, least):
    """A JPEG is decoded at a fraction before it is scaled, which rounds twice."""
    pixels = Pixels(least=least, most=most)
    rng = np.random.default_rng(0)
    for size in [(31, 30), (2000, 1333), *rng.integers(20, 1500, (4, 2)).tolist()]:
        for name in ("photo.jpg", "photo.png"):
            path = red(tmp_path, name, size=tuple(size))
            opened = open_image(path, pixels=pixels)
            assert image_size(path, pixels=pixels) == opened.size
            assert image_size(path.read_bytes(), pixels=pixels) == opened.size
    whole = Image.open(path)
    assert image_size(whole, pixels=pixels) == open_image(whole, pixels=pixels).size
    array = np.asarray(whole)
    assert image_size(array, pixels=pixels) == open_image(array, pixels=pixels).size


def test_a_head_that_cannot_be_read_says_why(tmp_path):
    for bad, reason in ((b"no picture", "not an image"), (tmp_path / "none.jpg", "no such file")):
        with pytest.raises(BadImageError, match=reason):
            image_size(bad)


def test_small_images_are_enlarged_in_their_proportions(tmp_path):
    # sqrt(50176 / 5000) = 3.1678: 100 x 3.1678 = 316.8, 50 x 3.1678 = 158.4, both rounded up
    image = open_image(red(tmp_path, size=(100, 50)), pixels=Pixels(least=224 * 224))
    assert image.size == (317, 159)


def test_a_shrunk_photo_looks_as_if_it_had_been_decoded_in_full(tmp_path):
    rng = np.random.default_rng(0)
    blobs = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    blobs.resize((3200, 2400), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    shrunk = open_image(tmp_path / "a.jpg", pixels=Pixels(most=400 * 300))
    whole = open_image(tmp_path / "a.jpg").resize((400, 300), Image.Resampling.BICUBIC)
    assert shrunk.size == (400, 300)
    difference = np.abs(np.asarray(shrunk, float) - np.asarray(whole, float))
    assert difference.mean() < 1  # of 255


def test_a_turned_photo_is_shrunk_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    red(tmp_path, "turned.jpg", size=(3200, 1600), exif=exif)
    assert open_image(tmp_path / "turned.jpg", pixels=Pixels(most=80_000)).size == (200, 400)


def test_files_of_too_many_pixels_are_refused_unread(tmp_path):
    path = red(tmp_path, "big.png", size=(400, 300))
    for image in (path, path.read_bytes(), Image.open(path), np.zeros((300, 400), np.uint8)):
        with pytest.raises(BadImageError, match="its 120000 pixels are more .* 100000; shrink it"):
            open_image(image, pixels=Pixels(in_file=100_000))
    # By default far below the 144 million pixels that take 700 MB in every thread.
    assert Pixels().in_file < 100_000_000
    with pytest.raises(BadImageError, match="more pixels than is safe"):
        check_file(red(tmp_path, "bomb.png", mode="1", size=(12_000, 12_000)))


def test_only_formats_of_pixels_are_opened(tmp_path):
    eps = tmp_path / "drawing.png"
    Image.new("RGB", (32, 32)).save(eps, "EPS")
    for image in (eps, eps.read_bytes(), b"%PDF-1.7 ...", b"<svg xmlns='a'></svg>"):
        with pytest.raises(BadImageError, match="it is a drawing, which is not read"):
            open_image(image)
    for name, format_ in (("a.jp2", "JPEG2000"), ("a.tif", "TIFF"), ("a.ppm", "PPM")):
        assert open_image(red(tmp_path, name, format=format_)).size == (16, 12)
    with pytest.raises(BadImageError, match="not an image"):
        open_image(red(tmp_path, "a.ico", size=(16, 16), format="ICO"))
    with pytest.raises(BadImageError, match="no such file"):
        open_image(tmp_path / ("a" * 300))
    with pytest.raises(BadImageError, match="no such file"):
        open_image("a\0.png")


# Depths -------------------------------------------------------------------------------------------


def png(pixels, *, bits, kind, clear=None):
    """The bytes of a PNG of any depth: `kind` 0 is grey, 2 colours, 4 grey with alpha."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = pixels.shape[:2]
    shifts = np.arange(bits)[::-1]
    binary = (pixels.reshape(height, -1)[:, :, None] >> shifts & 1).reshape(height, -1)
    lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in binary)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    transparent = b"" if clear is None else chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent
        + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [None, 0, 1])
def test_greys_of_any_depth_are_those_of_8_bits(bits, clear):
    """Pillow's own path for 8 bits is what all others must equal, transparency and all."""
    levels = (
        np.array([0, 1] if bits == 1 else [0, 1, 2, 3]) * (2**bits - 1) // (2 ** min(bits, 2) - 1)
    )
    eighths = np.array([0, 255] if bits == 1 else [0, 85, 170, 255])
    places = np.arange(16 * 16).reshape(16, 16) % len(levels)
    marks = [None if clear is None else [int(values[clear])] for values in (levels, eighths)]
    found = open_image(png(levels[places], bits=bits, kind=0, clear=marks[0]))
    with Image.open(io.BytesIO(png(eighths[places], bits=8, kind=0, clear=marks[1]))) as theirs:
        white = Image.new("RGBA", theirs.size, "white")
        wanted = Image.alpha_composite(white, theirs.convert("RGBA")).convert("RGB")
    np.testing.assert_array_equal(np.asarray(found), np.asarray(wanted))


def test_colours_and_alpha_of_16_bits_are_those_of_8_bits():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (16, 16, 3))
    mark = colours[3, 3].tolist()
    deep = open_image(png(colours * 257, bits=16, kind=2, clear=[257 * v for v in mark]))
    flat = open_image(png(colours, bits=8, kind=2, clear=mark))
    np.testing.assert_array_equal(np.asarray(deep), np.asarray(flat))
    assert deep.getpixel((3, 3)) == (255, 255, 255)
    greys = rng.integers(0, 256, (16, 16, 2))
    deep, flat = (open_image(png(greys * f, bits=b, kind=4)) for f, b in ((257, 16), (1, 8)))
    np.testing.assert_array_equal(np.asarray(deep), np.asarray(flat))


def test_greys_of_16_bits_are_rounded():
    levels = np.arange(0, 65536, 256)
    found = np.asarray(open_image(png(levels.reshape(16, 16), bits=16, kind=0)))[..., 0]
    np.testing.assert_array_equal(found.ravel(), np.rint(levels / 257))


def test_an_image_in_memory_stays_as_it_was():
    image = Image.new("RGB", (16, 12), RED)
    opened = open_image(image)
    opened.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == RED
