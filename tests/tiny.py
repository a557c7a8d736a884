"""A tiny policy with random weights and random prompts, for tests of everything above the model."""

import dataclasses
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from balcap_jax.models.config import DecoderConfig, PolicyConfig
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.geometry import patch_positions, token_positions, window_ids, window_patches
from balcap_jax.models.inputs import ImagePatches, Prompts
from balcap_jax.models.padding import pad_windows
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, VisionConfig
from balcap_jax.models.qwen2_5_vl.policy import Qwen2_5_VL

PAD, STOP, VISION_START, VISION_END, IMAGE, VIDEO = 0, 1, 2, 3, 4, 5
FIRST_TEXT = 6  # ids from here on are words
# Patches (rows, columns): none is a multiple of the window of 2 x 2 merged tokens but the first.
GRIDS = ((4, 4), (4, 6), (6, 2), (2, 6))

CONFIG = Qwen2_5_VLConfig(
    text=DecoderConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        mrope_section=(2, 1, 1),
    ),
    vision=VisionConfig(
        depth=2,
        hidden_size=16,
        intermediate_size=24,
        num_heads=2,
        patch_size=4,
        window_size=16,
        fullatt_block_indexes=(1,),
    ),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=VISION_START,
    vision_end_token_id=VISION_END,
    stop_tokens=(STOP,),
    pad_token_id=PAD,
    tie_word_embeddings=True,
    # Larger than usual: with 0.02 all tokens would be about equally likely and errors would hide.
    initializer_range=0.2,
)


def config(*, text: dict | None = None, vision: dict | None = None, **top) -> Qwen2_5_VLConfig:
    """CONFIG with some fields replaced: `config(text={"num_hidden_layers": 3})`."""
    return replaced(CONFIG, text, vision, **top)


def replaced(base, text: dict | None, vision: dict | None, **top):
    """A policy's config with some fields of it and of its two parts replaced."""
    return dataclasses.replace(
        base,
        text=dataclasses.replace(base.text, **(text or {})),
        vision=dataclasses.replace(base.vision, **(vision or {})),
        **top,
    )


def policy(seed: int = 0, **options) -> tuple[Qwen2_5_VL, Params]:
    """The tiny policy and random weights."""
    model = Qwen2_5_VL(options.pop("config", CONFIG), **options)
    return model, random_params(model, seed)


