"""A policy from a folder or the hub, answers to the arrays of a processor, and back to a folder.

The functions of `import balcap_jax`; see README for an example.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from balcap_jax.config.sections import LEAST_TEMPERATURE
from balcap_jax.errors import UserError, speaks_python
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.hf import weights as hf_weights
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.inputs import split_prompts
from balcap_jax.models.hf.weights import save_pretrained
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.rollout.sampling import caption_keys, encode_images, sample

__all__ = ["generate", "load_pretrained", "save_pretrained"]


@speaks_python
def load_pretrained(
    folder: str | Path,
    dtype: str = "bfloat16",
    mesh: Mesh | None = None,
    *,
    revision: str | None = None,
) -> tuple[VisionLanguagePolicy, Params]:
    """The policy and its weights from config.json and safetensors.

    Neither tokenizer nor processor files are read.

    Args:
      folder: a local folder, a run's folder, "base", or "owner/name" of a repository on the hub,
        which is fetched where the cache lacks it.
      dtype: of the weights and of the computation, "bfloat16" or "float32".
      mesh: from `balcap_jax.parallel.sharding.make_mesh`: each device gets its part of every
        weight.
      revision: branch, tag or commit of a repository on the hub.

    Raises:
      UserError: folder, repository, config.json or weights are missing, damaged or of another
        model.
    """
    if dtype not in ("bfloat16", "float32"):
        raise UserError(f"dtype={dtype!r} is not supported; choose 'bfloat16' or 'float32'.")
    folder = policy_folder(folder, revision=revision)
    return hf_weights.load_pretrained(folder, dtype=dtype, mesh=mesh)


@speaks_python
def generate(
    policy: VisionLanguagePolicy,
    params: Params,
    inputs: Mapping[str, Any],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    stop_tokens: tuple[int, ...] | None = None,
    *,
    seed: int = 0,
) -> Int[np.ndarray, "b new"]:
    """New tokens of each prompt, the stop token included; the pad token after the end.

    Image placeholders are never generated.

    Args:
      inputs: as `policy.logits` takes them; prompts may be padded on any side.
      max_new_tokens: the width of the result.
      temperature: 0 takes the likeliest token.
      stop_tokens: what ends an answer; None: the folder's, (): nothing.
      seed: of the draws where `temperature` is above 0.

    Raises:
      UserError: inputs that do not fit the policy; see `padded_prompts`.
    """
    if max_new_tokens < 1 or not (temperature == 0 or LEAST_TEMPERATURE <= temperature < math.inf):
        raise UserError(
            f"max_new_tokens={max_new_tokens} must be at least 1 and temperature={temperature} "
            f"must be 0 or at least {LEAST_TEMPERATURE:g}; set them so."
        )
    config = policy.config
    if max_new_tokens >= (positions := config.text.max_position_embeddings):
        raise UserError(
            f"max_new_tokens={max_new_tokens} must be below the policy's "
            f"max_position_embeddings={positions}, of which the prompt needs a part; set it to "
            "less."
        )
    prompts = split_prompts(policy.layout, inputs)
    keys = caption_keys(jax.random.key(seed), np.arange(len(prompts.last_token)), group_size=1)
    rollout = sample(
        policy,
        params,
        prompts,
        encode_images(policy, params, prompts.images),
        keys,
        max_new_tokens=max_new_tokens,
        temperature=float(temperature),
        stop_tokens=config.stop_tokens if stop_tokens is None else tuple(stop_tokens),
        pad_token_id=config.pad_token_id,
        banned_tokens=config.banned_tokens,
    )
    return np.asarray(rollout.tokens[:, 0])
