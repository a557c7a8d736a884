"""Sizes of a Qwen2.5-VL model, read from and written as Hugging Face's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.models import schema
from balcap_jax.models.config import (
    DecoderConfig,
    PolicyConfig,
    check_divides,
    check_supported,
    decoder_sizes,
    ending_tokens,
    rope_of,
    ties_embeddings,
)
from balcap_jax.models.decoder.rotary import PLAIN
from balcap_jax.models.schema import COUNT, FLAG, NAME, SECTION, SIZE, TOKEN, check_entries

MODEL_TYPE = "qwen2_5_vl"
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"

VISION_RULES = {
    "depth": COUNT,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_heads": COUNT,
    "patch_size": schema.whole(1, 2**10),
    "temporal_patch_size": schema.whole(1, 64),
    "in_channels": schema.whole(1, 16),
    "in_chans": schema.whole(1, 16),
    "spatial_merge_size": schema.whole(1, 64),
    "window_size": schema.whole(1, 2**16),
    "fullatt_block_indexes": schema.several(schema.whole(0, 1023)),
    "out_hidden_size": SIZE,
    "hidden_act": NAME,
    "rope_parameters": schema.optional(SECTION),
    "tokens_per_second": schema.number(0, 1e6, above=True),
}
QWEN_RULES = {
    "text_config": schema.optional(SECTION),
    "vision_config": SECTION,
    "image_token_id": TOKEN,
    "video_token_id": TOKEN,
    "vision_start_token_id": TOKEN,
    "vision_end_token_id": TOKEN,
    "tie_word_embeddings": schema.optional(FLAG),
}


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower; sizes in pixels, patches or merged tokens as Hugging Face counts them.

    Attributes:
      depth, hidden_size, intermediate_size, num_heads: of the blocks.
      patch_size, temporal_patch_size, in_channels: one patch; a still image fills the temporal axis
        by repetition.
      spatial_merge_size: merge x merge patches become one token of the decoder.
      window_size: side of an attention window in pixels.
      fullatt_block_indexes: blocks that attend to the whole image; all others stay in their window.
      rope_theta: base of the 2-D rotary embedding.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    in_channels: int = 3
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        check_divides("vision num_heads", self.num_heads, "hidden_size", self.hidden_size)
        check_divides("4 (2-D rotary pairs)", 4, "vision head size", self.head_dim)
        check_divides(
            "patch_size * spatial_merge_size",
            self.patch_size * self.spatial_merge_size,
            "window_size",
            self.window_size,
        )
        blocks = self.fullatt_block_indexes
        if len(set(blocks)) < len(blocks) or not all(0 <= block < self.depth for block in blocks):
            raise UserError(
                f"fullatt_block_indexes {list(blocks)[:8]} must be different blocks of a tower of "
                f"{self.depth}, 0 to {self.depth - 1}; correct them in config.json."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def window(self) -> int:
        """Side of an attention window in merged tokens."""
        return self.window_size // self.spatial_merge_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class Qwen2_5_VLConfig(PolicyConfig):  # noqa: N801 - the name in Hugging Face
    """A Qwen2.5-VL policy."""

    vision: VisionConfig
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int

    @property
    def banned_tokens(self) -> tuple[int, ...]:
        return (
            self.vision_start_token_id,
            self.vision_end_token_id,
            self.image_token_id,
            self.video_token_id,
        )

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> "Qwen2_5_VLConfig":
        """Reads config.json, flat (as published) or with text_config (transformers v5).

        Args:
          config: the content of config.json.
          generation: the content of generation_config.json; its stop tokens come first.

        Raises:
          UserError: a missing entry, or a setting that is not supported.
        """
        check_entries("", config, QWEN_RULES)
        # The published layout keeps the decoder's entries at the top level.
        text = config.get("text_config") or config
        try:
            return _read(config, text, generation or {})
        except KeyError as error:
            raise UserError(
                f"config.json lacks {error.args[0]!r}, which a qwen2_5_vl model needs; take the "
                "config.json that was published with the weights."
            ) from error

    def own_entries(self) -> dict[str, Any]:
        """The content of config.json in the layout of transformers v5."""
        text, vision = self.text, self.vision
        special = {
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
        }
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "tie_word_embeddings": self.tie_word_embeddings,
            **special,
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                **self.decoder_to_hf(),
                "use_sliding_window": False,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": text.rope_theta,
                    "mrope_section": list(text.mrope_section or ()),
                },
                "bos_token_id": None,
            },
            "vision_config": {
                "model_type": "qwen2_5_vl_vision",
                "depth": vision.depth,
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_heads": vision.num_heads,
                "hidden_act": "silu",
                "in_channels": vision.in_channels,
                "patch_size": vision.patch_size,
                "temporal_patch_size": vision.temporal_patch_size,
                "spatial_merge_size": vision.spatial_merge_size,
                "window_size": vision.window_size,
                "fullatt_block_indexes": list(vision.fullatt_block_indexes),
                "out_hidden_size": text.hidden_size,
                "initializer_range": self.initializer_range,
                "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
            },
        }


def _read(
    config: Mapping[str, Any], text: Mapping[str, Any], generation: Mapping[str, Any]
) -> Qwen2_5_VLConfig:
    vision = config["vision_config"]
    check_entries("text_config", text, schema.DECODER)
    check_entries("vision_config", vision, VISION_RULES)
    rope = rope_of(text)
    vision_rope = vision.get("rope_parameters") or {}
    check_entries("vision_config.rope_parameters", vision_rope, {"rope_theta": schema.THETA})
    _check_supported(text, vision, rope)
    stop, pad = ending_tokens(generation, text)
    return Qwen2_5_VLConfig(
        text=DecoderConfig(
            **decoder_sizes({"max_position_embeddings": 32768, **text}),
            mrope_section=tuple(rope["mrope_section"]),
            rope_theta=float(rope.get("rope_theta") or text.get("rope_theta") or 1000000.0),
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-5)),
        ),
        vision=VisionConfig(
            depth=vision["depth"],
            hidden_size=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            num_heads=vision["num_heads"],
            patch_size=vision.get("patch_size", 14),
            temporal_patch_size=vision.get("temporal_patch_size", 2),
            in_channels=vision.get("in_channels", 3),
            spatial_merge_size=vision.get("spatial_merge_size", 2),
            window_size=vision.get("window_size", 112),
            fullatt_block_indexes=_full_blocks(vision),
            rope_theta=float(vision_rope.get("rope_theta", 10000.0)),
        ),
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        vision_start_token_id=config["vision_start_token_id"],
        vision_end_token_id=config["vision_end_token_id"],
        stop_tokens=stop,
        pad_token_id=pad,
        tie_word_embeddings=ties_embeddings(config, text),
        initializer_range=float(text.get("initializer_range", 0.02)),
        published=config,
    )


def _full_blocks(vision: Mapping[str, Any]) -> tuple[int, ...]:
    """Where nothing is said, those of the published towers as far as this one has them."""
    default = [block for block in (7, 15, 23, 31) if block < vision["depth"]]
    return tuple(vision.get("fullatt_block_indexes", default))


def _check_supported(
    text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any]
) -> None:
    check_supported(
        {
            "hidden_act": (text.get("hidden_act", "silu"), ("silu",)),
            "vision_config.hidden_act": (vision.get("hidden_act", "silu"), ("silu",)),
            "use_sliding_window": (text.get("use_sliding_window") or False, (False,)),
            "rope type": (rope.get("rope_type", rope.get("type", "default")), PLAIN),
            "vision_config.out_hidden_size": (
                vision.get("out_hidden_size", text["hidden_size"]),
                (text["hidden_size"],),
            ),
        }
    )
