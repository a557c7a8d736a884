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
from balcap_jax.models.inputs import Prompts
from balcap_jax.models.param_tree import shapes_of
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.parallel.sharding import param_shardings
from balcap_jax.plan.workloads.presets import Preset


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
        images = random_images(self.preset)
        cut = self.layout.cut(images)
        rows = [self.layout.expand(self._ids(i), [image]) for i, image in enumerate(cut)]
        tokens = np.stack([row.tokens for row in rows]).astype(np.int64)
        return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), **images}

    @cached_property
    def batch(self) -> Prompts:
        """The B prompts as training pads them."""
        cut = self.layout.cut(self.hf_arrays)
        return self.pad([self.layout.expand(self._ids(i), [x]) for i, x in enumerate(cut)])

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
    """B images as the image processor of the family returns them, normal(0, 1)."""
    config, generator = preset.config, np.random.default_rng(0)
    height, width = preset.image
    if not isinstance(config, Qwen2_5_VLConfig):
        shape = (preset.batch, config.vision.num_channels, height, width)
        return {"pixel_values": generator.standard_normal(shape, np.float32)}
    patch = config.vision.patch_size
    grid = (1, height // patch, width // patch)
    shape = (preset.batch * grid[1] * grid[2], config.vision.patch_dim)
    return {
        "pixel_values": generator.standard_normal(shape, np.float32),
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
