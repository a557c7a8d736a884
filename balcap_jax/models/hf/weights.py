"""Hugging Face folders in and out. The only place that knows Hugging Face's keys.

`params` has one array per kind of weight, layers stacked; a safetensors file has one per layer. The
arrays themselves are the same: nothing is transposed.
Both directions are strict: every weight is set exactly once and every key is used.
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from balcap_jax.errors import UserError
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.decoder.lora import A, B, Lora, adapted_modules, merge, take_adapters
from balcap_jax.models.families import family_of, load_config, make_policy
from balcap_jax.models.hf.adapter_config import base_folder, is_adapter
from balcap_jax.models.hf.adapters import load_adapter
from balcap_jax.models.hf.companions import COMPANIONS, copy_companions, with_dtype, write_json
from balcap_jax.models.hf.keys import KeyTable
from balcap_jax.models.hf.weight_files import DTYPES, INDEX, WEIGHTS, Stored, check_finite, scan
from balcap_jax.models.hf.weight_writer import Described, write_tensors
from balcap_jax.models.json_files import printable
from balcap_jax.models.param_tree import get_at, layer_names, set_at, shapes_of, stack_of
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel.sharding import param_shardings
from balcap_jax.runs.folder import remove_half_written, replace_folder, written_beside
from balcap_jax.storage.paths import AnyPath, as_path, is_remote

# Threads that read a folder; each holds one tensor.
READERS = min(8, os.cpu_count() or 1)


__all__ = [
    "COMPANIONS",
    "INDEX",
    "WEIGHTS",
    "Stored",
    "check_tensors",
    "load_pretrained",
    "params_of",
    "save_pretrained",
    "stored_shapes",
]


class Weight(NamedTuple):
    """One leaf of `params` and where Hugging Face keeps it.

    Attributes:
      path: keys into `params`.
      shape: of one layer.
      keys: published keys; one per layer if stacked, else one.
      stacked: the leaf has a leading layer axis.
      stored_shape: of each tensor in the file.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    stacked: bool
    stored_shape: tuple[int, ...]


