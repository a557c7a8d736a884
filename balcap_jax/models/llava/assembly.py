"""A LLaVA from a tower, a decoder and a projector: its config, and its weights on the host."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.hf.weight_files import DTYPES, Stored, check_finite
from balcap_jax.models.hf.weights import check_tensors, params_of, stored_shapes
from balcap_jax.models.llava.config import ARCHITECTURE, MODEL_TYPE, LlavaConfig
from balcap_jax.models.llava.parts import (
    DECODER,
    PROJECTOR,
    TOWER,
    DecoderPart,
    ProjectorPart,
    TowerPart,
)
from balcap_jax.models.llava.policy import Llava
from balcap_jax.models.llava.positions import resize_positions

EMBEDDING, HEAD = f"{DECODER}model.embed_tokens.weight", f"{DECODER}lm_head.weight"
# Of the folder alone; what a text_config of a LLaVA does not have.
_DROPPED = ("architectures", "auto_map", "transformers_version", "_name_or_path")


class Tokens(NamedTuple):
    """What the tokenizer with its placeholder says.

    Attributes:
      image: the id of the placeholder of one image feature.
      words: ids below this one are of the decoder's own tokenizer.
      stops: what ends a caption, the first of them is learned.
      pad: fills what is masked.
    """

    image: int
    words: int
    stops: tuple[int, ...]
    pad: int


class Features(NamedTuple):
    """Which features the projector reads; names as in `LlavaConfig`."""

    layer: int
    strategy: str
    image_size: int


def assembled_config(
    tower: TowerPart,
    decoder: DecoderPart,
    projector: ProjectorPart | None,
    *,
    tokens: Tokens,
    features: Features,
) -> LlavaConfig:
    """The sizes of the whole.

    Raises:
      UserError: an entry of a part that is not supported, or sizes that do not fit each other.
    """
    text = {k: v for k, v in decoder.entries.items() if k not in _DROPPED}
    text["vocab_size"] = max(_vocabulary(decoder), tokens.image + 1)
    try:
        vision = dataclasses.replace(
            tower.config, image_size=features.image_size or tower.config.image_size
        )
    except UserError as error:
        raise UserError(f"--image-size {features.image_size}: {error}") from error
    std = tower.entries.get("initializer_range", 0.02)
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "image_token_index": tokens.image,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": features.layer,
        "vision_feature_select_strategy": features.strategy,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
        "text_config": text,
        "vision_config": {"initializer_range": std, **vision.to_hf()},
    }
    if projector is not None:
        _check_projector(projector, features)
        config["projector_hidden_act"] = projector.config.projector_hidden_act
        config["multimodal_projector_bias"] = projector.config.multimodal_projector_bias
    generation = {"eos_token_id": list(tokens.stops), "pad_token_id": tokens.pad}
    try:
        made = LlavaConfig.from_hf(config, generation)
    except KeyError as error:
        raise UserError(
            f"{decoder.folder / 'config.json'} lacks {error.args[0]!r}; take the config.json that "
            "was published with the weights."
        ) from error
    config["image_seq_length"] = made.image_tokens
    return dataclasses.replace(made, published=config)


def assembled_params(
    policy: Llava,
    tower: TowerPart,
    decoder: DecoderPart,
    projector: ProjectorPart | None,
    *,
    tokens: Tokens,
    seed: int,
    dtype: str,
) -> Params:
    """The weights, numpy arrays in `dtype`.

    The row of a placeholder that the decoder's tokenizer lacked is the mean of the rows of all
    words, in the embedding and in an untied head. A new projector is uniform within
    1 / sqrt(inputs), as torch begins it for LLaVA, its biases 0.

    Raises:
      UserError: a weight is missing, of another shape or no number, or the parts do not fit.
    """
    needed = stored_shapes(policy)
    own, table = _own_tables(policy, tower, decoder)
    for part, below in ((tower, TOWER), (decoder, DECODER)):
        wanted = {key: shape for key, shape in needed.items() if key.startswith(below)}
        check_tensors(part.folder, policy, part.tensors, wanted | own.get(below, {}))
    if projector is not None:
        _check_widths(projector, policy.config)
    stored = {**tower.tensors, **decoder.tensors, **(projector.tensors if projector else {})}
    fresh = {} if projector else _new_projector(needed, seed)

    def read(key: str) -> np.ndarray:
        if key in fresh:
            return fresh[key].astype(jnp.dtype(dtype))
        tensor = _read(stored[key])
        if key == table:
            tensor = resize_positions(tensor, policy.config.vision.side)
        if key in (EMBEDDING, HEAD):
            tensor = _with_placeholder(tensor, needed[key][0], tokens)
        return tensor.astype(jnp.dtype(dtype), copy=False)

    return params_of(policy, read)


def stored_dtype(decoder: DecoderPart) -> str:
    """The dtype that most of the decoder is stored in; float32 for float64."""
    embedding = decoder.tensors.get(EMBEDDING)
    found = DTYPES[embedding.dtype].name if embedding is not None else "float32"
    return "float32" if found == "float64" else found


def _vocabulary(decoder: DecoderPart) -> int:
    """Rows of the decoder's embedding: as its config says, else as they are."""
    embedding = decoder.tensors.get(EMBEDDING)
    rows = 0 if embedding is None else embedding.shape[0]
    size = decoder.entries.get("vocab_size", rows)
    if type(size) is not int or size < 1:
        raise UserError(
            f"vocab_size is {size!r} in {decoder.folder / 'config.json'} but must be a whole "
            "number above 0; take the config.json that was published with the weights."
        )
    return size


