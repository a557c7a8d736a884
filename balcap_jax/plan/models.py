"""Which policy a plan is for: a folder's config.json, or a published shape without a folder."""

from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.errors import UserError
from balcap_jax.models.config import PolicyConfig, read_json
from balcap_jax.models.families import FAMILIES, load_config
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.plan.workloads.presets import PRESETS
from balcap_jax.plan.workloads.published import SHAPES


class Model(NamedTuple):
    """Sizes of a policy, as files have them and as the code has them.

    Attributes:
      name: for people.
      hf, generation: config.json and generation_config.json.
    """

    name: str
    hf: dict[str, Any]
    generation: dict[str, Any] | None
    config: PolicyConfig


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


def image_of(config: PolicyConfig, wish: str | None) -> tuple[int, int]:
    """Height and width in pixels of every image; the default is about 1000 image tokens, or the one
    size that the tower takes.

    Raises:
      UserError: the wish is no size, or not one that the tower takes.
    """
    if not isinstance(config, Qwen2_5_VLConfig):
        size = config.vision.image_size
        if wish not in (None, f"{size}x{size}"):
            raise UserError(
                f"--image {wish} does not fit a tower that takes {size}x{size}; leave it out."
            )
        return (size, size)
    if wish is None:
        return PRESETS["qwen7b"].image
    step = config.vision.patch_size * config.vision.spatial_merge_size
    sides = wish.split("x")
    if len(sides) != 2 or not all(s.isdigit() and int(s) > 0 and int(s) % step == 0 for s in sides):
        raise UserError(
            f"--image {wish} must be height x width in multiples of {step} pixels; write it as "
            f"{32 * step}x{32 * step}."
        )
    return (int(sides[0]), int(sides[1]))
