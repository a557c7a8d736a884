"""Without an accelerator the cores are devices, and a run shares its prompts out to them."""

from balcap_jax.config.commands import TrainConfig
from balcap_jax.models.hf.adapter_config import base_folder
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.parallel.processes import is_alone
from balcap_jax.runs.jax_setup import open_cores

# Bytes of a policy's files. A small one computes in many small pieces, for which threads that share
# a device wait longer than they work; of a large one each device would hold a copy.
_MOST = 64 * 10**6


def share_out_cores(config: TrainConfig) -> None:
    """Before JAX opens its devices, asks for one per core that gets as many prompts of a
    micro-batch as every other.

    For a small policy of a run in one process that leaves the mesh to us (`mesh.data = 1` asks for
    one device).
    """
    mesh = config.mesh
    if not is_alone() or (mesh.data, mesh.fsdp, mesh.tensor) != (-1, 1, 1):
        return
    folder = base_folder(policy_folder(config.model.path, revision=config.model.revision))
    if sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= _MOST:
        open_cores(config.prompts_per_step // config.rl.micro_batches)
