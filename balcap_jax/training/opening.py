"""The policy that a run starts from, read onto the mesh."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from balcap_jax.config.sections import DataConfig, ModelConfig
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.hf.folders import commit_of, load_to_train, policy_folder
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel import processes
from balcap_jax.runs.progress import waiting


class Opened(NamedTuple):
    """A policy with its weights.

    Attributes:
      model: the settings, with the commit of a name on the hub.
      folder: that processor and weights were read from.
      params: float32, sharded over the mesh.
    """

    model: ModelConfig
    folder: Path
    processor: Processor
    policy: VisionLanguagePolicy
    params: dict


def open_policy(model: ModelConfig, data: DataConfig, mesh: Mesh) -> Opened:
    """The policy that `model` names.

    Raises:
      UserError: its folder cannot be read.
    """
    folder = policy_folder(model.path, revision=model.revision)
    if commit := commit_of(model.path, folder):  # what a resumed run shall start from, too
        model = dataclasses.replace(model, revision=commit)
    processor = open_processor(folder, data)
    with waiting("reading the weights", shown=processes.is_process_zero()):
        policy, params = load_to_train(
            folder,
            mesh=mesh,
            dtype=model.dtype,
            attention=model.attention,
            remat=model.remat,
        )
    return Opened(model, folder, processor, policy, params)


def open_processor(folder: Path, data: DataConfig) -> Processor:
    """The processor of a folder, with the sizes of images that the settings ask for."""
    return Processor.load(folder).limited(min_pixels=data.min_pixels, max_pixels=data.max_pixels)
