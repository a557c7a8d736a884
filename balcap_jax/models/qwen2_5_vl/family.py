"""Qwen2.5-VL as a family of policies."""

from balcap_jax.models.family import Family
from balcap_jax.models.hf.keys import KeyTable
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.models.qwen2_5_vl.policy import Qwen2_5_VL


def key_table(config: Qwen2_5_VLConfig) -> KeyTable:
    """Names of weights as published, and as transformers v5 writes them."""
    vision = config.vision
    return KeyTable(
        published=(("language_model.", "model."),),
        modules=(("language_model.", "model.language_model."), ("visual.", "model.visual.")),
        other_layouts=(
            ("model.visual.", "visual."),
            ("model.language_model.", "model."),
        ),
        convolution="visual.patch_embed.proj",
        # torch.nn.Conv3d keeps [out, channels, time, row, column]
        patch=(
            vision.in_channels,
            vision.temporal_patch_size,
            vision.patch_size,
            vision.patch_size,
        ),
    )


FAMILY = Family(config=Qwen2_5_VLConfig, policy=Qwen2_5_VL, keys=key_table)
