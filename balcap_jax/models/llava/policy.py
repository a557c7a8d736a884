"""LLaVA-1.5 (arXiv 2310.03744): a tower, a projector and any decoder of Llama's family."""

from dataclasses import dataclass
from functools import cached_property, partial, reduce
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from balcap_jax.models.decoder.layers import Definition, Params
from balcap_jax.models.decoder.remat import rematerialise
from balcap_jax.models.inputs import ImagePatches
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.llava.layout import LlavaLayout
from balcap_jax.models.llava.projector import Projector
from balcap_jax.models.llava.towers import Tower, tower_of
from balcap_jax.models.pixels import patch_values
from balcap_jax.models.policy import DECODER, VisionLanguagePolicy
from balcap_jax.parallel.sharding import constrain_images


@dataclass(frozen=True)
class Llava(VisionLanguagePolicy):
    """Images of one size, any number per prompt, and a decoder with plain rotary embedding."""

    layout_type = LlavaLayout
    vision_paths = ("vision_tower", "multi_modal_projector")
    parts = MappingProxyType(
        {
            "projector": ("multi_modal_projector",),
            "tower": ("vision_tower",),
            "decoder": DECODER,
        }
    )

    config: LlavaConfig

    @property
    def tower(self) -> Tower:
        """The kind of its vision tower."""
        return tower_of(self.config.vision)

    @cached_property
    def vision_definitions(self) -> dict[str, Definition]:
        config, options = self.config, self.module_options
        vision = config.vision
        return {
            **{
                f"vision_tower.{path}": Definition(
                    lambda r, make=make: make(vision, **options, rngs=r)
                )
                for path, make in self.tower.modules.items()
            },
            "multi_modal_projector": Definition(lambda r: Projector(config, **options, rngs=r)),
        }

    @property
    def vision_stacks(self) -> dict[str, int]:
        return {f"vision_tower.{self.tower.layers}": self.config.vision.num_hidden_layers}

    def image_features(self, params: Params, images: ImagePatches) -> Float[Array, "b m d"]:
        """Features of all images [b, images * image_tokens, d]."""
        batch, length, channels = images.pixels.shape
        vision, patches = self.config.vision, self.config.vision.patches
        assert length % patches == 0, f"{length} patches are not whole images of {patches}"
        # Images know nothing of each other: those of all prompts are one batch.
        pixels = patch_values(images, channels=vision.num_channels, patch_dim=vision.patch_dim)
        pixels = pixels.reshape(-1, patches, channels)
        selected = self._hidden_states(params["vision_tower"], pixels)
        features = self.definitions["multi_modal_projector"](params["multi_modal_projector"])(
            selected
        )
        return features.reshape(batch, -1, features.shape[-1])

    def _hidden_states(
        self, tower: Params, pixels: Float[Array, "i p c"]
    ) -> Float[Array, "i q features"]:
        """What the projector reads; layers above the last one that is asked for do not run."""
        kind, config = self.tower, self.config

        def part(path: str, weights: Params) -> Any:
            return self.definitions[f"vision_tower.{path}"](weights)

        x = part(kind.entry[0], tower[kind.entry[0]])(pixels.astype(self.dtype))
        # All tokens of an image attend to each other; none is padding.
        attend = partial(self.attends.rows, sizes=jnp.full(x.shape[0], x.shape[1], jnp.int32))

        def layer(x, weights):
            return constrain_images(part(kind.layers, weights)(x, attend)), None

        for path in kind.entry[1:]:
            x = part(path, tower[path])(x)
        layers = reduce(lambda tree, name: tree[name], kind.layers.split("."), tower)
        states, done = {}, 0
        for asked in sorted(set(config.feature_layers)):
            between = jax.tree.map(lambda w, a=done, b=asked: w[a:b], layers)
            x, _ = jax.lax.scan(rematerialise(self.remat, layer), x, between)
            states[asked], done = x, asked
        selected = jnp.concatenate([states[asked] for asked in config.feature_layers], axis=-1)
        first = 1 if config.vision_feature_select_strategy == "default" else 0
        return selected[:, first:]
