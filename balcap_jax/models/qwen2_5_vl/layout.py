"""Images and positions of Qwen2.5-VL: images of any size, windows, M-RoPE."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from balcap_jax.errors import UserError
from balcap_jax.models.geometry import (
    Grid,
    patch_positions,
    token_positions,
    window_ids,
    window_patches,
)
from balcap_jax.models.inputs import CutImage
from balcap_jax.models.layout import Layout
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig


class QwenLayout(Layout):
    """Images of any size, one feature per merge x merge patches, M-RoPE."""

    config: Qwen2_5_VLConfig

    @property
    def granule(self) -> int:
        return self.config.vision.spatial_merge_size**2

    @property
    def patch_step(self) -> int:
        return 64 * self.granule

    def check_image_processor(self, processor: Any) -> None:
        vision = self.config.vision
        for theirs, ours, value in (
            ("patch_size", "patch_size", vision.patch_size),
            ("merge_size", "spatial_merge_size", vision.spatial_merge_size),
            ("temporal_patch_size", "temporal_patch_size", vision.temporal_patch_size),
        ):
            found = getattr(processor, theirs, None)
            if found != value:
                raise UserError(
                    f"{theirs} is {found} in preprocessor_config.json but {ours} is {value} in "
                    "config.json; use the files of one model."
                )

    def step_for(self, wish: int) -> int:
        if wish % self.granule:
            raise UserError(
                f"patch_step={wish} must be a multiple of {self.granule}, the patches of one image "
                "token; set it so."
            )
        return wish

    @property
    def patch_dim(self) -> int:
        return self.config.vision.patch_dim

    @property
    def channels(self) -> int:
        return self.config.vision.in_channels

    @property
    def frames(self) -> int:
        return self.config.vision.temporal_patch_size

    def features(self, grid: Grid) -> int:
        return grid[0] * grid[1] // self.granule

    def windows(self, grid: Grid) -> int:
        side = self.config.vision.spatial_merge_size * self.config.vision.window
        return -(-grid[0] // side) * -(-grid[1] // side)

    def cut(self, arrays: Mapping[str, Any]) -> list[CutImage]:
        pixels = np.asarray(arrays["pixel_values"], np.float32)
        grids = np.asarray(arrays["image_grid_thw"])
        sizes = grids.prod(axis=1)
        if pixels.shape != (sizes.sum(), self.patch_dim):
            raise UserError(
                f"pixel_values {pixels.shape} must be {(int(sizes.sum()), self.patch_dim)} by "
                "image_grid_thw and config.json; give both as the image processor of this model "
                "returns them."
            )
        parts = np.split(pixels, np.cumsum(sizes)[:-1])
        return [
            CutImage(part, (int(rows), int(columns)))
            for part, (_, rows, columns) in zip(parts, grids, strict=True)
        ]

    def positions(
        self, tokens: Int[np.ndarray, " t"], grids: Sequence[Grid]
    ) -> Int[np.ndarray, "axes t"]:
        return token_positions(
            tokens,
            grids,
            image_token_id=self.config.image_token_id,
            merge=self.config.vision.spatial_merge_size,
        )

    def patches(self, image: CutImage) -> tuple[np.ndarray, np.ndarray]:
        vision, merge = self.config.vision, self.config.vision.spatial_merge_size
        ids = window_ids(image.grid, merge=merge, window=vision.window)
        windows = window_patches(ids, slots=(merge * vision.window) ** 2)
        return patch_positions(image.grid, merge=merge), windows
