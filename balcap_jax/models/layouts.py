"""How each family lays out images and tokens: from what Hugging Face's processors return to the
arrays a policy reads. Host side, numpy only.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from balcap_jax.errors import UserError
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.geometry import (
    Grid,
    patch_positions,
    token_positions,
    window_ids,
    window_patches,
)
from balcap_jax.models.inputs import ImagePatches, Prompts
from balcap_jax.models.llava_config import LlavaConfig
from balcap_jax.models.qwen2_5_vl_config import Qwen2_5_VLConfig


class CutImage(NamedTuple):
    """One image as flattened patches, and its rows and columns of patches."""

    pixels: Float[np.ndarray, "s c"]
    grid: Grid


class Row(NamedTuple):
    """One prompt before padding, its last token still in place."""

    tokens: Int[np.ndarray, " t"]
    positions: Int[np.ndarray, "axes t"]
    images: ImagePatches  # without the batch axis


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

    @abstractmethod
    def features(self, grid: Grid) -> int:
        """Features, and so placeholders, of an image."""

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
        )


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

    def features(self, grid: Grid) -> int:
        return grid[0] * grid[1] // self.granule

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


class LlavaLayout(Layout):
    """Images of one size, each the same number of features, one position per token."""

    config: LlavaConfig

    @property
    def granule(self) -> int:
        return self.config.vision.patches

    @property
    def patch_dim(self) -> int:
        return self.config.vision.patch_dim

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


def layout_of(config: PolicyConfig) -> Layout:
    """The layout of the family that `config` belongs to."""
    if isinstance(config, LlavaConfig):
        return LlavaLayout(config)
    assert isinstance(config, Qwen2_5_VLConfig), type(config)
    return QwenLayout(config)


def pad_rows(
    rows: Sequence[Row], *, pad_token_id: int, prefix_step: int, patch_step: int
) -> Prompts:
    """Rows as a batch: prefix and patches padded on the right to the next bucket."""
    prefix = bucket(max(len(row.tokens) for row in rows) - 1, prefix_step)
    return Prompts(
        tokens=np.stack([_pad(row.tokens[:-1], prefix, pad_token_id) for row in rows]),
        mask=np.stack([np.arange(prefix) < len(row.tokens) - 1 for row in rows]),
        positions=np.stack([_pad(row.positions[:, :-1].T, prefix, 0).T for row in rows]),
        last_token=np.array([row.tokens[-1] for row in rows], np.int32),
        last_position=np.array([row.positions[0, -1] for row in rows], np.int32),
        images=pad_images(rows, patch_step),
    )


def pad_images(rows: Sequence[Row], patch_step: int) -> ImagePatches:
    """The images of a batch, patches padded on the right to the next bucket."""
    patches = bucket(max(len(row.images.pixels) for row in rows), patch_step)

    def stack(name: str, value: int) -> np.ndarray:
        return np.stack([_pad(getattr(row.images, name), patches, value) for row in rows])

    return ImagePatches(
        pixels=stack("pixels", 0),
        positions=stack("positions", 0),
        image_ids=stack("image_ids", -1),
        windows=pad_windows([row.images.windows for row in rows], patches),
    )


def sizes_of(prompts: Prompts) -> list[int]:
    """[prefix tokens, patches, windows, patches of a window] that a batch is padded to."""
    images = prompts.images
    return [prompts.tokens.shape[1], images.pixels.shape[1], *images.windows.shape[1:]]


def pad_to_sizes(prompts: Prompts, sizes: Sequence[int], *, pad_token_id: int) -> Prompts:
    """A batch of `pad_rows`, padded on to larger `sizes_of` that batch."""
    if list(sizes) == sizes_of(prompts):
        return prompts
    prefix, patches, windows, slots = sizes

    def pad(x: np.ndarray, value: int, lengths: dict[int, int]) -> np.ndarray:
        widths = [(0, lengths.get(axis, size) - size) for axis, size in enumerate(x.shape)]
        return np.pad(x, widths, constant_values=value)

    images = prompts.images
    return prompts._replace(
        tokens=pad(prompts.tokens, pad_token_id, {1: prefix}),
        mask=pad(prompts.mask, 0, {1: prefix}),
        positions=pad(prompts.positions, 0, {2: prefix}),
        images=images._replace(
            pixels=pad(images.pixels, 0, {1: patches}),
            positions=pad(images.positions, 0, {1: patches}),
            image_ids=pad(images.image_ids, -1, {1: patches}),
            windows=pad(images.windows, -1, {1: windows, 2: slots}),
        ),
    )


def bucket(value: int, step: int) -> int:
    """The smallest padded size that holds `value`.

    Sizes are multiples of `step` up to 16 of them, and from there eight per doubling. So at most an
    eighth is padding, and up to n steps there are no more than 16 + 8 log2(n / 16) sizes, each of
    which compiles the programs once.
    """
    steps = -(-value // step)
    return round_up(value, step << max(0, steps.bit_length() - 4))


def pad_windows(
    rows: Sequence[Int[np.ndarray, "_ _"]], patches: int
) -> Int[np.ndarray, "b windows slots"]:
    """The windows of a batch of prompts, padded with empty ones.

    To a multiple of half the whole windows that so many patches fill: small windows at the borders
    add some, and every count is a program to compile.
    """
    # No window has more patches than there are, and a prompt without images has no slots at all.
    slots = min(max(windows.shape[1] for windows in rows), patches)
    step = round_up(patches, 2 * slots) // (2 * slots) if slots else 1
    count = round_up(max(map(len, rows)), step)
    padded = np.full((len(rows), count, slots), -1, np.int32)
    for b, windows in enumerate(rows):
        padded[b, : len(windows), : windows.shape[1]] = windows[:, :slots]
    return padded


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `value`."""
    return -(-value // step) * step


def _pad(x: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1), constant_values=value)
