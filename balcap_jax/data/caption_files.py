"""Images with reference captions from a JSONL file.

One JSON object per line:

    {"image": "photos/1.jpg", "caption": "A red car ...", "id": "1", "prompt": "...", "scene": {}}

`image` is relative to the file; `id`, `prompt` and `scene` (the ground truth of a generated scene)
may be left out. Every image is read once when the source is opened, so that bad ones are known
before the first step and index -> example stays a pure function.
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import Progress

from balcap_jax.data.examples import PROMPT, Example
from balcap_jax.errors import UserError

if TYPE_CHECKING:
    from balcap_jax.data.scenes import Scene

_MIN_SIDE = 8  # pixels; below this nothing can be recognised, and patches are at least as large
_MAX_ASPECT = 200  # longer strips have no grid of patches, the limit of Qwen2.5-VL's processor
_MAX_SIDE = 16_384  # pixels; towers see such an image shrunk until hardly anything is left of it
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16"})

_log = logging.getLogger(__name__)


class BadImageError(Exception):
    """An image that cannot be used; the message is the reason."""


class BadImage(NamedTuple):
    """An image that was skipped, and why."""

    path: Path
    reason: str


class Row(NamedTuple):
    """One line of the file, checked; `image` is the path to open."""

    id: str
    image: Path
    caption: str
    prompt: str
    scene: "Scene | None"


class CaptionFile:
    """The examples of a JSONL file in its order, without those whose image is bad.

    Attributes:
      skipped: the bad images, in the order of the file.
    """

    def __init__(self, path: str | Path, *, max_bad_images: int = 0):
        """Reads the file and checks every image, in parallel threads.

        Raises:
          UserError: the file cannot be read, a line is not a row as above, more than
            `max_bad_images` images are bad, or none is good.
        """
        self.path = Path(path)
        rows = read_rows(self.path)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            checks = pool.map(_why_bad, (row.image for row in rows))
            reasons = list(_with_progress(checks, total=len(rows)))
        checked = list(zip(rows, reasons, strict=True))
        self.rows = [row for row, reason in checked if reason is None]
        self.skipped = [BadImage(row.image, reason) for row, reason in checked if reason]
        if len(self.skipped) > max_bad_images:
            raise UserError(
                f"{self.path} has {len(self.skipped)} bad images of {len(rows)}, more than "
                f"data.max_bad_images={max_bad_images}: {_listing(self.skipped)}; mend them, or "
                f"skip them with --data.max-bad-images {len(self.skipped)}."
            )
        if not self.rows:
            raise UserError(
                f"{self.path} has no image that can be read: {_listing(self.skipped)}; mend them."
            )
        for image in self.skipped:
            _log.warning("skipped the image %s: %s", image.path, image.reason)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """The example at `index`.

        Raises:
          UserError: its image was good when the source was opened and is not any more.
        """
        row = self.rows[index]
        try:
            image = open_image(row.image)
        except BadImageError as error:
            raise UserError(
                f"The image {row.image} was good at the start of the run and now is not ({error}); "
                "restore it and resume the run."
            ) from error
        return Example(row.id, image, row.prompt, row.caption, row.scene)


def open_image(path: str | Path) -> Image.Image:
    """The RGB image at `path`, upright by its EXIF tag, on white where it is transparent.

    The format is told by the content, not by the name. Large images keep their size.

    Raises:
      BadImageError: the file is missing, unreadable, no image, truncated, in colours made for
        print (CMYK and the like), too narrow to show something, animated (which of its frames would
        be meant?), longer than 16,384 pixels, or so large that it might be an attack (Pillow's
        limit, about 179 million pixels).
    """
    if not Path(path).is_file():  # a named pipe would block for ever
        raise BadImageError("there is no such file")
    try:
        with Image.open(path) as image:
            _check_header(image)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        empty = Path(path).stat().st_size == 0
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


def read_rows(path: Path) -> list[Row]:
    """The rows of a caption file; blank lines are passed over.

    Raises:
      UserError: the file cannot be read, is empty, two rows have the same id, or a line is not a
        JSON object with the texts "image" and "caption".
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(
            f"The data file {path} cannot be read ({error.strerror}); check the path and its "
            "permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The data file {path} is not UTF-8 text ({error.reason} at byte {error.start}); give "
            "a .jsonl file with one JSON object per line."
        ) from error
    rows = [
        _row(line, path=path, number=number)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise UserError(
            f'The data file {path} holds no rows; write one {{"image": ..., "caption": ...}} per '
            "line."
        )
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise UserError(
                f"The data file {path} has the id {row.id!r} twice; give each row its own id."
            )
        seen.add(row.id)
    return rows


def _row(line: str, *, path: Path, number: int) -> Row:
    where = f"{path}, line {number}"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where} is not JSON ({error}); write one JSON object per line."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a JSON object; write {{...}} with its fields.")
    for name in ("image", "caption"):
        if name not in values:
            raise UserError(
                f'{where} has no "{name}", which every row must have; add it or remove the line.'
            )
    for name in ("image", "caption", "prompt"):
        value = values.get(name)
        if value is None and name == "prompt":
            continue
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f'{where} has "{name}": {json.dumps(value)[:80]}, which must be a text that is '
                "not empty; mend it or remove the line."
            )
    name = values.get("id")
    if not isinstance(name, str | int | None):
        raise UserError(f'{where} has "id": {json.dumps(name)[:80]}; give a text or a number.')
    scene = None
    if values.get("scene") is not None:
        from balcap_jax.data.scenes import Scene

        try:
            scene = Scene.from_json(values["scene"])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return Row(
        id=f"{path.stem}-{number:06d}" if name is None else str(name),
        image=path.parent / values["image"],
        caption=values["caption"],
        prompt=values.get("prompt") or PROMPT,
        scene=scene,
    )


def _with_progress(checks: Iterable[str | None], *, total: int) -> Iterator[str | None]:
    """Passes `checks` on, with a bar on stderr when they take more than a moment."""
    bar = Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True)
    task = bar.add_task("checking images", total=total)
    began, shown = time.monotonic(), False
    try:
        for check in checks:
            bar.advance(task)
            if not shown and time.monotonic() - began > 2:  # seconds
                bar.start()
                shown = True
            yield check
    finally:
        if shown:
            bar.stop()


def _why_bad(path: Path) -> str | None:
    try:
        open_image(path)
    except BadImageError as error:
        return str(error)
    return None


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
        raise BadImageError(f"its colours are {image.mode}, neither RGB nor grey")


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB; 16-bit greys are scaled to 8 bits, transparent parts become white."""
    if image.mode == "I;16":  # `convert` alone would clip all above 255 to white
        image = image.convert("F").point(lambda value: value * (1 / 257) + 0).convert("L")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _listing(images: Sequence[BadImage]) -> str:
    """The first few bad images with their reasons."""
    first = ", ".join(f"{image.path} ({image.reason})" for image in images[:3])
    return first + (", ..." if len(images) > 3 else "")
