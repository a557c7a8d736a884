"""What the package knows of one model family, in one record."""

from collections.abc import Callable
from typing import Any, NamedTuple

from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.hf.keys import KeyTable
from balcap_jax.models.layout import Layout
from balcap_jax.models.policy import VisionLanguagePolicy

# The matmuls of a layer of the decoder, by Hugging Face's names; all families share the decoder.
DECODER_MATMULS = tuple(
    f"language_model/layers/{block}/{name}"
    for block, names in (
        ("self_attn", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("mlp", ("gate_proj", "up_proj", "down_proj")),
    )
    for name in names
)


class Family(NamedTuple):
    """One `model_type`: how it is read, computed and written.

    Attributes:
      config: its sizes, read from config.json.
      policy: its computation; that names its layout and its vision parameters.
      keys: names of its weights in Hugging Face's files, for given sizes.
      target_modules: paths in `params` of the matmuls that adapters are put on by default.
    """

    config: type[PolicyConfig]
    policy: type[VisionLanguagePolicy]
    keys: Callable[[Any], KeyTable]
    target_modules: tuple[str, ...] = DECODER_MATMULS

    @property
    def layout(self) -> type[Layout]:
        """How its images and tokens are laid out."""
        return self.policy.layout_type

    @property
    def vision_paths(self) -> tuple[str, ...]:
        """Paths in `params` of all that makes image features: tower and projector."""
        return self.policy.vision_paths
