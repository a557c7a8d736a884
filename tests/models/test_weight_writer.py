"""Weights leave for a file, and come from files, one tensor at a time."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors import safe_open
from safetensors.numpy import load_file

from balcap_jax.models.adapters import adapted_paths, adapter_shapes, init_adapters
from balcap_jax.models.decoder.lora import Lora
from balcap_jax.models.families import make_policy
from balcap_jax.models.hf import weights
from balcap_jax.models.hf.weight_writer import Described, write_tensors
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.selection import overlaid
from balcap_jax.plan.workloads.random_folder import write_random_folder


def test_a_file_is_one_that_safetensors_reads(tmp_path):
    """All dtypes, an empty tensor and a number; wide numbers lie at multiples of their size."""
    rng = np.random.default_rng(0)
    tensors = {
        "narrow": jnp.asarray(rng.normal(size=(3, 1)), jnp.bfloat16),
        "half": rng.normal(size=5).astype(np.float16),
        "whole": rng.normal(size=(2, 3)).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
        "number": np.float64(1.5),
    }
    tensors = {key: np.asarray(tensor) for key, tensor in tensors.items()}
    described = {key: Described(tensor.shape, tensor.dtype) for key, tensor in tensors.items()}
    write_tensors(tmp_path / "x.safetensors", described, tensors.__getitem__)
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype
        np.testing.assert_array_equal(read[key], tensor)
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    size = (tmp_path / "x.safetensors").stat().st_size
    assert (size - sum(tensor.nbytes for tensor in tensors.values())) % 8 == 0


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A folder of many layers in three files and more, and the bytes of its largest tensor."""
    config = tiny.config(
        text={"num_hidden_layers": 40, "intermediate_size": 1024},
        vision={"depth": 2, "fullatt_block_indexes": (1,)},
    )
    folder = tmp_path_factory.mktemp("deep") / "policy"
    total = write_random_folder(folder, config, shard_bytes=1_200_000)
    assert len(list(folder.glob("*.safetensors"))) >= 3
    stored = weights.stored_shapes(make_policy(config))
    return folder, total, max(2 * int(np.prod(shape)) for shape in stored.values())


class Device:
    """Stands for the memory of an accelerator: what is put there leaves the host.

    Attributes:
      held: bytes put there.
    """

    def __init__(self, monkeypatch):
        self.held = 0
        monkeypatch.setattr(weights.jax, "device_put", self.put)
        monkeypatch.setattr(weights.jax, "block_until_ready", lambda x: x)

    def put(self, array):
        self.held += array.nbytes
        return jax.ShapeDtypeStruct(array.shape, array.dtype)


def peak_of(function):
    """Most bytes that numpy held at once in a call, beyond what there was."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_reading_holds_one_stack_beside_what_is_on_the_device(deep, monkeypatch):
    """The layers of one kind of weight and the tensors that are being read, whatever the number of
    files and of kinds.
    """
    folder, total, largest = deep
    load_pretrained(folder, dtype="bfloat16")  # what is cached once does not count
    device = Device(monkeypatch)
    stack = 40 * largest
    peak = peak_of(lambda: load_pretrained(folder, dtype="bfloat16"))
    assert device.held == total
    # Another dtype than the file's is read through a tensor of the file, one for each reader.
    assert peak < stack + weights.READERS * largest + 600_000
    assert peak < 0.55 * total  # three stacks of that size are most of this policy


def test_writing_holds_one_tensor_beside_what_is_on_the_device(deep, tmp_path):
    """With adapters merged, too; without any of the arrays as a whole on the host."""
    folder, total, largest = deep
    policy, params = load_pretrained(folder, dtype="bfloat16")
    policy = dataclasses.replace(policy, lora=Lora(alpha=4.0))
    shapes = adapter_shapes(policy, adapted_paths(policy, ()), rank=2)
    params = overlaid(params, init_adapters(shapes, jax.random.key(0)))
    save_pretrained(tmp_path / "first", policy, params)
    peak = peak_of(lambda: save_pretrained(tmp_path / "out", policy, params))
    # A tensor as it is, in float32 with its adapter, and rounded.
    assert peak < 8 * largest + 1_000_000
    assert peak < 0.5 * total
    cached = [leaf for leaf in jax.tree.leaves(params) if leaf._npy_value is not None]
    assert not cached
    tiny.assert_equal_trees(
        load_pretrained(tmp_path / "out", dtype="bfloat16")[1],
        load_pretrained(folder, dtype="bfloat16")[1],
    )
