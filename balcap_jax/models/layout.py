"""How a family lays out images and tokens: from what Hugging Face's processors return to the arrays
a policy reads. Host side, numpy only.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.geometry import Grid
from balcap_jax.models.inputs import CutImage, ImagePatches, Row
from balcap_jax.models.padding import round_up


class Layout(ABC):
    """What a family says about images and positions; the same for processor and public API."""

    def __init__(self, config: PolicyConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def granule(self) -> int:
        """Patches are padded to multiples of this many."""

    @property
    def patch_step(self) -> int:
        """A bucket of patches where the caller has no wish: few shapes, little padding."""
        return self.granule

    def step_for(self, wish: int) -> int:
        """The step of `bucket` for patches where the caller wishes for `wish`."""
        return round_up(wish, self.granule)

    @property
    @abstractmethod
    def patch_dim(self) -> int:
        """Numbers in one flattened patch."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of an image."""

    @property
    def frames(self) -> int:
        """How often a flattened patch of a still image repeats it."""
        return 1

    @abstractmethod
    def features(self, grid: Grid) -> int:
        """Features, and so placeholders, of an image."""

    def windows(self, grid: Grid) -> int:
        """Attention windows of an image; 0 where the tower has none."""
        del grid
        return 0

    @abstractmethod
    def cut(self, arrays: Mapping[str, Any]) -> list[CutImage]:
        """The images in what the image processor returned.

        Raises:
          UserError: they are not of the size that the tower takes.
        """

    @abstractmethod
    def positions(
        self, tokens: Int[np.ndarray, " t"], grids: Sequence[Grid]
    ) -> Int[np.ndarray, "axes t"]:
        """Position of each token; placeholders are known to be as many as features."""

    @abstractmethod
    def patches(self, image: CutImage) -> tuple[np.ndarray, np.ndarray]:
        """Position [s, 2] of each patch of an image, and its windows [w, l] of patches."""

    def check_image_processor(self, processor: Any) -> None:
        """Refuses settings of preprocessor_config.json that the cut images would not show.

        Raises:
          UserError: the image processor is of another model.
        """
        del processor  # what `cut` refuses is enough here

    def expand(self, ids: Sequence[int], images: Sequence[CutImage]) -> Row:
        """A prompt from token ids with one placeholder per image.

        Raises:
          ValueError: not one placeholder per image, or nothing after the last one.
        """
        tokens = np.asarray(ids, np.int32)
        places = np.flatnonzero(tokens == self.config.image_token_id)
        if len(places) != len(images):
            raise ValueError(f"{len(places)} image placeholders for {len(images)} images")
        if tokens.size == 0 or tokens[-1] == self.config.image_token_id:
            raise ValueError("no token after the image")
        repeats = np.ones(len(tokens), np.int64)
        repeats[places] = [self.features(image.grid) for image in images]
        return self.row(np.repeat(tokens, repeats), images)

    def row(self, tokens: Int[np.ndarray, " t"], images: Sequence[CutImage]) -> Row:
        """A prompt from token ids with one placeholder per image feature.

        Raises:
          ValueError: an image has more or fewer placeholders than features.
        """
        grids = [image.grid for image in images]
        placeholders = int(np.sum(tokens == self.config.image_token_id))
        ends = np.cumsum([self.features(grid) for grid in grids], dtype=int)
        if placeholders > (ends[-1] if images else 0):
            raise ValueError(
                f"{placeholders} image placeholders, more than the features of {len(images)} images"
            )
        if images and placeholders < ends[-1]:
            short = int(np.argmax(ends > placeholders))
            size = self.features(grids[short])
            raise ValueError(
                f"image {short + 1} of {len(images)} has {size} features but "
                f"{placeholders - (ends[short] - size)} placeholders"
            )
        return Row(tokens, self.positions(tokens, grids), self._join(images))

    def _join(self, images: Sequence[CutImage]) -> ImagePatches:
        """The images of one prompt one after another, without the batch axis."""
        if not images:
            return ImagePatches(
                pixels=np.zeros((0, self.patch_dim), np.float32),
                positions=np.zeros((0, 2), np.int32),
                image_ids=np.zeros(0, np.int32),
                windows=np.zeros((0, 0), np.int32),
            )
        sizes = [len(image.pixels) for image in images]
        positions, windows = [], []
        for image, first in zip(images, np.cumsum([0, *sizes]), strict=False):
            places, members = self.patches(image)
            positions.append(places)
            windows.append(np.where(members < 0, -1, first + members))
        return ImagePatches(
            pixels=np.concatenate([image.pixels for image in images]),
            positions=np.concatenate(positions).astype(np.int32),
            image_ids=np.repeat(np.arange(len(images), dtype=np.int32), sizes),
            windows=np.concatenate(windows).astype(np.int32),
            levels=images[0].levels,
        )
