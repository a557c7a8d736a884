"""A Hugging Face folder of random weights in any shape, written one tensor at a time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.families import FAMILIES, make_policy
from balcap_jax.models.hf.weight_writer import Described, write_tensors
from balcap_jax.models.hf.weights import INDEX, stored_shapes
from balcap_jax.plan.workloads.published import SHAPES

SHARD_BYTES = 4_000_000_000
STD = 0.02


def write_random_folder(
    folder: str | Path, config: PolicyConfig, *, shard_bytes: int = SHARD_BYTES, seed: int = 0
) -> int:
    """Writes bfloat16 weights of these sizes as published folders hold them: shards with an index.

    No more than one tensor is in memory at a time, so the folder may be larger than it.

    Returns:
      The bytes of the parameters.

    Raises:
      UserError: `folder` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} already exists; give a folder that can be made anew.")
    folder.mkdir(parents=True)
    shards = list(_shards(stored_shapes(make_policy(config)), shard_bytes))
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    generator = np.random.default_rng(seed)
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, generator)
    where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    total = sum(2 * int(np.prod(shape)) for shard in shards for shape in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config.to_hf() | {"dtype": "bfloat16"}))
    (folder / "generation_config.json").write_text(json.dumps(config.to_hf_generation()))
    return total


def config_of(shape: str) -> PolicyConfig:
    """The sizes of one of `published.SHAPES`."""
    published = SHAPES[shape]
    return FAMILIES[published["model_type"]].config.from_hf(published)


def _shards(
    shapes: dict[str, tuple[int, ...]], shard_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """`shapes` in their order, cut so that no part is above `shard_bytes` but for one tensor."""
    part: dict[str, tuple[int, ...]] = {}
    size = 0
    for key, shape in shapes.items():
        more = 2 * int(np.prod(shape))
        if part and size + more > shard_bytes:
            yield part
            part, size = {}, 0
        part[key] = shape
        size += more
    yield part


def _write_shard(
    path: Path, shapes: dict[str, Sequence[int]], generator: np.random.Generator
) -> None:
    dtype = np.dtype(ml_dtypes.bfloat16)

    def draw(key: str) -> np.ndarray:
        tensor = generator.standard_normal(shapes[key], np.float32) * np.float32(STD)
        return tensor.astype(dtype)

    described = {key: Described(tuple(shape), dtype) for key, shape in shapes.items()}
    write_tensors(path, described, draw)
