"""Sizes that all families share, read from and written as Hugging Face's config.json."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.models import schema
from balcap_jax.models.decoder.rotary import RopeScaling
from balcap_jax.models.json_files import read_json, shown
from balcap_jax.models.schema import check_entries

__all__ = ["DECODER_SIZES", "DecoderConfig", "PolicyConfig", "read_json"]

# Entries of a published config.json that hold for its folder alone: Python files that are not
# copied, the name of a weight file.
NOT_WRITTEN = ("auto_map", "transformers_weights")

# Entries of a decoder that are numbers above 0 in every config.json.
DECODER_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class DecoderConfig:
    """The language model.

    Attributes:
      mrope_section: rotary frequencies turned by the temporal, height and width position; their sum
        is half of the head size. None: plain rotary embedding, one position per token.
      attention_head_dim: the head size where it is not hidden_size / num_attention_heads.
      attention_bias: the query, key and value projections have a bias (Qwen2 does, Llama does not).
      attention_out_bias, mlp_bias: so has the projection after attention, so have those of the MLP.
      rope_scaling: how the rotary frequencies are stretched; None: not at all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, ...] | None = None
    rope_theta: float = 1000000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 128000
    attention_bias: bool = True
    attention_out_bias: bool = False
    mlp_bias: bool = False
    attention_head_dim: int | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if self.attention_head_dim is None:
            check_divides(
                "num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size
            )
        check_divides(
            "num_key_value_heads",
            self.num_key_value_heads,
            "num_attention_heads",
            self.num_attention_heads,
        )
        check_divides("2 (rotary pairs)", 2, "head size", self.head_dim)
        if self.mrope_section is not None and 2 * sum(self.mrope_section) != self.head_dim:
            raise UserError(
                f"mrope_section {list(self.mrope_section)} must sum to half of the head size "
                f"{self.head_dim}; correct mrope_section in config.json."
            )

    @property
    def head_dim(self) -> int:
        return self.attention_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def position_axes(self) -> int:
        """Positions that each token has: 3 with M-RoPE, else 1."""
        return len(self.mrope_section or (0,))


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ABC):
    """A policy: its decoder, its special tokens, and what each family adds.

    Attributes:
      image_token_id: the placeholder of one image feature.
      stop_tokens: a caption ends with the first of these.
      pad_token_id: fills what is masked; never read by the model's real tokens.
      published: the config.json that this was read from; what is not read of it goes along when the
        policy is written. No part of the policy's identity.
    """

    text: DecoderConfig
    image_token_id: int
    stop_tokens: tuple[int, ...]
    pad_token_id: int
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    published: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

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
        both = set(self.banned_tokens) & set(self.stop_tokens)
        if both:
            raise UserError(
                f"Token ids {sorted(both)} cannot both stand for images and end a caption; correct "
                "the ids in config.json or generation_config.json."
            )

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def banned_tokens(self) -> tuple[int, ...]:
        """Vision tokens, never to be sampled: a caption that holds one breaks the next forward."""
        return (self.image_token_id,)

    @classmethod
    @abstractmethod
    def from_hf(
        cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> "PolicyConfig":
        """From the content of config.json and of generation_config.json."""

    @abstractmethod
    def own_entries(self) -> dict[str, Any]:
        """The content of config.json in the layout of transformers v5, with all that is read."""

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json: that which was published, changed only where it must be.

        Without a published one, or after a change of sizes: see `own_entries`.
        """
        own = self.own_entries()
        if self.published is None:
            return own
        base = {k: copy.deepcopy(v) for k, v in self.published.items() if k not in NOT_WRITTEN}
        if type(self).from_hf(self.published, self.to_hf_generation()) != self:
            base = _merged(_nested(base, own), own)
        return {"architectures": own["architectures"]} | base

    def decoder_to_hf(self) -> dict[str, Any]:
        """The entries of text_config that all families have."""
        text = self.text
        return {
            **{name: getattr(text, name) for name in DECODER_SIZES},
            "num_key_value_heads": text.num_key_value_heads,
            "hidden_act": "silu",
            "initializer_range": self.initializer_range,
            "rms_norm_eps": text.rms_norm_eps,
            "eos_token_id": self.stop_tokens[0],
            "pad_token_id": self.pad_token_id,
        }

    def to_hf_generation(self) -> dict[str, Any]:
        """The content of generation_config.json: what ends a caption and what pads it."""
        return {"eos_token_id": list(self.stop_tokens), "pad_token_id": self.pad_token_id}


def _nested(published: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config.json with the decoder's entries in text_config, as `own` has them."""
    if published.get("text_config"):
        return published
    top = {*own, "vision_config", "text_config", "transformers_version", "dtype", "torch_dtype"}
    text = {name: value for name, value in published.items() if name not in top}
    return {name: value for name, value in published.items() if name in top} | {"text_config": text}


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the entries of `own` in their places."""
    merged = {**base, **own}
    for name, value in own.items():
        # The rotary entries belong together: a factor of another type must not stay.
        both = isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
        if both and name != "rope_parameters":
            merged[name] = _merged(base[name], value)
    if "rope_parameters" in own:
        for name in ("rope_scaling", "rope_theta"):
            merged.pop(name, None)
    return merged


# ---- entries of config.json that the families read alike


def rope_of(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rotary entries, in the layout of transformers v5 or the one before.

    Raises:
      UserError: an entry that cannot be.
    """
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    check_entries("rope_parameters", rope, schema.ROPE)
    low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
    if low is not None and high is not None and not low < high:
        raise UserError(
            f"low_freq_factor is {low} but must be below high_freq_factor {high}; take the "
            "config.json that was published with the weights."
        )
    slow, fast = rope.get("beta_slow") or 1.0, rope.get("beta_fast") or 32.0
    if not slow < fast:
        raise UserError(
            f"beta_slow is {slow} but must be below beta_fast {fast}; take the config.json that "
            "was published with the weights."
        )
    return rope


def decoder_sizes(text: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that `DecoderConfig` names as config.json does.

    Raises:
      KeyError: an entry is missing.
    """
    heads = text["num_attention_heads"]
    # As many key-value heads as query heads is what goes without saying.
    return {name: text[name] for name in DECODER_SIZES} | {
        "num_key_value_heads": text.get("num_key_value_heads") or heads
    }


def ties_embeddings(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether the embedding is also the output head; said at the top level or in text_config."""
    return bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))


