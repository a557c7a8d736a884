"""What the layers of all kinds of vision tower have in common."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from balcap_jax.models.attention.plain import Attend
from balcap_jax.models.decoder.layers import ACTIVATIONS, Linear
from balcap_jax.models.llava.tower_config import TowerConfig


class MLP(nnx.Module):
    """fc2(act(fc1(x)))."""

    def __init__(
        self, config: TowerConfig, *, dtype: DTypeLike, std: float, rngs: nnx.Rngs
    ) -> None:
        self.activation = config.hidden_act
        options = {"use_bias": True, "dtype": dtype, "std": std, "rngs": rngs}
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, **options)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, **options)

    def __call__(self, x: Float[Array, "i q d"]) -> Float[Array, "i q d"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


def attend_among_all(
    x: Float[Array, "i q d"], projections: tuple[Linear, Linear, Linear], *, heads: int,
    attend: Attend,
) -> Float[Array, "i q d"]:  # fmt: skip
    """Multi-head attention among all tokens of an image, before its last projection.

    Args:
      projections: of queries, keys and values.
    """
    q, k, v = (project(x).reshape(*x.shape[:2], heads, -1) for project in projections)
    return attend(q, k, v).reshape(x.shape)
