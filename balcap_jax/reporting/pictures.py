"""Pictures that a run's rows name: only raster images in the run's own folder are read."""

import base64
import io
from pathlib import Path

from PIL import Image

from balcap_jax.storage.paths import AnyPath, is_remote

# An SVG may hold scripts and links; these hold pixels.
_RASTER = ("PNG", "JPEG", "WEBP", "GIF")


def picture_file(run: AnyPath, image: str | None) -> AnyPath | None:
    """The file of `image`, None where no page should show it.

    Args:
      run: the run's folder.
      image: a path relative to it, as a row holds it. A row may come from anywhere, so a path that
        leaves the folder, through a link too, is passed over, as is what is no raster image.
    """
    if not image or Path(image).is_absolute() or (is_remote(run) and ".." in Path(image).parts):
        return None
    try:
        file = (run / image).resolve()
        if not (file.is_relative_to(run.resolve()) and file.is_file()):
            return None
        _kind(file)
    # A NUL in the name is a ValueError, links in a circle are a RuntimeError.
    except (OSError, ValueError, RuntimeError, Image.DecompressionBombError):
        return None
    return file


def picture_uri(file: AnyPath) -> str:
    """A file of `picture_file` as a data URI, of the type that its content has."""
    content = base64.b64encode(file.read_bytes()).decode("ascii")
    return f"data:image/{_kind(file).lower()};base64,{content}"


def _kind(file: AnyPath) -> str:
    source = io.BytesIO(file.read_bytes()) if is_remote(file) else file
    with Image.open(source, formats=_RASTER) as picture:
        assert picture.format is not None
        return picture.format
