"""The kinds of vision tower that a LLaVA can have, one record each."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from balcap_jax.models.decoder.layers import LayerNorm
from balcap_jax.models.llava.clip import ClipEmbeddings, ClipLayer
from balcap_jax.models.llava.dinov2 import Dinov2Embeddings, Dinov2Layer
from balcap_jax.models.llava.tower_config import ClipConfig, Dinov2Config, TowerConfig


class Origin(NamedTuple):
    """A kind of folder that a tower can be taken from.

    Attributes:
      section: of config.json that has the tower's sizes; "": its top level.
      defaults: what transformers takes there for sizes that are left out.
    """

    section: str
    defaults: Mapping[str, Any]


class Tower(NamedTuple):
    """One kind of tower: modules, names in files, and where it is found alone.

    A tower is `entry`, one after the other, and then `layers`, a stack of modules that are called
    with the tokens of the images and the attention.

    Attributes:
      config: its sizes.
      modules: path below vision_tower -> what makes the module of `(config, rngs, **options)`.
      entry: the modules before the layers.
      layers: the stack.
      published: what its names begin with in a LLaVA folder, below vision_tower.
      inner: parts of names as transformers v5 has them -> as they are published.
      convolution: the patch embedding.
      positions: the table of positions, [class token, patches in rows] along its last axis but one.
      origins: by the model_type of a folder.
      prefixes: of the tower's names in such folders, the longest first; the last may be "".
      left: beginnings of names there that are no part of the tower.
      processor: preprocessor_config.json where the tower's folder has none.
    """

    config: type[TowerConfig]
    modules: Mapping[str, Callable[..., nnx.Module]]
    entry: tuple[str, ...]
    layers: str
    published: str
    inner: tuple[tuple[str, str], ...]
    convolution: str
    positions: str
    origins: Mapping[str, Origin]
    prefixes: tuple[str, ...]
    left: tuple[str, ...]
    processor: Mapping[str, Any]


def _norm(config: TowerConfig, *, rngs: nnx.Rngs, **_: Any) -> LayerNorm:
    del rngs  # it has no random weights
    return LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


_CLIP_ALONE = ClipConfig.defaults | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 512,
}

CLIP = Tower(
    config=ClipConfig,
    modules={
        "embeddings": ClipEmbeddings,
        "pre_layrnorm": _norm,  # so spelled in every published file
        "encoder.layers": ClipLayer,
        # Never computed: features are taken before it. A weight of the published files.
        "post_layernorm": _norm,
    },
    entry=("embeddings", "pre_layrnorm"),
    layers="encoder.layers",
    published="vision_model.",
    inner=(),
    convolution="embeddings.patch_embedding",
    positions="embeddings.position_embedding.weight",
    origins={
        "clip_vision_model": Origin("", _CLIP_ALONE),
        "clip": Origin("vision_config", _CLIP_ALONE),
    },
    prefixes=("vision_model.", ""),
    left=("text_model.", "text_projection.", "visual_projection.", "logit_scale"),
    processor={
        "image_processor_type": "CLIPImageProcessor",
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
)

DINOV2 = Tower(
    config=Dinov2Config,
    modules={
        "embeddings": Dinov2Embeddings,
        "encoder.layer": Dinov2Layer,
        "layernorm": _norm,  # as CLIP's last one
    },
    entry=("embeddings",),
    layers="encoder.layer",
    published="",
    inner=(
        (".attention.q_proj.", ".attention.attention.query."),
        (".attention.k_proj.", ".attention.attention.key."),
        (".attention.v_proj.", ".attention.attention.value."),
        (".attention.o_proj.", ".attention.output.dense."),
    ),
    convolution="embeddings.patch_embeddings.projection",
    positions="embeddings.position_embeddings",
    origins={"dinov2": Origin("", Dinov2Config.defaults)},
    prefixes=("dinov2.", ""),
    left=("classifier.",),
    processor={
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
)

TOWERS = (CLIP, DINOV2)


def tower_of(config: TowerConfig) -> Tower:
    """The kind of tower of these sizes."""
    return next(tower for tower in TOWERS if tower.config is type(config))