def random_params(model: VisionLanguagePolicy, seed: int = 0) -> Params:
    """Random weights: matrices around 0, norms around 1, biases around 0.

    Norms at exactly one and biases at exactly zero would hide mistakes with them. The numbers are
    numpy's, because compiling `init` takes longer than most tests.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        std = 0.1 if name in ("scale", "bias") else model.config.initializer_range
        # Matrices [out, in] are drawn as [in, out]: tests/golden has answers with these numbers.
        turned = name == "weight"
        shape = (*leaf.shape[:-2], *leaf.shape[:-3:-1]) if turned else leaf.shape
        drawn = (name == "scale") + std * rng.normal(size=shape)
        drawn = np.swapaxes(drawn, -1, -2) if turned else drawn
        return jax.device_put(drawn.astype(leaf.dtype))  # jnp.asarray compiles for each shape

    return jax.tree_util.tree_map_with_path(draw, _shapes_of(type(model), model.config))


@cache
def _shapes_of(kind: type[VisionLanguagePolicy], config: PolicyConfig) -> Params:
    """Of the weights: attention, dtypes and adapters change nothing of them, and tracing `init`
    takes a tenth of a second.
    """
    return jax.eval_shape(kind(config).init, jax.random.key(0))


def prompts(
    batch: int = 2,
    *,
    seed: int = 0,
    config: Qwen2_5_VLConfig = CONFIG,
    prefix: int | None = None,
    patches: int | None = None,
    grids: Sequence[tuple[int, int]] = GRIDS,
    text: int = 4,
) -> Prompts:
    """Random prompts: start, image, end, `text` to `text + 2` words; prompt i has grid i (cyclic).

    Args:
      batch: number of prompts; prompt i is the same whatever the batch is.
      prefix: padded length of the prefix; the longest prompt's by default.
      patches: padded number of patches; the largest image's by default.
      text: fewest words after the image.
    """
    vision, merge = config.vision, config.vision.spatial_merge_size
    rows = []
    for i in range(batch):
        rng = np.random.default_rng([seed, i])
        grid = grids[i % len(grids)]
        count = grid[0] * grid[1] // merge**2
        words = rng.integers(FIRST_TEXT, config.vocab_size, text + i % 3)
        tokens = np.array([VISION_START, *[IMAGE] * count, VISION_END, *words], np.int32)
        positions = token_positions(tokens, [grid], image_token_id=IMAGE, merge=merge)
        pixels = rng.normal(size=(grid[0] * grid[1], vision.patch_dim)).astype(np.float32)
        rows.append((grid, tokens, positions, pixels))
    prefix = prefix or max(len(tokens) - 1 for _, tokens, _, _ in rows)
    patches = patches or max(len(pixels) for *_, pixels in rows)

    def pad(x: np.ndarray, length: int, value: int, axis: int = 0) -> np.ndarray:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, length - x.shape[axis])
        return np.pad(x, widths, constant_values=value)

    def stack(arrays: list[np.ndarray]) -> jax.Array:
        return jax.device_put(np.stack(arrays))

    slots = (merge * vision.window) ** 2
    windows = [
        window_patches(window_ids(grid, merge=merge, window=vision.window), slots=slots)
        for grid, *_ in rows
    ]
    return Prompts(
        tokens=stack([pad(tokens[:-1], prefix, PAD) for _, tokens, _, _ in rows]),
        mask=stack([np.arange(prefix) < len(tokens) - 1 for _, tokens, _, _ in rows]),
        positions=stack([pad(positions[:, :-1], prefix, 0, axis=1) for *_, positions, _ in rows]),
        last_token=stack([tokens[-1] for _, tokens, _, _ in rows]),
        last_position=stack([positions[0, -1] for *_, positions, _ in rows]),
        images=ImagePatches(
            pixels=stack([pad(pixels, patches, 0) for *_, pixels in rows]),
            positions=stack([pad(patch_positions(g, merge=merge), patches, 0) for g, *_ in rows]),
            image_ids=stack([pad(np.zeros(len(p), np.int32), patches, -1) for *_, p in rows]),
            windows=jnp.asarray(pad_windows(windows, patches)),
        ),
    )


def completions(batch: int = 2, group: int = 3, length: int = 5, *, seed: int = 0) -> jax.Array:
    """Random words [b g c]; row [i, j] does not depend on the batch."""
    rows = [
        [np.random.default_rng([seed, i, j]).integers(FIRST_TEXT, 48, length) for j in range(group)]
        for i in range(batch)
    ]
    return jax.device_put(np.array(rows, np.int32))


def processor_inputs(
    shares: Sequence[Sequence[tuple[int, int]]], *, config: Qwen2_5_VLConfig = CONFIG
) -> dict[str, np.ndarray]:
    """What a processor would give, at random: prompt i has images of the grids in shares[i].

    Padded on the left. The numbers are numpy's: the same on any machine.
    """
    rng = np.random.default_rng(0)
    merge, rows = config.vision.spatial_merge_size, []
    for i, grids in enumerate(shares):
        parts = [rng.integers(FIRST_TEXT, config.vocab_size, 2 + 3 * (i % 4))]
        for height, width in grids:
            words = rng.integers(FIRST_TEXT, config.vocab_size, 2)
            parts += [[VISION_START, *[IMAGE] * (height * width // merge**2), VISION_END], words]
        rows.append(np.concatenate(parts))
    tokens, mask = pad(rows)
    grids = np.array([(1, *grid) for share in shares for grid in share])
    patches = (grids.prod(axis=1).sum(), config.vision.patch_dim)
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "pixel_values": rng.normal(size=patches).astype(np.float32),
        "image_grid_thw": grids,
        "mm_token_type_ids": (tokens == IMAGE).astype(np.int64),
    }


def pad(rows: Sequence[np.ndarray], side: str = "left") -> tuple[np.ndarray, np.ndarray]:
    """input_ids and attention_mask [b t] of token rows, padded on one side with PAD."""
    length = max(map(len, rows))
    tokens = np.full((len(rows), length), PAD, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        where = slice(len(row)) if side == "right" else slice(length - len(row), length)
        tokens[i, where], mask[i, where] = row, 1
    return tokens, mask


def assert_equal_trees(a, b) -> None:
    """The same structure, and every array the same bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
