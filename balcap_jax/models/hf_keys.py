"""Names of weights in Hugging Face's files: one table per family. No tensors here."""

import re
from typing import NamedTuple

from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.llava_config import LlavaConfig
from balcap_jax.models.qwen2_5_vl_config import Qwen2_5_VLConfig

# Buffers that older versions of transformers stored; the model computes them from its config.
BUFFERS = re.compile(r"(^|\.)(embeddings\.position_ids|rotary_emb\.inv_freq)$")


class KeyTable(NamedTuple):
    """How a family's weights are called. All names are prefixes; the first that fits counts.

    Attributes:
      published: name in `params`, its parts joined by dots -> name in the published repository.
      other_layouts: name in another layout (transformers v5) -> published name.
      convolution: `params` path of the patch embedding, a convolution in torch.
      patch: its shape in the files after the output axis.
    """

    published: tuple[tuple[str, str], ...]
    other_layouts: tuple[tuple[str, str], ...]
    convolution: str
    patch: tuple[int, ...]

    def publish(self, path: str) -> str:
        """The published key of a weight named as in `params`."""
        return _replace_prefix(path, self.published)

    def normalise(self, key: str) -> str:
        """The published key for a key in any known layout."""
        return _replace_prefix(key, self.other_layouts)


def key_table(config: PolicyConfig) -> KeyTable:
    """The table of the family that `config` belongs to."""
    if isinstance(config, Qwen2_5_VLConfig):
        vision = config.vision
        return KeyTable(
            published=(("language_model.", "model."),),
            other_layouts=(
                ("model.visual.", "visual."),
                ("model.language_model.", "model."),
            ),
            convolution="visual.patch_embed.proj",
            # torch.nn.Conv3d keeps [out, channels, time, row, column]
            patch=(
                vision.in_channels,
                vision.temporal_patch_size,
                vision.patch_size,
                vision.patch_size,
            ),
        )
    assert isinstance(config, LlavaConfig), type(config)
    tower = "vision_tower.vision_model."
    return KeyTable(
        published=(
            ("language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("vision_tower.", tower),
        ),
        other_layouts=(
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.vision_model.", tower),
            ("model.vision_tower.", tower),
            (tower, tower),
            ("vision_tower.", tower),
            ("model.multi_modal_projector.", "multi_modal_projector."),
        ),
        convolution="vision_tower.embeddings.patch_embedding",
        # torch.nn.Conv2d keeps [out, channels, row, column]
        patch=(config.vision.num_channels, config.vision.patch_size, config.vision.patch_size),
    )


def _replace_prefix(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for prefix, other in table:
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name