def ending_tokens(
    generation: Mapping[str, Any], *configs: Mapping[str, Any], default_stop: int | None = None
) -> tuple[tuple[int, ...], int]:
    """Stop tokens and pad token: those of generation_config.json, else of the first config with
    them. Without a pad token the last stop token pads.
    """
    check_entries("", generation, schema.GENERATION, file="generation_config.json")
    for config in configs:
        check_entries("", config, schema.GENERATION)
    sources = (generation, *configs)
    stops = [source.get("eos_token_id") for source in sources] + [default_stop]
    stop = next((stop for stop in stops if stop not in (None, [])), ())
    stop = tuple(stop) if isinstance(stop, list | tuple) else (stop,)
    pads = [source.get("pad_token_id") for source in sources] + [*reversed(stop), 0]
    return stop, next(pad for pad in pads if pad is not None)


def check_supported(entries: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Settings that would silently change the function computed are refused.

    Args:
      entries: name -> (value in config.json, the values that are implemented).

    Raises:
      UserError: a value is not implemented.
    """
    for name, (value, allowed) in entries.items():
        if value not in allowed:
            raise UserError(
                f"{name} is {shown(value)} in config.json but this implementation supports "
                f"{' or '.join(map(repr, allowed))}; use a model with that setting."
            )


def check_divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    """`value` is a positive multiple of `divisor`, or a UserError says so."""
    if divisor <= 0 or value <= 0 or value % divisor:
        raise UserError(
            f"{name} is {value} but must be a positive multiple of {divisor_name} = {divisor}; "
            "correct config.json."
        )
