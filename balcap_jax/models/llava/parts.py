"""The folders that a LLaVA is assembled from: a vision tower, a decoder, a projector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.errors import UserError
from balcap_jax.models.families import load_config
from balcap_jax.models.hf.declarations import check_adapter, check_plain_weights
from balcap_jax.models.hf.hub import is_hub_name, snapshot
from balcap_jax.models.hf.keys import KeyTable
from balcap_jax.models.hf.weight_files import Stored, scan
from balcap_jax.models.json_files import read_json, shown
from balcap_jax.models.llava.config import TEXT_DEFAULTS, LlavaConfig
from balcap_jax.models.llava.family import key_table
from balcap_jax.models.llava.tower_config import TowerConfig
from balcap_jax.models.llava.towers import TOWERS, Tower

PROJECTOR = "multi_modal_projector."
DECODER = "language_model."
TOWER = "vision_tower."


class TowerPart(NamedTuple):
    """A vision tower.

    Attributes:
      entries: of its config.json, the section that has its sizes.
      tensors: by their names in a LLaVA folder.
    """

    folder: Path
    kind: Tower
    config: TowerConfig
    entries: Mapping[str, Any]
    tensors: dict[str, Stored]


class DecoderPart(NamedTuple):
    """A language model of Llama's family.

    Attributes:
      entries: its config.json.
      generation: its generation_config.json, empty where there is none.
      tensors: by their names in a LLaVA folder.
    """

    folder: Path
    entries: dict[str, Any]
    generation: dict[str, Any]
    tensors: dict[str, Stored]


class ProjectorPart(NamedTuple):
    """The projector of a LLaVA folder, by its names there."""

    folder: Path
    config: LlavaConfig
    tensors: dict[str, Stored]


def part_folder(name: str, what: str) -> Path:
    """The folder `name`, or the snapshot of the hub's repository of that name.

    Raises:
      UserError: neither, or no config.json in it.
    """
    folder = Path(name)
    if not folder.is_dir() and is_hub_name(name):
        folder = snapshot(name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--{what} {name} must be a folder with config.json and safetensors, or the name "
            "'owner/name' of a repository on the hub; correct the path."
        )
    check_adapter(folder)
    return folder


def read_tower(name: str) -> TowerPart:
    """The tower in a CLIP or DINOv2 folder.

    Raises:
      UserError: no such folder, another model, or files that cannot be read.
    """
    folder = part_folder(name, "tower")
    config = read_json(folder / "config.json")
    check_plain_weights(folder, config)
    found = config.get("model_type")
    kind = next((tower for tower in TOWERS if found in tower.origins), None)
    if kind is None:
        known = [name for tower in TOWERS for name in tower.origins]
        raise UserError(
            f"--tower {name} holds a model of type {shown(found)}, which is no vision tower that "
            f"is known here; give a folder of type {' or '.join(map(repr, known))}."
        )
    origin = kind.origins[found]
    entries = (config.get(origin.section) or {}) if origin.section else config
    if not isinstance(entries, Mapping):
        raise UserError(
            f"{origin.section} is {shown(entries)} in {folder / 'config.json'} but must be a "
            "section in braces; take the config.json that was published with the weights."
        )
    own = {**origin.defaults, **entries}
    own["model_type"] = kind.config.model_type
    below = TOWER + kind.published
    names = [(left, left) for left in kind.left] + [(prefix, below) for prefix in kind.prefixes]
    tensors = scan(folder, _names_alone(names, inner=kind.inner))
    return TowerPart(
        folder=folder,
        kind=kind,
        config=kind.config.from_hf(own),
        entries=entries,
        tensors={key: stored for key, stored in tensors.items() if key.startswith(below)},
    )


def read_decoder(name: str) -> DecoderPart:
    """The language model in a folder.

    Raises:
      UserError: no such folder, a model of another kind, or files that cannot be read.
    """
    folder = part_folder(name, "decoder")
    config = read_json(folder / "config.json")
    check_plain_weights(folder, config)
    found = config.get("model_type")
    if found not in TEXT_DEFAULTS:
        raise UserError(
            f"--decoder {name} holds a model of type {shown(found)}, which is no decoder of "
            f"Llama's family; give a folder of type {' or '.join(map(repr, TEXT_DEFAULTS))}."
        )
    model, head = f"{DECODER}model.", f"{DECODER}lm_head."
    names = [("model.", model), ("lm_head.", head), ("", model)]
    generation = folder / "generation_config.json"
    return DecoderPart(
        folder=folder,
        entries=config,
        generation=read_json(generation) if generation.is_file() else {},
        tensors=scan(folder, _names_alone(names)),
    )


def read_projector(name: str) -> ProjectorPart:
    """The projector of a LLaVA folder.

    Raises:
      UserError: no such folder, or another model.
    """
    folder = part_folder(name, "projector")
    config = load_config(folder)
    if not isinstance(config, LlavaConfig):
        raise UserError(
            f"--projector {name} holds no LLaVA, whose projector could be taken; give a LLaVA "
            "folder, or mlp2x for a new projector."
        )
    tensors = scan(folder, key_table(config))
    return ProjectorPart(
        folder, config, {key: tensors[key] for key in tensors if key.startswith(PROJECTOR)}
    )


def _names_alone(
    names: list[tuple[str, str]], *, inner: tuple[tuple[str, str], ...] = ()
) -> KeyTable:
    """Names of a part that stands alone -> its names in a LLaVA folder."""
    return KeyTable(
        published=(), modules=(), other_layouts=tuple(names), convolution="", patch=(), inner=inner
    )
