"""LLaVA's projector, from a tower's features to the decoder's width."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from balcap_jax.models.decoder.layers import ACTIVATIONS, Linear
from balcap_jax.models.llava.config import LlavaConfig


class Projector(nnx.Module):
    """linear_2(act(linear_1(x))): from the tower's width, once per feature layer, to the decoder's.

    LLaVA-1.5, arXiv 2310.03744, section 3.2.
    """

    def __init__(
        self, config: LlavaConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        width, out = config.vision.hidden_size * len(config.feature_layers), config.text.hidden_size
        bias = config.multimodal_projector_bias
        self.activation = config.projector_hidden_act
        self.linear_1 = Linear(width, out, use_bias=bias, dtype=dtype, std=std, rngs=rngs)
        self.linear_2 = Linear(out, out, use_bias=bias, dtype=dtype, std=std, rngs=rngs)

    def __call__(self, x: Float[Array, "i q d"]) -> Float[Array, "i q e"]:
        return self.linear_2(ACTIVATIONS[self.activation](self.linear_1(x)))
