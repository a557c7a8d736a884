"""Sizes of the vision towers that a LLaVA can have, read from and written as vision_config."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from balcap_jax.errors import UserError
from balcap_jax.models import schema
from balcap_jax.models.config import check_divides, check_supported
from balcap_jax.models.decoder.layers import ACTIVATIONS
from balcap_jax.models.schema import COUNT, FLAG, NAME, SIZE, Rule, check_entries

_SIDE, _PATCH = schema.whole(1, 2**14), schema.whole(1, 2**10)
_RULES = {
    "model_type": NAME,
    "hidden_size": SIZE,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_channels": schema.whole(1, 16),
    "hidden_act": NAME,
    "layer_norm_eps": schema.EPSILON,
}


@dataclass(frozen=True, kw_only=True)
class TowerConfig(ABC):
    """What all towers have: images of one size, cut into square patches, behind a class token.

    Attributes:
      image_size, patch_size: sides in pixels; all images have this size.
    """

    model_type: ClassVar[str]  # of vision_config
    # What transformers takes where vision_config leaves it out; its names are what is read.
    defaults: ClassVar[Mapping[str, Any]]
    rules: ClassVar[Mapping[str, Rule]]

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    hidden_act: str
    layer_norm_eps: float

    def __post_init__(self) -> None:
        check_divides(
            "vision num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
        )
        check_divides("patch_size", self.patch_size, "image_size", self.image_size)
        check_supported({"vision_config.hidden_act": (self.hidden_act, tuple(ACTIVATIONS))})

    @classmethod
    def from_hf(cls, vision: Mapping[str, Any]) -> "TowerConfig":
        """From the entries of vision_config.

        Raises:
          UserError: an entry that cannot be, or that is not supported.
        """
        check_entries("vision_config", vision, cls.rules)
        known = {**cls.defaults, **vision}
        return cls(**{name: known[name] for name in cls.defaults})

    def to_hf(self) -> dict[str, Any]:
        """The entries of vision_config."""
        return {
            "model_type": self.model_type,
            **{name: getattr(self, name) for name in self.defaults},
        }

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def side(self) -> int:
        """Patches along a side of an image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return self.side**2

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch."""
        return self.num_channels * self.patch_size**2


@dataclass(frozen=True, kw_only=True)
class ClipConfig(TowerConfig):
    """The CLIP vision tower; names as in Hugging Face.

    Attributes:
      projection_dim: read by no part of the policy, kept for the files.
    """

    model_type = "clip_vision_model"
    # Of a LLaVA: published folders leave out what equals these.
    defaults = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 768,
    }
    rules = _RULES | {
        "intermediate_size": SIZE,
        "image_size": _SIDE,
        "patch_size": _PATCH,
        "projection_dim": SIZE,
        "attention_dropout": schema.optional(schema.SHARE),
    }

    intermediate_size: int
    image_size: int = 336
    patch_size: int = 14
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int = 768


@dataclass(frozen=True, kw_only=True)
class Dinov2Config(TowerConfig):
    """The DINOv2 vision transformer; names as in Hugging Face.

    Attributes:
      mlp_ratio: width of the MLP as a multiple of `hidden_size`.
      qkv_bias: the query, key and value projections have a bias.
      layerscale_value: that the factors of fresh layers start with.
      use_mask_token: the files hold a mask token, of pre-training; nothing reads it.
    """

    model_type = "dinov2"
    defaults = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_channels": 3,
        "image_size": 224,
        "patch_size": 14,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "use_mask_token": True,
    }
    rules = _RULES | {
        "image_size": schema.either(_SIDE, schema.several(_SIDE, length=2)),
        "patch_size": schema.either(_PATCH, schema.several(_PATCH, length=2)),
        "mlp_ratio": schema.whole(1, 64),
        "qkv_bias": FLAG,
        "layerscale_value": schema.number(-1e3, 1e3),
        "use_mask_token": FLAG,
        "use_swiglu_ffn": FLAG,
    }

    image_size: int = 224
    patch_size: int = 14
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    layerscale_value: float = 1.0
    use_mask_token: bool = True

    @classmethod
    def from_hf(cls, vision: Mapping[str, Any]) -> "Dinov2Config":
        check_entries("vision_config", vision, cls.rules)
        check_supported(
            {"vision_config.use_swiglu_ffn": (vision.get("use_swiglu_ffn", False), (False,))}
        )
        sides = {
            name: _one_side(name, vision[name])
            for name in ("image_size", "patch_size")
            if name in vision
        }
        return super().from_hf({**vision, **sides})

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP."""
        return self.hidden_size * self.mlp_ratio


def _one_side(name: str, value: Any) -> int:
    sides = value if isinstance(value, list | tuple) else (value, value)
    if sides[0] != sides[1]:
        raise UserError(
            f"vision_config.{name} is {list(sides)} in config.json but this implementation takes "
            "squares; use a model with one size for both sides."
        )
    return sides[0]


# By the model_type of vision_config.
TOWER_CONFIGS: dict[str, type[TowerConfig]] = {
    kind.model_type: kind for kind in (ClipConfig, Dinov2Config)
}
