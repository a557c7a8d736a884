"""Adapters as PEFT's folders: adapter_config.json and adapter_model.safetensors, in and out.

Names are those of the modules of transformers >= 5 with "base_model.model." before them, which
vLLM maps to its own. They are written in full: a list of last names, such as "gate_proj", would put
adapters on the tower as well, and names without "language_model" are ones that vLLM silently has
no layer for.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from balcap_jax.errors import UserError
from balcap_jax.models.adapters import linear_layers
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.decoder.lora import A, B, Lora, adapted_modules
from balcap_jax.models.families import family_of
from balcap_jax.models.hf.adapter_config import (
    CONFIG,
    PICKLE,
    WEIGHTS,
    config_of,
    read_adapter_config,
)
from balcap_jax.models.hf.companions import write_json
from balcap_jax.models.hf.weight_files import DTYPES, Stored, check_finite, tensors_of
from balcap_jax.models.json_files import printable
from balcap_jax.models.param_tree import get_at, layer_names, set_at, shapes_of
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import param_shardings
from balcap_jax.runs.folder import remove_half_written, replace_folder, written_beside
from balcap_jax.storage.paths import AnyPath, as_path, is_remote

PREFIX = "base_model.model."
_OUTSIDE = re.compile(r"lora_embedding_[AB]|\.(?:lm_head|embed_tokens)\.")
_SUFFIX = re.compile(r"\.lora_([AB])(?:\.default)?\.weight$")
_DECODER = "language_model/"


class Adapter(NamedTuple):
    """An adapter from a folder.

    Attributes:
      params: its leaves, nested as in the policy's `params`, float32.
      base: the name or path of the policy that it was trained on, as its folder says.
    """

    rank: int
    lora: Lora
    params: Params
    base: str


def save_adapter(
    folder: str | AnyPath,
    policy: VisionLanguagePolicy,
    params: Params,
    *,
    base: str,
    revision: str | None = None,
) -> None:
    """Writes the adapters in `params` as a folder that PEFT, vLLM and `model.lora.start` load.

    Args:
      params: adapters with or without the weights beside them.
      base: name on the hub or path of the policy that the adapters change.
      revision: commit, tag or branch of a base on the hub.

    Raises:
      UserError: `folder` cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    assert policy.lora is not None
    folder = as_path(folder)
    tensors: dict[str, np.ndarray] = {}
    paths, rank = [], 0
    for path, leaves in adapted_modules(params):
        paths.append(path)
        rank = leaves[A].shape[-2]
        for name, leaf in ((A, leaves[A]), (B, leaves[B])):
            stacked = np.asarray(jax.device_get(leaf), np.float32)
            modules = module_names(policy, path)
            layers = stacked if len(stacked.shape) == 3 else stacked[None]
            for module, layer in zip(modules, layers, strict=True):
                tensors[f"{PREFIX}{module}.{name}.weight"] = np.ascontiguousarray(layer)
    targets = target_modules(policy, paths)
    config = config_of(
        rank=rank, lora=policy.lora, base=base, revision=revision, target_modules=targets
    )
    remove_half_written(folder.parent, folder.name)
    try:
        with written_beside(folder) as beside:
            write_json(beside / CONFIG, config)
            save_file(tensors, beside / WEIGHTS, metadata={"format": "pt"})
            shutil.copymode(beside / CONFIG, beside / WEIGHTS)
            if is_remote(folder):
                replace_folder(beside, folder, last=CONFIG)
                return
            folder.mkdir(parents=True, exist_ok=True)
            for name in (CONFIG, WEIGHTS):
                os.replace(beside / name, folder / name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Cannot write the adapter to {folder} ({error}); free space there or choose another "
            "folder."
        ) from error


