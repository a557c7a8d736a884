"""Sizes of a Qwen2.5-VL model, read from and written as Hugging Face's config.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


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
        _check_divides("vision num_heads", self.num_heads, "hidden_size", self.hidden_size)
        _check_divides("4 (2-D rotary pairs)", 4, "vision head size", self.head_dim)
        _check_divides(
            "patch_size * spatial_merge_size",
            self.patch_size * self.spatial_merge_size,
            "window_size",
            self.window_size,
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


@dataclass(frozen=True)
class DecoderConfig:
    """The language model.

    Attributes:
      mrope_section: rotary frequencies turned by the temporal, height and width position; their sum
        is half of the head size.
      attention_bias: the query, key and value projections have a bias (Qwen2 does, Llama does not).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int]
    rope_theta: float = 1000000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 128000
    attention_bias: bool = True

    def __post_init__(self) -> None:
        _check_divides(
            "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
        )
        _check_divides(
            "num_key_value_heads",
            self.num_key_value_heads,
            "num_attention_heads",
            self.num_attention_heads,
        )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise UserError(
                f"mrope_section {list(self.mrope_section)} must sum to half of the head size "
                f"{self.head_dim}; correct mrope_section in config.json."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class Qwen2_5_VLConfig:  # noqa: N801 - the name in Hugging Face
    """A Qwen2.5-VL policy: its two parts and the ids of its special tokens.

    Attributes:
      stop_tokens: a caption ends with the first of these.
      pad_token_id: fills what is masked; never read by the model's real tokens.
    """

    text: DecoderConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    stop_tokens: tuple[int, ...]
    pad_token_id: int
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        ids = (*self.banned_tokens, *self.stop_tokens, self.pad_token_id)
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise UserError(
                f"Token ids {sorted(set(ids))} must be within the vocabulary of {self.vocab_size}; "
                "correct the ids or vocab_size in config.json."
            )
        if not self.stop_tokens:
            raise UserError(
                "stop_tokens is empty but captions must be able to end; give eos_token_id in "
                "generation_config.json or config.json."
            )

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def banned_tokens(self) -> tuple[int, ...]:
        """Vision tokens, never to be sampled: a caption that holds one breaks the next forward."""
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
          UserError: another architecture, a missing entry, or a setting that is not supported.
        """
        if config.get("model_type") != "qwen2_5_vl":
            raise UserError(
                f"model_type {config.get('model_type')!r} is not supported; give a folder with a "
                "model of type 'qwen2_5_vl'."
            )
        # The published layout keeps the decoder's entries at the top level.
        text = config.get("text_config") or config
        try:
            return _read(config, text, generation or {})
        except KeyError as error:
            raise UserError(
                f"config.json lacks {error.args[0]!r}, which a qwen2_5_vl model needs; take the "
                "config.json that was published with the weights."
            ) from error

    def to_hf(self) -> dict[str, Any]:
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
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": self.tie_word_embeddings,
            **special,
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "vocab_size": text.vocab_size,
                "hidden_size": text.hidden_size,
                "intermediate_size": text.intermediate_size,
                "num_hidden_layers": text.num_hidden_layers,
                "num_attention_heads": text.num_attention_heads,
                "num_key_value_heads": text.num_key_value_heads,
                "hidden_act": "silu",
                "max_position_embeddings": text.max_position_embeddings,
                "initializer_range": self.initializer_range,
                "rms_norm_eps": text.rms_norm_eps,
                "use_sliding_window": False,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": text.rope_theta,
                    "mrope_section": list(text.mrope_section),
                },
                "bos_token_id": None,
                "eos_token_id": self.stop_tokens[0],
                "pad_token_id": self.pad_token_id,
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

    def to_hf_generation(self) -> dict[str, Any]:
        """The content of generation_config.json: what ends a caption and what pads it."""
        return {"eos_token_id": list(self.stop_tokens), "pad_token_id": self.pad_token_id}


def load_config(folder: str | Path) -> Qwen2_5_VLConfig:
    """The configuration in a folder: config.json and, where there is one, generation_config.json.

    Raises:
      UserError: no such folder, no readable config.json, or not a supported model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; give a local folder with config.json and safetensors files."
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} has no config.json; give the folder that holds the model's config.json."
        )
    generation = folder / "generation_config.json"
    return Qwen2_5_VLConfig.from_hf(
        read_json(folder / "config.json"), read_json(generation) if generation.is_file() else None
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      UserError: the file cannot be read or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a JSON file but is not ({error}); restore it.") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} must hold a JSON object, not a {type(content).__name__}; restore it."
        )
    return content


def _read(
    config: Mapping[str, Any], text: Mapping[str, Any], generation: Mapping[str, Any]
) -> Qwen2_5_VLConfig:
    vision = config["vision_config"]
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    vision_rope = vision.get("rope_parameters") or {}
    heads = text["num_attention_heads"]
    _check_supported(config, text, vision, rope)
    stop = generation.get("eos_token_id") or text.get("eos_token_id") or ()
    stop = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
    pads = (generation.get("pad_token_id"), text.get("pad_token_id"), *reversed(stop))
    return Qwen2_5_VLConfig(
        text=DecoderConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_hidden_layers=text["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=text.get("num_key_value_heads") or heads,
            mrope_section=tuple(rope["mrope_section"]),
            rope_theta=float(rope.get("rope_theta") or text.get("rope_theta") or 1000000.0),
            rms_norm_eps=float(text.get("rms_norm_eps", 1e-5)),
            max_position_embeddings=text.get("max_position_embeddings", 32768),
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
            fullatt_block_indexes=tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
            rope_theta=float(vision_rope.get("rope_theta", 10000.0)),
        ),
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        vision_start_token_id=config["vision_start_token_id"],
        vision_end_token_id=config["vision_end_token_id"],
        stop_tokens=stop,
        pad_token_id=next((pad for pad in pads if pad is not None), 0),
        tie_word_embeddings=bool(
            config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
        ),
        initializer_range=float(text.get("initializer_range", 0.02)),
    )


def _check_supported(
    config: Mapping[str, Any],
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    rope: Mapping[str, Any],
) -> None:
    """Settings that would silently change the function computed are refused."""
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    supported = (
        ("hidden_act", text.get("hidden_act", "silu"), ("silu",)),
        ("vision_config.hidden_act", vision.get("hidden_act", "silu"), ("silu",)),
        ("use_sliding_window", text.get("use_sliding_window") or False, (False,)),
        ("rope type", rope_type, ("default", "mrope")),
        (
            "vision_config.out_hidden_size",
            vision.get("out_hidden_size", text["hidden_size"]),
            (text["hidden_size"],),
        ),
    )
    for name, value, allowed in supported:
        if value not in allowed:
            raise UserError(
                f"{name} is {value!r} in config.json but this implementation supports "
                f"{' or '.join(map(repr, allowed))}; use a model with that setting."
            )


def _check_divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    if divisor <= 0 or value <= 0 or value % divisor:
        raise UserError(
            f"{name} is {value} but must be a positive multiple of {divisor_name} = {divisor}; "
            "correct config.json."
        )
