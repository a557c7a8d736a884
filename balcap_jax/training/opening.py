"""The policy that a run starts from, read onto the mesh."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.sections import DataConfig, ModelConfig
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.hf.folders import commit_of, policy_folder
from balcap_jax.models.hf.hub import is_hub_name
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel import processes
from balcap_jax.runs.folder import disk_errors
from balcap_jax.runs.progress import waiting
from balcap_jax.storage.local import fetched, send_folder
from balcap_jax.storage.paths import is_remote
from balcap_jax.training.trained import load_policy

HUB = ".hub"  # beside the runs of a bucket: policies of the hub, for all hosts


class Opened(NamedTuple):
    """A policy with its weights.

    Attributes:
      model: the settings, with the commit of a name on the hub.
      folder: that processor and weights were read from.
      params: sharded over the mesh; what trains is float32.
    """

    model: ModelConfig
    folder: Path
    processor: Processor
    policy: VisionLanguagePolicy
    params: dict


def open_policy(config: TrainConfig | SFTConfig, mesh: Mesh) -> Opened:
    """The policy that a run with these settings starts from, adapters among its weights.

    Raises:
      UserError: its folder cannot be read.
    """
    model = config.model
    folder = _folder_on_all(model, config.out)
    if commit := commit_of(model.path, folder):  # what a resumed run shall start from, too
        model = dataclasses.replace(model, revision=commit)
    processor = open_processor(folder, config.data)
    with waiting("reading the weights", shown=processes.is_process_zero()):
        policy, params = load_policy(config, folder, mesh)
    return Opened(model, folder, processor, policy, params)


def _folder_on_all(model: ModelConfig, out: Path) -> Path:
    """The policy's folder on each host. Of a run in a bucket process 0 alone asks the hub, and the
    others take from the bucket what it found.

    Raises:
      UserError: see `policy_folder`; on all processes.
    """
    path = model.path
    here = not is_hub_name(path) or Path(path).is_dir()
    if here or processes.is_alone() or not is_remote(out):
        return policy_folder(path, revision=model.revision)
    found: list[Path] = []
    told: list[str] = []

    def fetch() -> None:
        folder = policy_folder(path, revision=model.revision)
        place = out / HUB / path.replace("/", "--") / folder.name  # its commit
        with disk_errors(place):
            if not (place / "config.json").exists():
                send_folder(folder, place, last="config.json")
        found.append(folder)
        told.append(str(place))

    processes.on_process_zero(fetch)
    [place] = processes.gather_list(told)
    return found[0] if found else fetched(place)


def open_processor(folder: Path, data: DataConfig) -> Processor:
    """The processor of a folder, with the sizes of images that the settings ask for."""
    return Processor.load(folder).limited(min_pixels=data.min_pixels, max_pixels=data.max_pixels)
