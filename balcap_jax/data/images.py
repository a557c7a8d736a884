"""Image files to RGB images, each kind of bad one with its reason."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ImageLike = str | Path | bytes | Image.Image | np.ndarray

_MIN_SIDE = 8  # pixels; below this nothing can be recognised, and patches are at least as large
_MAX_ASPECT = 200  # longer strips have no grid of patches, the limit of Qwen2.5-VL's processor
_MAX_SIDE = 16_384  # pixels; towers see such an image shrunk until hardly anything is left of it
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"})


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason."""


def open_image(image: ImageLike) -> Image.Image:
    """The RGB image in a file, in the bytes of one, or in memory, upright by its EXIF tag, on white
    where it is transparent. Arrays are uint8, [height, width] or [height, width, 3 or 4].

    The format is told by the content, not by the name. Large images keep their size. Colours for
    print (CMYK) are converted by Pillow's formula, without their ICC profile, as other training
    codes read such JPEGs.

    Raises:
      BadImageError: the file is missing, unreadable, no image, truncated, in colours that have no
        such formula (LAB and the like), too narrow to show something, animated (which of its frames
        would be meant?), longer than 16,384 pixels, or so large that it might be an attack
        (Pillow's limit, about 179 million pixels).
    """
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if isinstance(image, Image.Image):
        _check_header(image)
        return _to_rgb(ImageOps.exif_transpose(image))
    in_memory = isinstance(image, bytes)
    if not in_memory and not Path(image).is_file():  # a named pipe would block for ever
        raise BadImageError("there is no such file")
    try:
        with Image.open(io.BytesIO(image) if in_memory else image) as opened:
            _check_header(opened)
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        empty = not image if in_memory else Path(image).stat().st_size == 0
        raise BadImageError("the file is empty" if empty else "it is not an image") from None
    except Image.DecompressionBombError as error:
        pixels, limit = (int(number) for number in re.findall(r"\d+", str(error))[:2])
        raise BadImageError(
            f"its {pixels} pixels are more pixels than is safe to decode, {limit}; shrink it"
        ) from None
    # Decoders meet arbitrary bytes here: Pillow raises OSError for truncated files, and by format
    # also SyntaxError, ValueError, EOFError, IndexError, struct.error and others.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadImageError(f"it cannot be read ({reason})") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    grey_or_colours = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not grey_or_colours:
        raise BadImageError(
            f"its array is {pixels.dtype} {list(pixels.shape)}, not uint8 [height, width, 3]"
        )
    return Image.fromarray(pixels)


def _check_header(image: Image.Image) -> None:
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
    # The other pictures of an MPO, a phone's JPEG, are previews: the first one is the photo.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImageError(f"it has {frames} frames, not one; save the one that is meant")
    if image.mode not in _MODES:
        raise BadImageError(f"its colours are {image.mode}, which are not read; save it as RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB; 16-bit greys are scaled to 8 bits, transparent parts become white."""
    if image.mode == "I;16":  # `convert` alone would clip all above 255 to white
        image = image.convert("F").point(lambda value: value * (1 / 257) + 0).convert("L")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