def load_pretrained(
    folder: str | Path, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[VisionLanguagePolicy, Params]:
    """The policy and its weights from a local folder with config.json and safetensors.

    Reads a single file or an index with shards, keys as published ("visual.", "model.layers.") or
    as transformers v5 names its modules ("model.visual.", "model.language_model.layers.").
    Of a folder with a PEFT adapter alone, its base is loaded and the adapter merged into it.

    Args:
      dtype: of the weights and of the computation, "float32" or "bfloat16".
      mesh: each device gets its part of every weight (see `sharding.RULES`), read from the files
        layer by layer; by default all is on one device.

    Raises:
      UserError: folder, config.json or weights are missing, damaged or of another model.
    """
    folder = Path(folder)
    policy = make_policy(load_config(folder), dtype=jnp.dtype(dtype))
    return policy, load_weights(folder, policy, lambda _: dtype, mesh=mesh)


def load_weights(
    folder: Path,
    policy: VisionLanguagePolicy,
    dtype_of: Callable[[str], str],
    *,
    mesh: Mesh | None = None,
) -> Params:
    """The weights of `policy`, each in the dtype that `dtype_of` says of its path; see
    `load_pretrained`.
    """
    if is_adapter(folder):
        params = load_weights(base_folder(folder), policy, dtype_of, mesh=mesh)
        adapter = load_adapter(folder, policy, mesh=mesh)
        for path, leaves in adapted_modules(adapter.params):
            module = get_at(params, tuple(path.split("/")))
            # One stack after the other, so that no second policy lies beside the first.
            module["weight"] = _merge(module["weight"], leaves[A], leaves[B], adapter.lora)
        return params
    weights = _weights(policy)
    tensors = scan(folder, family_of(policy.config).keys(policy.config))
    check_tensors(folder, policy, tensors, stored_shapes(policy))
    params: Params = {}
    shardings = None if mesh is None else param_shardings(mesh, shapes_of(policy))
    for weight in weights:
        dtype = jnp.dtype(dtype_of("/".join(weight.path)))
        read = partial(_read_part, weight, tensors, dtype)
        shape = (len(weight.keys), *weight.shape) if weight.stacked else weight.shape
        if shardings is None:
            leaf = jax.device_put(read((slice(None),) * len(shape)))
        else:
            leaf = jax.make_array_from_callback(shape, get_at(shardings, weight.path), read)
        # The next weight is read when this one has left the host.
        set_at(params, weight.path, jax.block_until_ready(leaf))
    return params


def save_pretrained(
    folder: str | AnyPath,
    policy: VisionLanguagePolicy,
    params: Params,
    *,
    dtype: str | None = None,
    source: str | Path | None = None,
) -> None:
    """Writes a folder that transformers and vLLM load, keys as published, adapters merged.

    Everything is written beside `folder` first, so a crash leaves no half-written file in it; a new
    folder appears as a whole. Files of an earlier policy in `folder` are replaced. Tensors leave
    their devices one after the other: the host holds one at a time.

    Args:
      dtype: of the stored weights; that of `params` by default.
      source: folder whose files go along: tokenizer, processor, chat templates, generation
        settings, licence; see `companions`.

    Raises:
      UserError: `folder` cannot be written, or holds a sharded model whose index would stay behind.
    """
    folder = as_path(folder)
    if (folder / INDEX).exists():
        raise UserError(
            f"{folder} holds a sharded model ({INDEX}), which a single file cannot replace; choose "
            "another folder."
        )
    found = _exporting(policy, params, dtype)
    tensors = {
        key: Described(exporting.weight.stored_shape, exporting.dtype)
        for key, (exporting, _) in found.items()
    }
    stored = {str(tensor.dtype) for tensor in tensors.values()}
    config = with_dtype(policy.config.to_hf(), stored.pop() if len(stored) == 1 else None)
    remove_half_written(folder.parent, folder.name)
    try:
        with written_beside(folder) as beside:
            write_json(beside / "config.json", config)
            write_json(beside / "generation_config.json", policy.config.to_hf_generation())
            if source is not None:
                copy_companions(base_folder(Path(source)), beside)
            write_tensors(beside / WEIGHTS, tensors, lambda key: found[key][0].read(found[key][1]))
            if is_remote(folder) or not folder.exists() or not any(folder.iterdir()):
                replace_folder(beside, folder, last="config.json")
                return
            # The weights last: a folder with new weights has everything else of the new policy too.
            for path in sorted(beside.iterdir(), key=lambda path: path.name == WEIGHTS):
                if path.is_dir():  # chat templates; a folder replaces only an empty one
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                os.replace(path, folder / path.name)
    except OSError as error:
        raise UserError(
            f"Cannot write the policy to {folder} ({error}); free space there or choose another "
            "folder."
        ) from error


# ---- names and layouts


def stored_shapes(policy: VisionLanguagePolicy) -> dict[str, tuple[int, ...]]:
    """Published key -> shape in the files, for every weight of `policy`."""
    return {key: weight.stored_shape for weight in _weights(policy) for key in weight.keys}


def params_of(policy: VisionLanguagePolicy, read: Callable[[str], np.ndarray]) -> Params:
    """`params` on the host, numpy arrays: each from `read(published key)`, of the stored shape."""
    params: Params = {}
    for weight in _weights(policy):
        layers = [read(key).reshape(weight.shape) for key in weight.keys]
        set_at(params, weight.path, np.stack(layers) if weight.stacked else layers[0])
    return params


@lru_cache(maxsize=8)  # tracing `init` takes longer than reading a small file
def _weights(policy: VisionLanguagePolicy) -> tuple[Weight, ...]:
    """All weights of `policy`, from the shapes its `init` would give."""
    table = family_of(policy.config).keys(policy.config)
    weights = []
    for keypath, leaf in jax.tree_util.tree_leaves_with_path(shapes_of(policy)):
        path = tuple(entry.key for entry in keypath)
        stacked = stack_of(policy, ".".join(path)) is not None
        shape = leaf.shape[1:] if stacked else leaf.shape
        keys = _keys(policy, path, table)
        weights.append(Weight(path, shape, keys, stacked, _stored_shape(path, shape, table)))
    return tuple(weights)


def _keys(policy: VisionLanguagePolicy, path: tuple[str, ...], table: KeyTable) -> tuple[str, ...]:
    """Published keys of one leaf, one per layer of its stack."""
    *module, name = path
    if name in ("scale", "embedding"):
        name = "weight"
    return tuple(map(table.publish, layer_names(policy, ".".join([*module, name]))))


def _stored_shape(
    path: tuple[str, ...], shape: tuple[int, ...], table: KeyTable
) -> tuple[int, ...]:
    """The shape in the files of a weight of one layer: ours, but for the one convolution."""
    if ".".join(path[:-1]) == table.convolution and path[-1] == "weight":
        return (shape[0], *table.patch)
    return shape


@jax.jit
def _layer_of(stacked: jax.Array, layer: int | jax.Array) -> jax.Array:
    """One program for each shape, where plain indexing compiles four."""
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


class _Exporting(NamedTuple):
    """A weight as it is about to be written.

    Attributes:
      leaf: of `params`, on a device or on the host.
      adapter: what is merged into it; None: nothing.
      dtype: of the written tensors.
    """

    weight: Weight
    leaf: Any
    adapter: Params | None
    lora: Lora | None
    dtype: np.dtype

    def read(self, layer: int) -> np.ndarray:
        """One tensor as stored, adapter merged. A layer alone leaves its device, by a slice of its
        own: of a whole array JAX would keep the host's copy as long as the array lives.
        """
        out = self._part(self.leaf, layer, stacked=self.weight.stacked)
        if self.adapter is not None:
            assert self.lora is not None, "params have adapters that the policy does not know"
            # Summed in float32; rounded once.
            a, b = (
                self._part(leaf, layer, stacked=leaf.ndim == 3).astype(np.float32)
                for leaf in (self.adapter[A], self.adapter[B])
            )
            out = out.astype(np.float32) + np.float32(self.lora.scale(a.shape[0])) * (b @ a)
        return out.astype(self.dtype, copy=False).reshape(self.weight.stored_shape)

    @staticmethod
    def _part(leaf: Any, layer: int, *, stacked: bool) -> np.ndarray:
        if isinstance(leaf, jax.Array):
            return np.asarray(_layer_of(leaf, layer) if stacked else jnp.copy(leaf))
        return leaf[layer] if stacked else leaf


def _exporting(
    policy: VisionLanguagePolicy, params: Params, dtype: str | None
) -> dict[str, tuple[_Exporting, int]]:
    """Published key -> its weight, and the number of its layer."""
    found = {}
    weights, (params, adapters) = _weights(policy), take_adapters(params)
    assert len(jax.tree.leaves(params)) == len(weights), "params do not fit the policy"
    for weight in weights:
        leaf = get_at(params, weight.path)
        count = (len(weight.keys),) if weight.stacked else ()
        assert leaf.shape == (*count, *weight.shape), weight.path
        adapter = adapters.get(weight.path[:-1]) if weight.path[-1] == "weight" else None
        written = jnp.dtype(leaf.dtype if dtype is None else dtype)
        exporting = _Exporting(weight, leaf, adapter or None, policy.lora, written)
        found |= {key: (exporting, layer) for layer, key in enumerate(weight.keys)}
    return found


def _export(
    policy: VisionLanguagePolicy, params: Params, dtype: str | None
) -> dict[str, np.ndarray]:
    """Published key -> tensor, for every weight; adapters are merged into theirs."""
    found = _exporting(policy, params, dtype)
    return {key: exporting.read(layer) for key, (exporting, layer) in found.items()}


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def _merge(weight: Any, a: Any, b: Any, lora: Lora) -> Any:
    """`merge`, of a stack one layer after the other: float32 of all would be large."""
    if a.ndim == 2:
        return merge(weight, a, b, lora)
    return jax.lax.map(lambda parts: merge(*parts, lora), (weight, a, b))


def _read_part(
    weight: Weight,
    tensors: Mapping[str, Stored],
    dtype: np.dtype,
    index: tuple[slice, ...],
) -> np.ndarray:
    """What `index` takes of a leaf of `params`; beside it are held the tensors being read only."""
    layers, index = (index[0], index[1:]) if weight.stacked else (slice(None), index)
    keys = weight.keys[layers]
    shape = tuple(len(range(*i.indices(n))) for i, n in zip(index, weight.shape, strict=True))
    part = _aligned_empty((len(keys), *shape), dtype)

    def fill(layer: np.ndarray, key: str) -> None:
        _read_into(layer, tensors[key], weight, index)
        # While it is in the processor's cache: this takes a tenth of reading it.
        check_finite(layer, tensors[key])

    if len(keys) == 1:
        fill(part[0], keys[0])
        return part if weight.stacked else part[0]
    # Reading and copying leave Python, so that threads share the work.
    with ThreadPoolExecutor(min(READERS, len(keys))) as readers:
        for _ in readers.map(fill, part, keys):
            pass
    return part if weight.stacked else part[0]


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array at a multiple of 64 bytes, which a CPU device takes without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _read_into(out: np.ndarray, stored: Stored, weight: Weight, index: tuple[slice, ...]) -> None:
    """What `index` takes of one tensor of a file, in the shape and dtype of `out`."""
    if out.shape == weight.shape and DTYPES.get(stored.dtype) == out.dtype:
        stored.read_to(out)
        return
    if stored.shape == weight.shape:
        tensor = stored.read(index)
    else:  # a convolution, which is a matrix after a reshape only
        tensor = stored.read().reshape(weight.shape)[index]
    tensor = tensor.astype(out.dtype, copy=False)
    # As bytes: numpy copies bfloat16, which is not its own, number by number.
    number = np.dtype(f"u{out.dtype.itemsize}")
    out.view(number)[...] = tensor.view(number)


# ---- files


def check_tensors(
    folder: Path,
    policy: VisionLanguagePolicy,
    tensors: dict[str, Stored],
    needed: Mapping[str, tuple[int, ...]],
) -> None:
    """Every weight of `needed` is there once with its shape, and nothing else is; a tied head that
    is stored twice is taken out of `tensors`.

    Args:
      needed: published key -> shape in the files.

    Raises:
      UserError: else.
    """
    table = family_of(policy.config).keys(policy.config)
    head, embedding = map(table.publish, ("lm_head.weight", "language_model.embed_tokens.weight"))
    if policy.config.tie_word_embeddings and {head, embedding} <= tensors.keys():
        # Some writers store the tied weight twice. Equal, it says nothing new.
        first, second = (tensors[key].read() for key in (head, embedding))
        if not np.array_equal(first, second):
            raise UserError(
                f"{folder} has tie_word_embeddings true in config.json but a {head} that is not "
                "the embedding; unexpected: "
                f"{head}; set tie_word_embeddings to false to use it, or remove it."
            )
        del tensors[head]
    shapes = {key: stored.shape for key, stored in tensors.items()}
    problems = {
        "missing": [f"{key} {needed[key]}" for key in needed if key not in shapes],
        "unexpected": [f"{printable(key)} {shapes[key]}" for key in shapes if key not in needed],
        "of another shape": [
            f"{key} {shapes[key]}, not {needed[key]}"
            for key in needed
            if key in shapes and shapes[key] != needed[key]
        ],
    }
    found = [
        f"{len(names)} {problem}: {'; '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if found:
        raise UserError(
            f"The weights in {folder} do not fit its config.json ({', '.join(found)}); use the "
            "config.json and weights of one model."
        )
