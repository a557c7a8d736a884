"""Batches of shapes alone, to trace a program without computing it."""

import jax

from balcap_jax.models.inputs import ImagePatches, Prompts
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rl.update import Batch

MESH = make_mesh(devices=jax.devices()[:1])
SLOTS = 64  # patches of a window of Qwen2.5-VL


def shape(*sizes: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def abstract_batch(config, prompts: int, prefix: int, group: int, length: int, patches: int):
    """A batch of these sizes; patches of images where they are encoded in the update, else 0."""
    patch_dim = config.vision.patch_dim
    features = prefix // 2
    return Batch(
        prompts=Prompts(
            tokens=shape(prompts, prefix, dtype="int32"),
            mask=shape(prompts, prefix, dtype="bool"),
            positions=shape(prompts, config.text.position_axes, prefix, dtype="int32"),
            last_token=shape(prompts, dtype="int32"),
            last_position=shape(prompts, dtype="int32"),
            images=ImagePatches(
                pixels=shape(prompts, patches, patch_dim),
                positions=shape(prompts, patches, 2, dtype="int32"),
                image_ids=shape(prompts, patches, dtype="int32"),
                windows=shape(prompts, -(-patches // SLOTS), SLOTS, dtype="int32"),
            ),
        ),
        tokens=shape(prompts, group, length, dtype="int32"),
        mask=shape(prompts, group, length, dtype="bool"),
        old_logprobs=shape(prompts, group, length),
        advantages=shape(prompts, group),
        valid=shape(prompts, group, dtype="bool"),
        features=None if patches else shape(prompts, features, config.text.hidden_size),
    )
