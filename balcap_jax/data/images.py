"""Image files to RGB images, each kind of bad one with its reason."""

import hashlib
import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from balcap_jax.storage.paths import as_path, is_remote


class Part(NamedTuple):
    """The bytes from `start` to `stop` of a file, such as an image in a tar file.

    Attributes:
      path: of the file, here or in a bucket.
      name: for messages.
    """

    path: Any
    start: int
    stop: int
    name: str

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """
        Raises:
          OSError: the file cannot be read.
        """
        if is_remote(self.path):
            return self.path.read_range(self.start, self.stop)
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.stop - self.start)


ImageLike = str | PurePath | bytes | Image.Image | np.ndarray | Part

# Formats of pixels alone: those of drawings (PostScript, PDF, WMF) start other programs or are
# programs themselves.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
_DRAWINGS = (b"%!PS", b"%PDF", b"<svg", b"<?xml", b"\xc5\xd0\xd3\xc6", b"\xd7\xcd\xc6\x9a")
_MIN_SIDE = 8  # pixels; below this nothing can be recognised, and patches are at least as large
_MAX_ASPECT = 200  # longer strips have no grid of patches, the limit of Qwen2.5-VL's processor
_MAX_SIDE = 16_384  # pixels; towers see such an image shrunk until hardly anything is left of it
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # tag of TIFF, and one of its values
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "CMYK", "YCbCr"})


class Pixels(NamedTuple):
    """How many pixels images have.

    Attributes:
      least, most: smaller and larger images are scaled to so many, in their proportions; 0 and
        None: as they are.
      in_file: a file of more is refused unread. Decoders take some 5 bytes a pixel in each thread.
    """

    least: int = 0
    most: int | None = None
    in_file: int = 64_000_000


AS_IS = Pixels()


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason."""


def open_image(image: ImageLike, *, pixels: Pixels = AS_IS) -> Image.Image:
    """The RGB image in a file, in the bytes of one, or in memory, upright by its EXIF tag, on white
    where it is transparent. Arrays are uint8, [height, width] or [height, width, 3 or 4].

    The format is told by the content, not by the name. Colours for print (CMYK) are converted by
    Pillow's formula, without their ICC profile, as other training codes read such JPEGs.

    Raises:
      BadImageError: the file is missing, unreadable, no image of `FORMATS`, truncated, in colours
        that have no such formula (LAB and the like), too narrow to show something, animated (which
        of its frames would be meant?), longer than 16,384 pixels, or of more than `pixels.in_file`.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        _check_header(image, pixels)
        try:
            return _upright_rgb(image, pixels)
        except Exception as error:  # it may be a file that is only decoded now
            raise BadImageError(f"it cannot be read ({error})") from error
    with _opened(image, pixels) as opened:
        _draft(opened, pixels)
        return _upright_rgb(opened, pixels)


@contextmanager
def _opened(image: str | PurePath | bytes | Part, pixels: Pixels) -> Iterator[Image.Image]:
    """The image of a file, or of its bytes, whose head is read and checked.

    Raises:
      BadImageError: also for what Pillow raises of it inside.
    """
    if isinstance(image, Part):
        image = image.read()
    elif not isinstance(image, bytes) and is_remote(image):
        image = _from_bucket(image)
    in_memory = isinstance(image, bytes)
    if not in_memory and not _is_file(image):
        raise BadImageError("there is no such file")
    source = io.BytesIO(image) if in_memory else image
    with _pillow_errors(image, pixels), Image.open(source, formats=_formats()) as opened:
        _check_header(opened, pixels)
        yield opened


def _from_bucket(image: str | PurePath) -> bytes:
    """The bytes of an image in a bucket.

    Raises:
      BadImageError: there is no such object.
      OSError: the bucket refuses, which is no fault of the image.
    """
    try:
        return as_path(image).read_bytes()
    except FileNotFoundError:
        raise BadImageError("there is no such file") from None


