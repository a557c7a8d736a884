"""What every family shares: the decoder, and prompts that a group of completions has in common.

A family adds its vision tower (`Qwen2_5_VL`, `Llava`). The definition is static and hashable;
`params`, a nested dict with Hugging Face's names for the submodules, is the only state. Layers are
stacked on a leading axis and scanned; decoding (`decoding`) loops over a list of layers instead,
because a scanned cache is copied every step.

Letters: b batch, g group, t and c tokens, p prefix, s patches, m image features, d width,
v vocabulary; r rows and n places of packed tokens, see `packing`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from balcap_jax.errors import UserError
from balcap_jax.models.attention.backends import Attention, choose
from balcap_jax.models.attention.plain import KV, attend_causal, join_group, parts_of_group
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.decoder.decode_step import (
    Cache,
    DecodeWeights,
    LayerWeights,
    Rotation,
    decode_layer,
    layer_weights,
    rms_norm,
)
from balcap_jax.models.decoder.layer import DecoderLayer
from balcap_jax.models.decoder.layers import Definition, Params, RMSNorm
from balcap_jax.models.decoder.lora import LEAVES, Lora, merge_adapters
from balcap_jax.models.decoder.matmul import matmul_float32
from balcap_jax.models.decoder.remat import check_remat, rematerialise
from balcap_jax.models.decoder.rotary import axis_angles, rotary_frequencies, text_angles
from balcap_jax.models.decoder.slots import Slots
from balcap_jax.models.hf.inputs import PaddedPrompts, padded_prompts
from balcap_jax.models.inputs import AnyArray, ImagePatches, Prompts
from balcap_jax.models.layout import Layout
from balcap_jax.models.packing import Packing
from balcap_jax.parallel.sharding import (
    constrain_images,
    constrain_stream,
    gather_for_decoding,
    scatter_gradients,
)

DECODER = ("language_model", "lm_head")  # paths in `params`
RESIDUALS = ("float32", "bfloat16")  # dtypes of the residual stream
MOST_BY_LAYER = 8  # layers that are not compiled as a loop, where that is faster


@dataclass(frozen=True)
class VisionLanguagePolicy(ABC):
    """A policy's computation, without weights.

    Attributes:
      config: sizes and token ids.
      dtype: of matmuls and activations; weights keep the dtype they have in `params`. Within norms,
        rotary angles, softmax and logits all is float32 always.
      residual: dtype of the decoder's residual stream and so of the sums between devices that are
        added to it, a name of RESIDUALS. In bfloat16 it is rounded twice per layer
        (docs/checkpoints.md has what that costs).
      attention: the backend, by a name of `attention_backends`; or the backend itself, which is not
        checked against this machine: to compile for another one, or to test.
      remat: what each layer keeps for the backward pass, by a name of `remat.POLICIES`.
      lora: how the adapters in `params` count, where there are any.
    """

    config: PolicyConfig
    _: KW_ONLY
    dtype: DTypeLike = jnp.float32
    attention: str | Attention = "auto"
    remat: str = "none"
    residual: str = "float32"
    lora: Lora | None = None

    def __post_init__(self) -> None:
        check_remat(self.remat)
        if self.residual not in RESIDUALS:
            raise UserError(
                f"residual={self.residual!r} must be one of {', '.join(RESIDUALS)}; choose one."
            )
        if self.attention not in ("auto", "xla"):  # they need a look at the devices, and always fit
            _ = self.attends

    @cached_property
    def layout(self) -> Layout:
        """How images and tokens are laid out for this policy."""
        return self.layout_type(self.config)

    # ---- what a family adds

    layout_type: ClassVar[type[Layout]]
    # Paths in `params` of all that makes image features: frozen, the features of a rollout serve
    # its update.
    vision_paths: ClassVar[tuple[str, ...]]
    # Parts that settings name, "projector", "tower" and "decoder" -> paths in `params`.
    parts: ClassVar[Mapping[str, tuple[str, ...]]]

    @property
    @abstractmethod
    def vision_definitions(self) -> dict[str, Definition]:
        """The modules that make image features, by their path in `params`."""

    @property
    @abstractmethod
    def vision_stacks(self) -> dict[str, int]:
        """Path in `params` -> number of layers, for the stacked ones of `vision_definitions`."""

    @abstractmethod
    def image_features(self, params: Params, images: ImagePatches) -> Float[Array, "b m d"]:
        """`encode_images` of at least one patch."""

    @cached_property
    def attends(self) -> Attention:
        """The attention that everything but decoding and `token_logits` computes with.

        Raises:
          UserError: the backend that `attention` names cannot compute this.
        """
        if isinstance(self.attention, Attention):
            return self.attention
        sizes = (self.config.text.head_dim, self.config.vision.head_dim)
        return choose(self.attention, dtype=self.dtype, head_dims=sizes)

    # ---- weights

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """The modules by their path in `params`."""
        return _definitions_of(self)

    @property
    def stacks(self) -> dict[str, int]:
        """Path in `params` -> number of layers, for modules with a leading axis of layers."""
        return {**self.vision_stacks, "language_model.layers": self.config.text.num_hidden_layers}

    @property
    def module_options(self) -> dict[str, Any]:
        """What every module with weights is made with."""
        return {"dtype": self.dtype, "std": self.config.initializer_range}

    def init(self, key: PRNGKeyArray) -> Params:
        """Fresh float32 weights: normal(initializer_range), norms one, biases zero."""
        text = self.config.text
        keys = iter(jax.random.split(key, len(self.definitions) + 2))
        normal = nnx.initializers.normal(self.config.initializer_range)
        params: Params = {}

        def place(path: str) -> None:
            *parents, last = path.split(".")
            parent = params
            for name in parents:
                parent = parent.setdefault(name, {})
            part, count = self.definitions[path], self.stacks.get(path)
            key = next(keys)
            parent[last] = part.init(key) if count is None else part.init_stacked(key, count)

        for path in self.vision_definitions:
            place(path)
        embedding = normal(next(keys), (text.vocab_size, text.hidden_size))
        params["language_model"] = {"embed_tokens": {"embedding": embedding}}
        place("language_model.layers")
        place("language_model.norm")
        if not self.config.tie_word_embeddings:
            head = normal(next(keys), (text.hidden_size, text.vocab_size)).T
            params["lm_head"] = {"weight": head}
        return params

    # ---- vision

    def encode_images(self, params: Params, images: ImagePatches) -> Float[Array, "b m d"]:
        """Features of all images, in the order of their placeholders; none of prompts without any.

        Features of padding patches are finite and meaningless; no placeholder points at them.
        """
        batch, patches, _ = images.pixels.shape
        if patches == 0:
            return jnp.zeros((batch, 0, self.config.text.hidden_size), self.dtype)
        return constrain_stream(self.image_features(params, constrain_images(images)))

    # ---- the plain full forward

    def logits(self, params: Params, **inputs: Any) -> Float[Array, "b t v"]:
        """Logits of the next token at every position, float32; those of padding mean nothing.

        Args:
          inputs: the arrays that Hugging Face's processor of this model returns, under its names:
            input_ids [b t], attention_mask [b t], pixel_values, image_grid_thw (Qwen2.5-VL).

        Raises:
          UserError: see `padded_prompts`.
        """
        return _logits(self, params, padded_prompts(self.layout, inputs))

    def token_logits(
        self,
        params: Params,
        tokens: Int[AnyArray, "b t"],
        positions: Int[AnyArray, "b axes t"],
        mask: Bool[AnyArray, "b t"],
        features: Float[Array, "b m d"],
    ) -> Float[Array, "b t v"]:
        """`logits` inside jit, of encoded images: the reference for all faster paths."""
        x, _ = self._run_prefix(
            params,
            tokens,
            positions,
            mask,
            features,
            attend_causal=attend_causal,
            count=self.config.text.num_hidden_layers,
        )
        return self.project(params, self._norm(params, x))

    def project(self, params: Params, hidden: Float[Array, "*b d"]) -> Float[Array, "*b v"]:
        """Logits in float32 of final-norm hidden states."""
        return self.project_by(self.head(params), hidden)

    def head(self, params: Params) -> Float[Array, "v d"]:
        """The weight that `project` multiplies with."""
        if self.config.tie_word_embeddings:
            return params["language_model"]["embed_tokens"]["embedding"]
        return params["lm_head"]["weight"]

    @property
    def head_path(self) -> str:
        """The path in `params` of `head`."""
        tied = self.config.tie_word_embeddings
        return "language_model/embed_tokens/embedding" if tied else "lm_head/weight"

    def project_by(
        self, weight: Float[Array, "v d"], hidden: Float[Array, "*b d"]
    ) -> Float[Array, "*b v"]:
        """`project` with the weight at hand."""
        rows = hidden.astype(self.dtype).reshape(-1, hidden.shape[-1])
        weight = weight.astype(self.dtype)
        return matmul_float32(rows, weight).reshape(*hidden.shape[:-1], len(weight))

    # ---- a group shares its prompt

    def completion_hidden(
        self,
        params: Params,
        prompts: Prompts,
        features: Float[Array, "b m d"],
        completions: Int[AnyArray, "b g c"],
        packing: Packing | None = None,
    ) -> Float[Array, "b g c d"] | Float[Array, "r own d"]:
        """Final-norm hidden states of G completions; the t-th predicts the completion's token t.

        The inputs are [last_token, completions[..., :-1]]. Prefix and completions go through the
        layers as one sequence of p + g * c tokens, of which attention alone knows the parts: a
        layer's prefix keys and values serve all G completions and are not kept. Equal to the
        forward of each prompt joined with each completion, gradients included.

        Args:
          packing: of the real tokens of these prompts and completions; the rest is not computed,
            and the hidden states stay packed.
        """
        completions = jnp.asarray(completions)
        B, G, C = completions.shape
        first = jnp.broadcast_to(jnp.asarray(prompts.last_token)[:, None, None], (B, G, 1))
        inputs = jnp.concatenate([first.astype(completions.dtype), completions[..., :-1]], axis=-1)
        positions = jnp.asarray(prompts.last_position)[:, None, None] + jnp.arange(C)[None, None]
        positions = jnp.broadcast_to(positions, (B, G, C))
        prefix_mask = jnp.asarray(prompts.mask)
        angles = join_group(self.prompt_angles(prompts.positions), self._text_angles(positions))
        if packing is not None:
            angles = packing.pack(angles)

        def body(x, weights):
            layer = self.definitions["language_model.layers"](scatter_gradients(weights))
            q, kv = layer.project(x, angles, self.attends.rotate)
            if packing is None:
                attended = self.attends.group(q, kv, prefix_mask, G)
            else:
                attended = self.attends.packed(q, kv, prefix_mask, packing)
            return layer.finish(x, attended), None

        if packing is None:
            prompt = self._embed_prompt(params, prompts.tokens, features)
            x = join_group(prompt, self._embed(params, inputs))
        else:
            x = self._embed_packed(params, prompts.tokens, inputs, features, packing)
        layers = params["language_model"]["layers"]
        x, _ = jax.lax.scan(
            rematerialise(self.remat, body), constrain_stream(x), layers, unroll=self._by_layer
        )
        if packing is None:
            own = parts_of_group(x, prefix_mask.shape[1], G)[1]
        else:
            own = x[:, : packing.room.own]
        return self._norm(params, own)

    # ---- rollout

    def prefill(self, params: Params, prompts: Prompts, features: Float[Array, "b m d"]) -> Cache:
        """Keys and values of the prefix, per layer. Of the last layer nothing else is computed."""
        layers, last = params["language_model"]["layers"], self.config.text.num_hidden_layers - 1
        x, stacked = self._run_prefix(
            params,
            prompts.tokens,
            prompts.positions,
            prompts.mask,
            features,
            attend_causal=self.attends.causal,
            count=last,
        )
        layer = self.definitions["language_model.layers"](take_layer(layers, last))
        _, of_last = layer.project(x, self.prompt_angles(prompts.positions), self.attends.rotate)
        per_layer = [*(take_layer(stacked, i) for i in range(last)), of_last]
        return tuple(Slots.of(KV(*kv)) for kv in per_layer)

    def init_cache(self, batch: int, group: int, length: int) -> Cache:
        """An empty cache for `group` completions of `length` tokens for each of `batch` prompts."""
        text = self.config.text
        empty = Slots.empty(batch * group, length, text, self.dtype)
        return (empty,) * text.num_hidden_layers

    def decode_weights(self, params: Params) -> DecodeWeights:
        """The decoder's weights as `decode_step` takes them, made once per rollout; adapters are
        merged into them.
        """

        def narrow(path, x):
            return x if path[-1].key in ("scale", *LEAVES) else x.astype(self.dtype)

        decoder = {name: params[name] for name in ("language_model", "lm_head") if name in params}
        decoder = jax.tree_util.tree_map_with_path(narrow, decoder)
        layers = decoder["language_model"].pop("layers")
        decoder, text = gather_for_decoding(decoder), self.config.text
        model = decoder["language_model"]

        def layer(i: int) -> LayerWeights:
            one = gather_for_decoding({"layers": take_layer(layers, i)})
            return layer_weights(merge_adapters(one["layers"], self.lora), text)

        return DecodeWeights(
            embedding=model["embed_tokens"]["embedding"],
            layers=tuple(layer(i) for i in range(text.num_hidden_layers)),
            norm=model["norm"]["scale"],
            head=self.head(decoder),
        )

    def decode_step(
        self,
        weights: DecodeWeights,
        prompt_cache: Cache,
        prompt_mask: Bool[AnyArray, "b p"],
        cache: Cache,
        tokens: Int[AnyArray, "b g"],
        positions: Int[AnyArray, "b g"],
        step: Int[Array, ""] | int,
    ) -> tuple[Float[Array, "v n"], Cache]:
        """One token of every completion.

        Args:
          prompt_cache: the result of `prefill`.
          prompt_mask: `Prompts.mask`.
          cache: slots before `step` are filled; slot `step` is written, later ones are not read.
          tokens: inputs; at step 0 `Prompts.last_token`, then what was sampled.
          positions: `Prompts.last_position + step`.
          step: the slot.

        Returns:
          Logits of the next token, float32, a column per completion, n = b * g; and the cache with
          slot `step`.
        """
        text = self.config.text
        rotation = Rotation.of(self._text_angles(jnp.asarray(positions).reshape(-1)).T)
        x = weights.embedding[jnp.asarray(tokens).reshape(-1)].astype(self.residual).T
        updated = []
        # Python loop, not scan: a scanned cache is copied every step.
        for layer, prompt, past in zip(weights.layers, prompt_cache, cache, strict=True):
            x, past = decode_layer(
                layer, x, rotation, prompt, jnp.asarray(prompt_mask), past, step, config=text
            )
            updated.append(past)
        x = rms_norm(x, weights.norm, text.rms_norm_eps).astype(self.dtype)
        return jnp.matmul(weights.head, x, preferred_element_type=jnp.float32), tuple(updated)

    # ---- parts

    def _run_prefix(
        self,
        params: Params,
        tokens: Any,
        positions: Any,
        mask: Any,
        features: Array,
        *,
        attend_causal: Callable,
        count: int,
    ) -> tuple[Float[Array, "b t d"], KV]:
        """Hidden states after the first `count` layers, and keys and values stacked over these."""
        layers = params["language_model"]["layers"]
        angles = self.prompt_angles(positions)
        mask = jnp.asarray(mask)

        def body(x, i):
            layer = self.definitions["language_model.layers"](take_layer(layers, i))
            q, kv = layer.project(x, angles, self.attends.rotate)
            return layer.finish(x, attend_causal(q, *kv, mask)), kv

        x = constrain_stream(self._embed_prompt(params, tokens, features))
        return jax.lax.scan(rematerialise(self.remat, body), x, jnp.arange(count))

    @property
    def _by_layer(self) -> bool:
        """Whether the layers of an update are compiled one after the other, not as a loop.

        A loop copies what it keeps for the backward pass into arrays of all layers and out again: a
        sixth of an update on a CPU. Compiling takes time by their number, and where something is
        computed again, only a loop keeps the compiler from keeping it.
        """
        few = self.config.text.num_hidden_layers <= MOST_BY_LAYER
        return few and self.remat == "none" and self.attends.by_layer

    def _embed(self, params: Params, tokens: Int[Array, "*b t"]) -> Float[Array, "*b t d"]:
        """The residual stream's beginning; rounded to `dtype` whatever the weights are, so that the
        sampler, which keeps them so, and the update begin alike.
        """
        embedding = params["language_model"]["embed_tokens"]["embedding"]
        return embedding[tokens].astype(self.dtype).astype(self.residual)

    def _embed_prompt(
        self, params: Params, tokens: Int[AnyArray, "b t"], features: Float[Array, "b m d"]
    ) -> Float[Array, "b t d"]:
        """Token embeddings with the i-th image feature at the i-th placeholder.

        A gather, not a scatter: its cost does not depend on where the placeholders are.
        """
        tokens = jnp.asarray(tokens)
        return self._embed_mixed(params, tokens, self._features_at(tokens), features)

    def _embed_packed(
        self,
        params: Params,
        prompts: Int[AnyArray, "b p"],
        inputs: Int[Array, "b g c"],
        features: Float[Array, "b m d"],
        packing: Packing,
    ) -> Float[Array, "r n d"]:
        """Prompts with their image features, and inputs of completions, packed before they are
        embedded.
        """
        B, rows, count = len(prompts), len(packing.slots), features.shape[1]
        prompts = jnp.asarray(prompts)
        at = self._features_at(prompts)
        of_prompt = (jnp.arange(B, dtype=at.dtype) % (B // rows) * count)[:, None]
        at = jnp.where(at < 0, 0, at + of_prompt + 1)  # counted from 1, as padding is 0
        at = join_group(at, jnp.zeros_like(inputs))
        tokens = packing.pack(join_group(prompts.astype(inputs.dtype), inputs))
        features = features.reshape(rows, -1, features.shape[-1])
        return self._embed_mixed(params, tokens, packing.pack(at) - 1, features)

    def _features_at(self, tokens: Int[Array, "b t"]) -> Int[Array, "b t"]:
        """Which image feature of its prompt stands at each token, -1 at words."""
        is_image = tokens == self.config.image_token_id
        return jnp.where(is_image, jnp.cumsum(is_image, axis=1, dtype=jnp.int32) - 1, -1)

    def _embed_mixed(
        self,
        params: Params,
        tokens: Int[Array, "b t"],
        at: Int[Array, "b t"],
        features: Float[Array, "b m d"],
    ) -> Float[Array, "b t d"]:
        """Embeddings of tokens; where `at` is not -1, that feature instead."""
        words = self._embed(params, tokens)
        if features.shape[1] == 0:
            return words
        index = jnp.clip(at, 0, features.shape[1] - 1)
        placed = jnp.take_along_axis(features.astype(self.dtype), index[..., None], axis=1)
        return jnp.where((at >= 0)[..., None], placed.astype(words.dtype), words)

    def _norm(self, params: Params, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.definitions["language_model.norm"](params["language_model"]["norm"])(x)

    @cached_property
    def _frequencies(self) -> np.ndarray:
        text = self.config.text
        return rotary_frequencies(text.head_dim, text.rope_theta, text.rope_scaling)

    def prompt_angles(self, positions: Int[AnyArray, "b axes t"]) -> Float[Array, "b t half"]:
        """Rotary angles of tokens with one position per axis."""
        text = self.config.text
        section = text.mrope_section or (text.head_dim // 2,)
        return axis_angles(positions, section=section, frequencies=self._frequencies)

    def _text_angles(self, positions: Int[AnyArray, "*b t"]) -> Float[Array, "*b t half"]:
        return text_angles(positions, frequencies=self._frequencies)


@lru_cache(maxsize=8)  # flax takes a tenth of a second to describe them; equal policies share them
def _definitions_of(policy: VisionLanguagePolicy) -> dict[str, Definition]:
    text = policy.config.text
    definitions = {
        **policy.vision_definitions,
        "language_model.layers": Definition(
            lambda rngs: DecoderLayer(text, **policy.module_options, rngs=rngs)
        ),
        "language_model.norm": Definition(
            lambda _: RMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        ),
    }
    for definition in definitions.values():
        definition.lora = policy.lora
    return definitions


@partial(jax.jit, static_argnames="policy")
def _logits(policy: VisionLanguagePolicy, params: Params, prompts: PaddedPrompts) -> Array:
    features = policy.encode_images(params, prompts.images)
    return policy.token_logits(params, prompts.tokens, prompts.positions, prompts.mask, features)


def take_layer(stacked: Any, i: int | Int[Array, ""]) -> Any:
    """The weights of one layer of a stack."""
    return jax.tree.map(lambda x: x[i], stacked)
