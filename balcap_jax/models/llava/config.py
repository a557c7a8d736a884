"""Sizes of a LLaVA-1.5 model, read from and written as Hugging Face's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.models import schema
from balcap_jax.models.config import (
    DecoderConfig,
    PolicyConfig,
    check_supported,
    decoder_sizes,
    ending_tokens,
    rope_of,
    ties_embeddings,
)
from balcap_jax.models.decoder.layers import ACTIVATIONS
from balcap_jax.models.decoder.rotary import RopeScaling
from balcap_jax.models.llava.tower_config import TOWER_CONFIGS, ClipConfig, TowerConfig
from balcap_jax.models.schema import FLAG, NAME, SECTION, TOKEN, check_entries

MODEL_TYPE = "llava"
ARCHITECTURE = "LlavaForConditionalGeneration"

# Published LLaVA folders leave out what equals the defaults of transformers; these are they.
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "initializer_range": 0.02,
}
# Decoders that are Llama's computation, and what each adds to its defaults.
MISTRAL_DEFAULTS = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
QWEN2_DEFAULTS = {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "eos_token_id": None,
    "bos_token_id": None,
}
TEXT_DEFAULTS = {
    "llama": LLAMA_DEFAULTS,
    "mistral": LLAMA_DEFAULTS | MISTRAL_DEFAULTS,
    "qwen2": LLAMA_DEFAULTS | QWEN2_DEFAULTS,
}

_LAYER = schema.whole(-1025, 1024)
LLAVA_RULES = {
    "text_config": schema.optional(SECTION),
    "vision_config": schema.optional(SECTION),
    "image_token_index": schema.optional(TOKEN),
    "image_token_id": schema.optional(TOKEN),
    "image_seq_length": schema.optional(schema.whole(1, 2**24)),
    "vision_feature_layer": schema.either(_LAYER, schema.several(_LAYER, least=1)),
    "vision_feature_select_strategy": NAME,
    "projector_hidden_act": NAME,
    "multimodal_projector_bias": FLAG,
    "tie_word_embeddings": schema.optional(FLAG),
}


@dataclass(frozen=True, kw_only=True)
class LlavaConfig(PolicyConfig):
    """A LLaVA-1.5 policy (arXiv 2310.03744).

    Attributes:
      vision: the tower, of a kind of `TOWER_CONFIGS`.
      vision_feature_layer: whose hidden states are the features: 0 is the input of the first layer,
        -1 the output of the last one. Several layers are concatenated.
      vision_feature_select_strategy: "default" leaves out the class token, "full" keeps it.
      projector_hidden_act, multimodal_projector_bias: of the two-layer projector.
      text_model_type: "llama", "mistral" or "qwen2"; one computation under three names.
      bos_token_id: kept for the files; the tokenizer adds it.
    """

    vision: TowerConfig
    vision_feature_layer: int | tuple[int, ...] = -2
    vision_feature_select_strategy: str = "default"
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    text_model_type: str = "llama"
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bos_token_id is not None and not 0 <= self.bos_token_id < self.vocab_size:
            raise UserError(
                f"bos_token_id {self.bos_token_id} must be within the vocabulary of "
                f"{self.vocab_size}; correct the id or vocab_size in config.json."
            )
        count = self.vision.num_hidden_layers
        asked = self.vision_feature_layer
        if (
            not self.feature_layers
            or not 0 <= min(self.feature_layers) <= max(self.feature_layers) <= count
        ):
            raise UserError(
                f"vision_feature_layer {asked} must name hidden states of a tower with {count} "
                f"layers, {-count - 1} to {count}; correct it in config.json."
            )
        check_supported(
            {
                "vision_feature_select_strategy": (
                    self.vision_feature_select_strategy,
                    ("default", "full"),
                ),
                "projector_hidden_act": (self.projector_hidden_act, tuple(ACTIVATIONS)),
            }
        )

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """`vision_feature_layer` as numbers from 0, one or several."""
        asked = self.vision_feature_layer
        asked = (asked,) if isinstance(asked, int) else asked
        states = self.vision.num_hidden_layers + 1
        return tuple(layer if layer >= 0 else states + layer for layer in asked)

    @property
    def image_tokens(self) -> int:
        """Features, and so placeholders, of each image."""
        return self.vision.patches + (self.vision_feature_select_strategy == "full")

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> "LlavaConfig":
        """Reads config.json as published (most of text_config left out) or of transformers v5.

        Args:
          config: the content of config.json.
          generation: the content of generation_config.json; its stop tokens come first.

        Raises:
          UserError: a setting that is not supported or does not fit the others.
        """
        check_entries("", config, LLAVA_RULES)
        asked = config.get("text_config") or {}
        vision = config.get("vision_config") or {}
        model_type = asked.get("model_type", "llama")
        vision_type = vision.get("model_type", ClipConfig.model_type)
        check_supported(
            {
                "text_config.model_type": (model_type, tuple(TEXT_DEFAULTS)),
                "vision_config.model_type": (vision_type, tuple(TOWER_CONFIGS)),
            }
        )
        text = {**TEXT_DEFAULTS[model_type], **asked}
        layer = config.get("vision_feature_layer", -2)
        generation = generation or {}
        default = TEXT_DEFAULTS[model_type]["eos_token_id"]
        stop, pad = ending_tokens(generation, asked, config, default_stop=default)
        image_token = config.get("image_token_index", config.get("image_token_id"))
        return cls(
            text=_decoder(text, model_type),
            vision=TOWER_CONFIGS[vision_type].from_hf(vision),
            image_token_id=32000 if image_token is None else image_token,
            vision_feature_layer=layer if isinstance(layer, int) else tuple(layer),
            vision_feature_select_strategy=config.get("vision_feature_select_strategy", "default"),
            projector_hidden_act=config.get("projector_hidden_act", "gelu"),
            multimodal_projector_bias=config.get("multimodal_projector_bias", True),
            stop_tokens=stop,
            pad_token_id=pad,
            text_model_type=model_type,
            bos_token_id=text["bos_token_id"],
            tie_word_embeddings=ties_embeddings(config, asked),
            initializer_range=float(text["initializer_range"]),
            published=config,
        )

    def own_entries(self) -> dict[str, Any]:
        text, vision, layer = self.text, self.vision, self.vision_feature_layer
        rope = {"rope_type": "default"} if text.rope_scaling is None else text.rope_scaling.to_hf()
        decoder = {
            "model_type": self.text_model_type,
            **self.decoder_to_hf(),
            "head_dim": text.head_dim,
            "rope_parameters": {"rope_theta": text.rope_theta, **rope},
            "tie_word_embeddings": self.tie_word_embeddings,
            "bos_token_id": self.bos_token_id,
        }
        decoder |= {
            "llama": {"attention_bias": text.attention_bias, "mlp_bias": text.mlp_bias},
            "mistral": {"sliding_window": None},
            "qwen2": {"use_sliding_window": False},
        }[self.text_model_type]
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "image_token_index": self.image_token_id,
            "image_seq_length": self.image_tokens,
            "projector_hidden_act": self.projector_hidden_act,
            "multimodal_projector_bias": self.multimodal_projector_bias,
            "vision_feature_layer": layer if isinstance(layer, int) else list(layer),
            "vision_feature_select_strategy": self.vision_feature_select_strategy,
            "tie_word_embeddings": self.tie_word_embeddings,
            "text_config": decoder,
            "vision_config": {"initializer_range": self.initializer_range, **vision.to_hf()},
        }


def _decoder(text: Mapping[str, Any], model_type: str) -> DecoderConfig:
    """`text` is text_config with the defaults of its `model_type` filled in."""
    check_entries("text_config", text, schema.DECODER)
    window = text.get("sliding_window") if model_type == "mistral" else None
    check_supported(
        {
            "text_config.hidden_act": (text["hidden_act"], ("silu",)),
            "sliding_window": (window, (None,)),
            "use_sliding_window": (text.get("use_sliding_window") or False, (False,)),
        }
    )
    rope, heads, context = (
        rope_of(text),
        text["num_attention_heads"],
        text["max_position_embeddings"],
    )
    partial = rope.get("partial_rotary_factor") or text.get("partial_rotary_factor") or 1.0
    check_supported({"partial_rotary_factor": (partial, (1.0,))})
    try:
        scaling = RopeScaling.from_hf(rope, context=context)
    except KeyError as error:
        raise UserError(
            f"The rope scaling in config.json lacks {error.args[0]!r}; take the config.json that "
            "was published with the weights."
        ) from error
    size = text.get("head_dim")
    # Not settings but the definition of the other two.
    bias = {"mistral": False, "qwen2": True}.get(model_type, bool(text["attention_bias"]))
    return DecoderConfig(
        **decoder_sizes(text),
        rope_theta=float(rope.get("rope_theta") or text["rope_theta"]),
        rms_norm_eps=float(text["rms_norm_eps"]),
        attention_bias=bias,
        attention_out_bias=bias and model_type == "llama",
        mlp_bias=bool(text["mlp_bias"]) and model_type == "llama",
        attention_head_dim=None if not size or size * heads == text["hidden_size"] else size,
        rope_scaling=scaling,
    )
