"""`balcap assemble`: a LLaVA folder from a vision tower, a decoder and a projector."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp

from balcap_jax.config.commands import NEW_PROJECTOR, AssembleConfig
from balcap_jax.data.prompts.assembled_files import tokenizer_with, write_processor_files
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.families import make_policy
from balcap_jax.models.hf.weights import save_pretrained
from balcap_jax.models.llava.assembly import (
    Features,
    assembled_config,
    assembled_params,
    stored_dtype,
)
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.llava.parts import read_decoder, read_projector, read_tower


class Assembled(NamedTuple):
    """What was written.

    Attributes:
      tower: its model_type.
      dtype: of the weights.
      added: the placeholder's row is new, the mean of the others.
    """

    config: LlavaConfig
    tower: str
    dtype: str
    added: bool


def assemble(config: AssembleConfig) -> Assembled:
    """Writes `config.out`, a folder that `--model.path`, transformers and vLLM load.

    Raises:
      UserError: `out` holds something, a part cannot be read or is of another kind, the parts do
        not fit each other, or the disk refuses.
    """
    out = config.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} already exists and is not an empty folder, and nothing is overwritten; choose "
            "another OUT."
        )
    tower, decoder = read_tower(config.tower), read_decoder(config.decoder)
    new = config.projector == NEW_PROJECTOR
    projector = None if new else read_projector(config.projector)
    tokenizer, tokens = tokenizer_with(decoder, config.image_token)
    features = Features(
        config.vision_feature_layer, config.vision_feature_select_strategy, config.image_size
    )
    sizes = assembled_config(tower, decoder, projector, tokens=tokens, features=features)
    policy = make_policy(sizes)
    dtype = config.dtype or stored_dtype(decoder)
    params = assembled_params(
        policy, tower, decoder, projector, tokens=tokens, seed=config.seed, dtype=dtype
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        write_processor_files(
            files, tower, decoder, tokenizer, sizes, placeholder=config.image_token
        )
        Processor.load(files)  # before anything is written: a template that makes no prompt
        save_pretrained(out, policy, params, dtype=jnp.dtype(dtype).name, source=files)
    return Assembled(sizes, tower.kind.config.model_type, dtype, added=tokens.image >= tokens.words)


def described(made: Assembled) -> str:
    """What was written, in two sentences for the terminal."""
    config = made.config
    parts = (
        f"{config.vision.num_hidden_layers} layers of {made.tower} at {config.vision.image_size} "
        f"pixels, {config.image_tokens} tokens per image, before {config.text.num_hidden_layers} "
        f"layers of {config.text_model_type}, {made.dtype}."
    )
    if not made.added:
        return parts
    return (
        f"{parts} The placeholder of images is token {config.image_token_id}, new to the "
        "tokenizer; its row of the embedding is the mean of the others."
    )
