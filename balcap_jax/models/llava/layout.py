"""Images and positions of LLaVA-1.5: images of one size, one position per token."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from balcap_jax.errors import UserError
from balcap_jax.models.geometry import Grid, patch_positions
from balcap_jax.models.inputs import CutImage
from balcap_jax.models.layout import Layout
from balcap_jax.models.llava.config import LlavaConfig


class LlavaLayout(Layout):
    """Images of one size, each the same number of features, one position per token."""

    config: LlavaConfig

    @property
    def granule(self) -> int:
        return self.config.vision.patches

    @property
    def patch_dim(self) -> int:
        return self.config.vision.patch_dim

    @property
    def channels(self) -> int:
        return self.config.vision.num_channels

    def features(self, grid: Grid) -> int:
        return self.config.image_tokens

    def cut(self, arrays: Mapping[str, Any]) -> list[CutImage]:
        vision = self.config.vision
        pixels = np.asarray(arrays["pixel_values"], np.float32)
        size, side, patch = vision.image_size, vision.side, vision.patch_size
        if pixels.shape[1:] != (vision.num_channels, size, size):
            raise UserError(
                f"Images of shape {pixels.shape[1:]} do not fit the vision tower, which takes "
                f"{(vision.num_channels, size, size)}; use the model's preprocessor_config.json."
            )
        parts = pixels.reshape(-1, vision.num_channels, side, patch, side, patch)
        parts = parts.transpose(0, 2, 4, 1, 3, 5).reshape(-1, vision.patches, self.patch_dim)
        return [CutImage(part, (side, side)) for part in parts]

    def positions(
        self, tokens: Int[np.ndarray, " t"], grids: Sequence[Grid]
    ) -> Int[np.ndarray, "axes t"]:
        return np.arange(len(tokens), dtype=np.int32)[None]

    def patches(self, image: CutImage) -> tuple[np.ndarray, np.ndarray]:
        return patch_positions(image.grid, merge=1), np.zeros((0, 0), np.int32)