def _own_tables(
    policy: Llava, tower: TowerPart, decoder: DecoderPart
) -> tuple[dict[str, dict[str, tuple[int, ...]]], str]:
    """Shapes in the parts' files of what is larger or smaller in the whole; the position table."""
    needed = stored_shapes(policy)
    words = {
        key: (_vocabulary(decoder), *needed[key][1:]) for key in (EMBEDDING, HEAD) if key in needed
    }
    table = TOWER + tower.kind.published + tower.kind.positions
    *batch, _, width = needed[table]
    return {DECODER: words, TOWER: {table: (*batch, tower.config.patches + 1, width)}}, table


def _read(stored: Stored) -> np.ndarray:
    tensor = stored.read()
    wide = tensor if tensor.dtype.itemsize <= 4 else tensor.astype(np.float32)
    check_finite(np.ascontiguousarray(wide), stored)
    return wide


def _with_placeholder(table: np.ndarray, rows: int, tokens: Tokens) -> np.ndarray:
    """An embedding of `rows` rows, in which a new placeholder has the mean of all words."""
    if tokens.image < tokens.words:  # the tokenizer had it
        return table
    mean = table[: tokens.words].astype(np.float32).mean(axis=0).astype(table.dtype)
    added = np.broadcast_to(mean, (rows - len(table), table.shape[1]))
    table = np.concatenate([table, added])
    table[tokens.image] = mean
    return table


def _new_projector(needed: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for key in sorted(key for key in needed if key.startswith(PROJECTOR)):
        shape = needed[key]
        bound = shape[-1] ** -0.5 if key.endswith(".weight") else 0.0
        made[key] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return made


def _check_projector(projector: ProjectorPart, features: Features) -> None:
    """The projector was made for the features that it shall read."""
    own = {
        "vision_feature_layer": (projector.config.vision_feature_layer, features.layer),
        "vision_feature_select_strategy": (
            projector.config.vision_feature_select_strategy,
            features.strategy,
        ),
    }
    for name, (has, asked) in own.items():
        if has != asked:
            raise UserError(
                f"--projector {projector.folder} was made for {name}={has!r} and not for "
                f"{asked!r}; set --{name.replace('_', '-')} {has} or take another projector."
            )


def _check_widths(projector: ProjectorPart, config: LlavaConfig) -> None:
    theirs: Any = projector.config
    has = (theirs.vision.hidden_size * len(theirs.feature_layers), theirs.text.hidden_size)
    wants = (config.vision.hidden_size * len(config.feature_layers), config.text.hidden_size)
    if has != wants:
        raise UserError(
            f"--projector {projector.folder} leads from width {has[0]} to {has[1]}, but the tower "
            f"has features of width {wants[0]} and the decoder {wants[1]}; give the tower and the "
            "decoder that it was trained with, or mlp2x for a new projector."
        )
