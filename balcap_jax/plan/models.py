"""Which policy a plan is for: a folder's config.json, or a published shape without a folder."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.config.sections import DataConfig
from balcap_jax.data.sources import SCENES
from balcap_jax.errors import UserError
from balcap_jax.models.config import PolicyConfig, read_json
from balcap_jax.models.families import FAMILIES, load_config
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.plan.workloads.published import SHAPES
from balcap_jax.scenes.world import SIZE

PIXELS = (3136, 12845056)  # least and most of an image in the folders of Qwen2.5-VL


class Model(NamedTuple):
    """Sizes of a policy, as files have them and as the code has them.

    Attributes:
      name: for people.
      hf, generation: config.json and generation_config.json.
      pixels: least and most of an image, by the folder's image processor.
    """

    name: str
    hf: dict[str, Any]
    generation: dict[str, Any] | None
    config: PolicyConfig
    pixels: tuple[int, int] = PIXELS


def model_of(path: str, *, shape: str | None = None) -> Model:
    """The model of `shape`, else of the folder `path`, else of the shape that `path` is called.

    Raises:
      UserError: no such shape, or neither a folder nor a name to go by.
    """
    if shape is not None:
        if shape not in SHAPES:
            raise UserError(
                f"--model {shape} is no published shape, known are {', '.join(SHAPES)}; choose one "
                "or leave it out to plan for the folder in model.path."
            )
        return _published(shape)
    if path == "base" or Path(path).is_dir():
        folder = policy_folder(path)
        config = load_config(folder)
        generation = folder / "generation_config.json"
        return Model(
            str(path),
            read_json(folder / "config.json"),
            read_json(generation) if generation.is_file() else None,
            config,
            _pixels_of(folder),
        )
    named = [name for name in SHAPES if name in Path(path).name.lower()]
    if not named:
        raise UserError(
            f"model.path {path!r} is neither a folder nor named after a published model; give the "
            f"sizes by --model {' or --model '.join(SHAPES)}."
        )
    return _published(named[0])


def _published(shape: str) -> Model:
    hf = SHAPES[shape]
    return Model(shape, hf, None, FAMILIES[hf["model_type"]].config.from_hf(hf))


def image_of(model: Model, data: DataConfig, wish: str | None) -> tuple[int, int]:
    """Height and width in pixels of every image: the largest that the settings allow, with sides of
    at most 2 : 1, or the one size that the tower takes.

    Images are bounded by `data.max_pixels` and by the folder's image processor; generated scenes
    have one size.

    Args:
      wish: another size, as "560x560"; None for the largest.

    Raises:
      UserError: the wish is no size, or not one that tower and settings allow.
    """
    vision = model.config.vision
    if not isinstance(model.config, Qwen2_5_VLConfig):
        size = vision.image_size
        if wish not in (None, f"{size}x{size}"):
            raise UserError(
                f"--image {wish} does not fit a tower that takes {size}x{size}; leave it out."
            )
        return (size, size)
    step = vision.patch_size * vision.spatial_merge_size
    least, most = model.pixels
    most = min(most, data.max_pixels)
    if wish is None:
        if data.path == SCENES:
            most = min(most, max(SIZE**2, least, data.min_pixels))
        return _largest(most // step**2, step)
    sides = wish.split("x")
    if len(sides) != 2 or not all(_is_multiple(side, step) for side in sides):
        raise UserError(
            f"--image {wish} must be height x width in multiples of {step} pixels; write it as "
            f"{32 * step}x{32 * step}."
        )
    height, width = map(int, sides)
    if height * width > most:
        raise UserError(
            f"--image {wish} has {height * width} pixels, and images are shrunk to {most} by "
            "data.max_pixels or the image processor; raise that or lower --image."
        )
    return (height, width)


def _largest(tokens: int, step: int) -> tuple[int, int]:
    """Height and width of at most so many tokens, with sides of at most 2 : 1: the most of them,
    and of these the nearest to a square.
    """
    tokens = max(tokens, 1)
    found = [
        (height * width, -width, height)
        for height in range(1, math.isqrt(tokens) + 1)
        if (width := min(tokens // height, 2 * height)) >= height
    ]
    _, width, height = max(found)
    return (height * step, -width * step)


def _is_multiple(side: str, step: int) -> bool:
    is_number = side.isascii() and side.isdigit() and len(side) < 10
    return is_number and int(side) > 0 and int(side) % step == 0


def _pixels_of(folder: Path) -> tuple[int, int]:
    """The bounds that a folder's image processor sets; those of Qwen2.5-VL where it has none."""
    path = folder / "preprocessor_config.json"
    settings = read_json(path) if path.is_file() else {}
    size = settings.get("size")
    size = size if isinstance(size, dict) else {}
    least, most = (
        next((v for v in (settings.get(old), size.get(new)) if type(v) is int and v > 0), default)
        for old, new, default in zip(
            ("min_pixels", "max_pixels"), ("shortest_edge", "longest_edge"), PIXELS, strict=True
        )
    )
    return least, most
