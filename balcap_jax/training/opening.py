"""The policy that a run starts from, read onto the mesh."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.sections import DataConfig, ModelConfig
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.hf.folders import commit_of, policy_folder
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.parallel import processes
from balcap_jax.runs.progress import waiting
from balcap_jax.training.trained import load_policy


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
    folder = policy_folder(model.path, revision=model.revision)
    if commit := commit_of(model.path, folder):  # what a resumed run shall start from, too
        model = dataclasses.replace(model, revision=commit)
    processor = open_processor(folder, config.data)
    with waiting("reading the weights", shown=processes.is_process_zero()):
        policy, params = load_policy(config, folder, mesh)
    return Opened(model, folder, processor, policy, params)


def open_processor(folder: Path, data: DataConfig) -> Processor:
    """The processor of a folder, with the sizes of images that the settings ask for."""
    return Processor.load(folder).limited(min_pixels=data.min_pixels, max_pixels=data.max_pixels)
