"""The model families: which configuration and which policy a config.json means."""

from pathlib import Path

from jax.typing import DTypeLike

from balcap_jax.errors import UserError
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.family import Family
from balcap_jax.models.hf.adapter_config import base_folder, is_adapter
from balcap_jax.models.hf.declarations import (
    check_adapter,
    check_original_llava,
    check_plain_weights,
)
from balcap_jax.models.json_files import read_json, reason_of, shown
from balcap_jax.models.layout import Layout
from balcap_jax.models.llava.config import MODEL_TYPE as LLAVA
from balcap_jax.models.llava.family import FAMILY as LLAVA_FAMILY
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.qwen2_5_vl.config import MODEL_TYPE as QWEN2_5_VL
from balcap_jax.models.qwen2_5_vl.family import FAMILY as QWEN2_5_VL_FAMILY

FAMILIES = {QWEN2_5_VL: QWEN2_5_VL_FAMILY, LLAVA: LLAVA_FAMILY}


def family_of(config: PolicyConfig) -> Family:
    """The family that `config` belongs to."""
    return next(family for family in FAMILIES.values() if family.config is type(config))


def layout_of(config: PolicyConfig) -> Layout:
    """How the family of `config` lays out images and tokens."""
    return family_of(config).layout(config)


def load_config(folder: str | Path) -> PolicyConfig:
    """The configuration in a folder: config.json and, where there is one, generation_config.json;
    of an adapter's folder, that of its base.

    Raises:
      UserError: no such folder, no readable config.json, not a supported model, or the folder says
        that its weights are not to be read as they are: quantised, or with an adapter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; give a local folder with config.json and safetensors files."
        )
    if is_adapter(folder):
        folder = base_folder(folder)
    check_adapter(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json; give the folder that holds the model's config.json."
        )
    config = read_json(folder / "config.json")
    check_original_llava(folder, config)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise UserError(
            f"model_type {shown(config.get('model_type'))} is not supported; give a folder with a "
            f"model of type {' or '.join(map(repr, FAMILIES))}."
        )
    check_plain_weights(folder, config)
    generation = folder / "generation_config.json"
    stops = read_json(generation) if generation.is_file() else None
    try:
        return family.config.from_hf(config, stops)
    except UserError:
        raise
    # A file may hold anything anywhere: a text where a number is wanted, a list for a section.
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{folder / 'config.json'} has an entry of the wrong kind for a model of type "
            f"{config['model_type']!r} ({reason_of(error)}); take the config.json that was "
            "published with the weights."
        ) from error


def make_policy(
    config: PolicyConfig,
    *,
    dtype: DTypeLike = "float32",
    remat: str = "none",
    residual: str = "float32",
) -> VisionLanguagePolicy:
    """The computation for these sizes."""
    return family_of(config).policy(config, dtype=dtype, remat=remat, residual=residual)