def load_adapter(
    folder: str | Path, policy: VisionLanguagePolicy, *, mesh: Mesh | None = None
) -> Adapter:
    """The adapter in `folder`, which must fit `policy` in every name and shape.

    Raises:
      UserError: it is not LoRA alone, is damaged, or is for another base.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    _check_weights(folder)
    stored = _by_leaf(folder, policy, config.base)
    params: Params = {}
    for path, parts in stored.items():
        leaves = _read_layer(folder, policy, path, parts, config.rank, config.base)
        set_at(params, path.split("/"), leaves)
    places = jax.devices()[0] if mesh is None else param_shardings(mesh, params)
    return Adapter(config.rank, config.lora, jax.device_put(params, places), config.base)


def paths_in(folder: str | Path, policy: VisionLanguagePolicy) -> list[str]:
    """The layers of `policy` that the adapter in `folder` changes, by their paths in `params`.

    Raises:
      UserError: see `load_adapter`; the numbers are not looked at.
    """
    folder = Path(folder)
    _check_weights(folder)
    return list(_by_leaf(folder, policy, read_adapter_config(folder).base))


# ---- names


def module_names(policy: VisionLanguagePolicy, path: str) -> list[str]:
    """The modules of transformers >= 5 that a layer of `params` is, one per layer of its stack."""
    table = family_of(policy.config).keys(policy.config)
    return [table.module(layer) for layer in layer_names(policy, path.replace("/", "."))]


def target_modules(policy: VisionLanguagePolicy, paths: list[str]) -> str | list[str]:
    """For adapter_config.json: what matches the modules of these layers and no others.

    A regular expression, with its names last as vLLM wants them, for layers of the decoder; else
    all names in full.
    """
    if all(path.startswith(_DECODER) for path in paths):
        names = dict.fromkeys(path.rpartition("/")[2] for path in paths)
        return rf"model\.language_model\.layers\.\d+\.[a-z_]+\.({'|'.join(names)})"
    return [module for path in paths for module in module_names(policy, path)]


def _by_leaf(
    folder: Path, policy: VisionLanguagePolicy, base: str
) -> dict[str, dict[tuple[str, int], Stored]]:
    """Path of each adapted layer -> ("A" or "B", number in the stack) -> where it is stored."""
    table = family_of(policy.config).keys(policy.config)
    known = {
        table.publish(module): (path, i)
        for path in linear_layers(policy)
        for i, module in enumerate(layer_names(policy, path.replace("/", ".")))
    }
    found: dict[str, dict[tuple[str, int], Stored]] = {}
    strangers: list[str] = []
    for tensor in tensors_of(folder / WEIGHTS):
        name, suffix = tensor.key.removeprefix(PREFIX), _SUFFIX.search(tensor.key)
        module = None if suffix is None else table.normalise(_SUFFIX.sub(".", name))
        at = None if module is None else known.get(module.removesuffix("."))
        if at is None or tensor.dtype not in DTYPES:
            strangers.append(tensor.key)
        else:
            found.setdefault(at[0], {})[(suffix.group(1), at[1])] = tensor
    outside = [key for key in strangers if _OUTSIDE.search(key)]
    if outside:
        raise UserError(
            f"{folder / WEIGHTS} has an adapter of the embedding or the head (first: "
            f"{printable(outside[0])}), which is more than LoRA on linear layers and is not read; "
            "merge the adapter into its base (merge_and_unload of peft) and give that folder."
        )
    if strangers or not found:
        what = f"{len(strangers)} weights that" if strangers else "no weights that"
        first = f" (first: {printable(strangers[0])})" if strangers else ""
        raise UserError(
            f"{folder / WEIGHTS} holds {what} this policy has {'no' if strangers else 'a'} layer "
            f"for{first}, so it is for another base{_named(base)}; give the base that it was "
            "trained on as --model.path."
        )
    return found


def _read_layer(
    folder: Path,
    policy: VisionLanguagePolicy,
    path: str,
    parts: Mapping[tuple[str, int], Stored],
    rank: int,
    base: str,
) -> dict[str, np.ndarray]:
    """The two leaves of one adapted layer, stacked as its weight is."""
    *layers, out, size = get_at(shapes_of(policy), path.split("/"))["weight"].shape
    count = layers[0] if layers else 1
    leaves: dict[str, Any] = {}
    for name, letter, shape in ((A, "A", (rank, size)), (B, "B", (out, rank))):
        read = []
        for i in range(count):
            tensor = parts.get((letter, i))
            if tensor is None or tensor.shape != shape:
                has = "is missing" if tensor is None else f"is {_by(tensor.shape)}"
                raise UserError(
                    f"{folder / WEIGHTS} does not fit this policy: {name} of {path}, layer {i}, "
                    f"{has} and must be {_by(shape)}, so it is for another base{_named(base)} or "
                    "was cut; give the base that it was trained on as --model.path."
                )
            numbers = tensor.read()
            check_finite(numbers, tensor)
            read.append(np.asarray(numbers, np.float32))
        leaves[name] = np.stack(read) if layers else read[0]
    return leaves


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _named(base: str) -> str:
    return f" (its {CONFIG} names {printable(base)})" if base else ""


def _check_weights(folder: Path) -> None:
    if not (folder / WEIGHTS).is_file():
        has = (folder / PICKLE).is_file()
        pickled = f" but {PICKLE}, which can run any code when read" if has else ""
        raise UserError(f"{folder} has no {WEIGHTS}{pickled}; save the adapter as safetensors.")