@contextmanager
def _pillow_errors(image: str | PurePath | bytes, pixels: Pixels) -> Iterator[None]:
    """Whatever Pillow raises, as a BadImageError."""
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(_why_unknown(image)) from None
    except Image.DecompressionBombError as error:
        found = int(re.findall(r"\d+", str(error))[0])
        raise BadImageError(_too_many(found, pixels.in_file)) from None
    # Decoders meet arbitrary bytes here: Pillow raises OSError for truncated files, and by format
    # also SyntaxError, ValueError, EOFError, IndexError, struct.error and others.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadImageError(f"it cannot be read ({reason})") from error


def image_size(image: ImageLike, *, pixels: Pixels = AS_IS) -> tuple[int, int]:
    """Width and height that `open_image` gives an image before it is turned upright, by the head of
    its file: no pixel is decoded.

    Raises:
      BadImageError: as `open_image`, as far as the head tells.
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        _check_header(image, pixels)
        return _wanted(image.size, pixels)
    with _opened(image, pixels) as opened:
        _draft(opened, pixels)  # rounds the size that is scaled
        return _wanted(opened.size, pixels)


def check_file(path: Path, *, pixels: Pixels = AS_IS) -> None:
    """Reads the head of an image file and decodes nothing.

    Raises:
      BadImageError: as `open_image`, as far as the head tells.
    """
    with _opened(path, pixels):
        pass


def image_key(image: ImageLike) -> str:
    """Equal for rows of the same image: the same file, by whatever path or link, or the same bytes
    or pixels in memory.

    Raises:
      BadImageError: an image in memory cannot be decoded, as it may be that of a file.
    """
    if isinstance(image, Part):
        return f"{image.path} {image.start}"
    if isinstance(image, str | PurePath):
        return str(image) if is_remote(image) else os.path.realpath(image)
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(image, bytes):
        digest.update(image)
        return digest.hexdigest()
    try:
        if isinstance(image, Image.Image) and image.mode in ("P", "PA"):
            image = image.convert("RGBA")  # a place in a palette is no colour yet
        array = np.ascontiguousarray(image)
    except Exception as error:  # as in `_pillow_errors`
        raise BadImageError(f"it cannot be read ({error})") from error
    digest.update(f"{array.shape} {array.dtype}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _is_file(path: str | PurePath) -> bool:
    """A named pipe is none, which would block for ever."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or none
        return False


def _why_unknown(image: str | PurePath | bytes) -> str:
    if isinstance(image, bytes):
        begin = image[:64]
    else:
        with Path(image).open("rb") as file:
            begin = file.read(64)
    if not begin:
        return "the file is empty"
    if begin.lstrip().startswith(_DRAWINGS):
        return "it is a drawing, which is not read; save it as PNG"
    return "it is not an image"


def _from_array(pixels: np.ndarray) -> Image.Image:
    grey_or_colours = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not grey_or_colours or 0 in pixels.shape:
        raise BadImageError(
            f"its array is {pixels.dtype} {list(pixels.shape)}, not uint8 [height, width, 3]"
        )
    return Image.fromarray(pixels)


def _check_header(image: Image.Image, pixels: Pixels) -> None:
    """Refuses, before any pixel is decoded, what could not be used."""
    width, height = image.size
    if min(width, height) < _MIN_SIDE:
        raise BadImageError(f"its {width} x {height} pixels are below {_MIN_SIDE} on a side")
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise BadImageError(f"its {width} x {height} pixels are a strip, longer than 200 to 1")
    if max(width, height) > _MAX_SIDE:
        raise BadImageError(
            f"its {width} x {height} pixels are above {_MAX_SIDE} on a side; shrink it"
        )
    if width * height > pixels.in_file:
        raise BadImageError(_too_many(width * height, pixels.in_file))
    # The other pictures of an MPO, a phone's JPEG, are previews: the first one is the photo.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImageError(f"it has {frames} frames, not one; save the one that is meant")
    if image.mode not in _MODES:
        raise BadImageError(f"its colours are {image.mode}, which are not read; save it as RGB")


