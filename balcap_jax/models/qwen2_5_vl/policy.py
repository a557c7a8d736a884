"""Qwen2.5-VL (arXiv 2502.13923): its vision tower, written once for all sizes."""

from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from balcap_jax.models.decoder.layers import Definition, Params
from balcap_jax.models.decoder.remat import rematerialise
from balcap_jax.models.inputs import ImagePatches
from balcap_jax.models.pixels import patch_values
from balcap_jax.models.policy import DECODER, VisionLanguagePolicy
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.models.qwen2_5_vl.layout import QwenLayout
from balcap_jax.models.qwen2_5_vl.vision import PatchEmbed, PatchMerger, VisionBlock, patch_angles
from balcap_jax.models.qwen2_5_vl.windows import attend_windows, index_windows
from balcap_jax.parallel.sharding import constrain_images


@dataclass(frozen=True)
class Qwen2_5_VL(VisionLanguagePolicy):  # noqa: N801 - the name in Hugging Face
    """Patches of any number of images to features, and the decoder with M-RoPE."""

    layout_type = QwenLayout
    vision_paths = ("visual",)
    parts = MappingProxyType(
        {
            "projector": ("visual/merger",),
            "tower": ("visual/patch_embed", "visual/blocks"),
            "decoder": DECODER,
        }
    )

    config: Qwen2_5_VLConfig

    @cached_property
    def vision_definitions(self) -> dict[str, Definition]:
        vision, width, options = (
            self.config.vision,
            self.config.text.hidden_size,
            self.module_options,
        )
        return {
            "visual.patch_embed": Definition(lambda r: PatchEmbed(vision, **options, rngs=r)),
            "visual.blocks": Definition(lambda r: VisionBlock(vision, **options, rngs=r)),
            "visual.merger": Definition(lambda r: PatchMerger(vision, width, **options, rngs=r)),
        }

    @property
    def vision_stacks(self) -> dict[str, int]:
        return {"visual.blocks": self.config.vision.depth}

    def image_features(self, params: Params, images: ImagePatches) -> Float[Array, "b m d"]:
        """Features of all images [b, s / merge**2, d]."""
        visual, vision = params["visual"], self.config.vision
        angles = patch_angles(images.positions, head_dim=vision.head_dim, theta=vision.rope_theta)
        image_ids = jnp.asarray(images.image_ids)
        index = index_windows(images.windows, images.pixels.shape[1])
        full = jnp.asarray([i in vision.fullatt_block_indexes for i in range(vision.depth)])
        to_image = partial(self.attends.segments, segments=image_ids)
        to_window = partial(attend_windows, index=index, attend_rows=self.attends.rows)

        def block(x, layer):
            weights, is_full = layer
            attend = partial(jax.lax.cond, is_full, to_image, to_window)
            x = self.definitions["visual.blocks"](weights)(x, angles, attend)
            return constrain_images(x), None

        pixels = patch_values(images, channels=vision.in_channels, patch_dim=vision.patch_dim)
        x = self.definitions["visual.patch_embed"](visual["patch_embed"])(pixels)
        x, _ = jax.lax.scan(rematerialise(self.remat, block), x, (visual["blocks"], full))
        return self.definitions["visual.merger"](visual["merger"])(x)
