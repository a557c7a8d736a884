"""LLaVA-1.5 as a family of policies."""

from balcap_jax.models.family import Family
from balcap_jax.models.hf.keys import KeyTable
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.llava.policy import Llava
from balcap_jax.models.llava.towers import tower_of


def key_table(config: LlavaConfig) -> KeyTable:
    """Names of weights as published, and as transformers v5 writes them."""
    tower = tower_of(config.vision)
    published = f"vision_tower.{tower.published}"
    return KeyTable(
        published=(
            ("language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("vision_tower.", published),
        ),
        modules=(
            ("language_model.", "model.language_model."),
            ("vision_tower.", "model.vision_tower."),
            ("multi_modal_projector.", "model.multi_modal_projector."),
        ),
        other_layouts=(
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            (f"model.{published}", published),
            ("model.vision_tower.", published),
            (published, published),
            ("vision_tower.", published),
            ("model.multi_modal_projector.", "multi_modal_projector."),
        ),
        convolution=f"vision_tower.{tower.convolution}",
        # torch.nn.Conv2d keeps [out, channels, row, column]
        patch=(config.vision.num_channels, config.vision.patch_size, config.vision.patch_size),
        inner=tower.inner,
    )


FAMILY = Family(config=LlavaConfig, policy=Llava, keys=key_table)