def _too_many(found: int, limit: int) -> str:
    return f"its {found} pixels are more pixels than is safe to decode, {limit}; shrink it"


def _upright_rgb(image: Image.Image, pixels: Pixels) -> Image.Image:
    """Decodes an image; it is turned last, when it is smallest."""
    bits, negative = _bits(image), _is_deep_negative(image)
    image.load()
    # Not before: Pillow turns a TIFF as it loads it, and takes the tag away.
    turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    image = _to_rgb(image, bits=bits)
    image = _scaled(ImageOps.invert(image) if negative else image, pixels)
    image = image.copy()  # an image in memory stays the caller's
    image.info = {}
    if turn != 1:
        image.getexif()[ExifTags.Base.Orientation] = turn
        ImageOps.exif_transpose(image, in_place=True)
    return image


# Size ---------------------------------------------------------------------------------------------


def _draft(image: Image.Image, pixels: Pixels) -> None:
    """Has a large JPEG decoded at a half, a quarter or an eighth, which takes as much less memory.

    What is decoded still has at least twice the wanted pixels on a side, so that the last scaling
    decides how it looks.
    """
    wanted = _wanted(image.size, pixels)
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and wanted != image.size:
        image.draft(image.mode, (2 * wanted[0], 2 * wanted[1]))


def _scaled(image: Image.Image, pixels: Pixels) -> Image.Image:
    wanted = _wanted(image.size, pixels)
    return image if wanted == image.size else image.resize(wanted, Image.Resampling.BICUBIC)


def _wanted(size: tuple[int, int], pixels: Pixels) -> tuple[int, int]:
    """The size in (width, height) within the limits, of the same proportions."""
    width, height = size
    if pixels.most is not None and width * height > pixels.most:
        scale = math.sqrt(pixels.most / (width * height))
        # Never above, where rounding could end; a strip keeps a side that patches fit on.
        return (
            max(_MIN_SIDE, math.floor(width * scale)),
            max(_MIN_SIDE, math.floor(height * scale)),
        )
    if width * height < pixels.least:
        scale = math.sqrt(pixels.least / (width * height))
        return math.ceil(width * scale), math.ceil(height * scale)
    return size


# Colours ------------------------------------------------------------------------------------------


def _bits(image: Image.Image) -> int:
    """Bits of a value in a PNG file, which Pillow turns into 8 or 16; of any other image 8."""
    if image.format != "PNG" or not getattr(image, "tile", None):
        return 8
    raw = image.tile[0][3]
    raw = raw[0] if isinstance(raw, tuple) else raw
    if raw == "1":
        return 1
    found = re.search(r";(\d+)", str(raw))
    return int(found[1]) if found else 8


def _is_deep_negative(image: Image.Image) -> bool:
    """Whether 0 is white in a file of 16-bit greys: of fewer bits Pillow knows it."""
    tags = getattr(image, "tag_v2", {})
    return image.mode.startswith("I;16") and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _to_rgb(image: Image.Image, *, bits: int) -> Image.Image:
    """RGB; 16-bit greys are scaled to 8 bits, transparent parts become white."""
    image = _to_8_bits(image, bits=bits)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return image


def _to_8_bits(image: Image.Image, *, bits: int) -> Image.Image:
    """Values, and the one that stands for transparent, as 8 bits hold them.

    `Image.convert` would clip 16-bit greys at 255. A PNG keeps its transparent value as it is in
    the file, of 1, 2, 4 or 16 bits, while Pillow has scaled the pixels.
    """
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((deep * 255 + 32_767) // 65_535).astype(np.uint8))
        if clear is not None:
            grey.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
        return grey
    if clear is None or bits == 8 or isinstance(clear, bytes):
        return image
    if isinstance(clear, tuple) and bits == 16:  # Pillow keeps the upper byte of colours
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    elif image.mode in ("1", "L") and clear < 2**bits:
        image.info["transparency"] = clear * 255 // (2**bits - 1)
    return image
