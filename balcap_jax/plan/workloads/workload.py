"""The inputs of `balcap bench step`: random weights, images and prompts of a preset."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.inputs import CutImage, Prompts, Row
from balcap_jax.models.param_tree import shapes_of
from balcap_jax.models.pixels import one_frame
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.parallel.sharding import param_shardings
from balcap_jax.plan.workloads.presets import Preset

# What each byte stands for, like what published processors make of them: about normal.
LEVELS = ((np.arange(256) / 255 - 0.5) / 0.25).astype(np.float32)


class RandomProcessor(Processor):
    """The processor of a preset: no image file is opened and no text is cut to tokens, the rest
    is as in training, padding to buckets included. No token ends a caption.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__(preset.config, tokenizer=None, image_processor=None, chat_template="")
        object.__setattr__(self, "preset", preset)

    preset: Preset

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        return ()

    @cached_property
    def hf_arrays(self) -> dict[str, np.ndarray]:
        """What Hugging Face's processor of the model would return for the B prompts."""
        tokens = np.stack([row.tokens for row in self._rows]).astype(np.int64)
        images = random_images(self.preset)
        return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **images}

    @cached_property
    def batch(self) -> Prompts:
        """The B prompts as training pads them."""
        return self.pad(self._rows)

    @cached_property
    def _rows(self) -> list[Row]:
        """The B prompts with their images as they travel to a device: as bytes."""
        layout = self.layout
        rows = []
        for i, cut in enumerate(layout.cut(random_images(self.preset))):
            pixels = one_frame(cut.pixels, channels=layout.channels, frames=layout.frames)
            found = np.searchsorted(LEVELS, pixels).astype(np.uint8)
            image = CutImage(found, cut.grid, np.tile(LEVELS, (layout.channels, 1)))
            rows.append(layout.expand(self._ids(i), [image]))
        return rows

    @cached_property
    def examples(self) -> list[Example]:
        """B examples; only their number is read."""
        image = Image.new("RGB", (1, 1))
        return [Example(str(i), image, prompt="", reference="") for i in range(self.preset.batch)]

    def prompts(self, examples: Sequence[Example]) -> Prompts:
        assert len(examples) == self.preset.batch
        return self.batch

    def _ids(self, i: int) -> list[int]:
        """Random words around one placeholder, itself between the tokens that open and close an
        image where the family has such.
        """
        config = self.preset.config
        image = [config.image_token_id]
        if isinstance(config, Qwen2_5_VLConfig):
            image = [config.vision_start_token_id, *image, config.vision_end_token_id]
        count = self.preset.text_tokens + 1 - len(image)
        words = random_words(config, count, np.random.default_rng([1, i])).tolist()
        return [*words[: count // 2], *image, *words[count // 2 :]]


def random_words(config: PolicyConfig, count: int, generator: np.random.Generator) -> np.ndarray:
    """Random token ids that are none of the special ones."""
    special = (*config.banned_tokens, *config.stop_tokens, config.pad_token_id)
    words = np.setdiff1d(np.arange(config.vocab_size, dtype=np.int32), special)
    return generator.choice(words, count)


def random_images(preset: Preset) -> dict[str, np.ndarray]:
    """B images of random bytes as the image processor of the family returns them."""
    config, generator = preset.config, np.random.default_rng(0)
    height, width = preset.image
    if not isinstance(config, Qwen2_5_VLConfig):
        shape = (preset.batch, config.vision.num_channels, height, width)
        return {"pixel_values": LEVELS[generator.integers(0, 256, shape, np.uint8)]}
    vision, patch = config.vision, config.vision.patch_size
    grid = (1, height // patch, width // patch)
    patches, frames = preset.batch * grid[1] * grid[2], vision.temporal_patch_size
    one = generator.integers(0, 256, (patches, vision.in_channels, 1, patch**2), np.uint8)
    return {
        "pixel_values": np.repeat(LEVELS[one], frames, axis=2).reshape(patches, -1),
        "image_grid_thw": np.array([grid] * preset.batch, np.int64),
    }


def random_params(policy: VisionLanguagePolicy, mesh: Mesh) -> Params:
    """Random float32 weights, as they are trained, made where they live."""
    places = param_shardings(mesh, shapes_of(policy))
    return jax.jit(policy.init, out_shardings=places)(jax.random.key(0))


class Objective(NamedTuple):
    """What the update gets besides the captions.

    Attributes:
      advantages: random, one per caption.
      shift: between the logprobs of the sampler and the old ones of the update, as if the policy
        had moved on: with ratios of 1 the loss would not depend on the policy's logprobs.
    """

    advantages: Float[np.ndarray, "b g"]
    shift: Float[np.ndarray, "b g c"]


def random_objective(preset: Preset) -> Objective:
    """The same numbers for all sides."""
    generator = np.random.default_rng(2)
    shape = (preset.batch, preset.group, preset.completion)
    return Objective(
        generator.standard_normal(shape[:2], np.float32),
        0.1 * generator.standard_normal(shape, np.float32),
    )


def size_of(tree: Any) -> int:
    """The bytes of arrays, or of what `jax.eval_shape` returns."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def abstract(tree: Any) -> Any:
    """Shapes and dtypes only."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
