"""Without an accelerator the cores are devices, and a run shares its prompts out to them."""

import math
from collections.abc import Iterator, Sequence

import jax

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.judge import POLICY
from balcap_jax.config.sections import MeshConfig
from balcap_jax.errors import UserError
from balcap_jax.models.hf.adapter_config import base_folder
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.parallel.processes import is_alone
from balcap_jax.runs.cores import even_shares
from balcap_jax.runs.jax_setup import computes_on_cpu, cores_are_devices, open_cores

# Bytes of the weights of policy and judges. A small one computes in many small pieces, for which
# threads that share a device wait longer than they work; of a large one each device has a copy.
_MOST = 64 * 10**6


def devices_of(config: TrainConfig | SFTConfig, *, parts: int) -> Sequence[jax.Device]:
    """The devices of a run, which JAX opens here if nobody has.

    Cores become devices for a run on rewards, with small models, in one process, that leaves the
    mesh to us (`mesh.data = 1` asks for one device). Supervised training samples nothing and gains
    nothing by it. A later run in the same process takes as many of them as it would have made.

    Args:
      parts: prompts of a micro-batch, of which each core gets as many as every other.
    """
    mesh, shared = config.mesh, _shares_cores(config)
    if shared:
        open_cores(parts)
    devices = jax.devices()
    if not cores_are_devices():
        return devices
    if shared:
        return devices[: even_shares(parts, len(devices))]
    sizes = mesh.data, mesh.fsdp, mesh.tensor
    return devices if -1 in (mesh.fsdp, mesh.tensor) else devices[: max(1, math.prod(sizes))]


def _shares_cores(config: TrainConfig | SFTConfig) -> bool:
    wanted = isinstance(config, TrainConfig) and _is_left_to_us(config.mesh)
    if not (wanted and is_alone() and computes_on_cpu()):
        return False
    try:
        return sum(_weights(config)) <= _MOST
    except UserError:  # said where the folder is opened, by the setting that names it
        return False


def _is_left_to_us(mesh: MeshConfig) -> bool:
    return (mesh.data, mesh.fsdp, mesh.tensor) == (-1, 1, 1)


def _weights(config: TrainConfig) -> Iterator[int]:
    """Bytes of the files of weights that the run reads: of the policy and of judges beside it."""
    folders = [policy_folder(config.model.path, revision=config.model.revision)]
    for judge in (config.judge, config.audit):
        names = judge.device_models.values()
        folders += [policy_folder(name) for name in names if name != POLICY]
    for folder in folders:
        yield from (file.stat().st_size for file in base_folder(folder).glob("*.safetensors"))
