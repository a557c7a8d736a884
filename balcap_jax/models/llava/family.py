"""LLaVA-1.5 as a family of policies."""

from balcap_jax.models.family import Family
from balcap_jax.models.hf.keys import KeyTable
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.llava.policy import Llava

_TOWER = "vision_tower.vision_model."


def key_table(config: LlavaConfig) -> KeyTable:
    """Names of weights as published, and as transformers v5 writes them."""
    return KeyTable(
        published=(
            ("language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("vision_tower.", _TOWER),
        ),
        modules=(
            ("language_model.", "model.language_model."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ),
        other_layouts=(
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.vision_model.", _TOWER),
            ("model.vision_tower.", _TOWER),
            (_TOWER, _TOWER),
            ("vision_tower.", _TOWER),
            ("model.multi_modal_projector.", "multi_modal_projector."),
        ),
        convolution="vision_tower.embeddings.patch_embedding",
        # torch.nn.Conv2d keeps [out, channels, row, column]
        patch=(config.vision.num_channels, config.vision.patch_size, config.vision.patch_size),
    )


FAMILY = Family(config=LlavaConfig, policy=Llava, keys=key_table)
