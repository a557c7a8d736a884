"""What `balcap bench step` runs: sizes of policies, batches, images and captions."""

from dataclasses import dataclass

from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError
from balcap_jax.models.config import DecoderConfig, PolicyConfig
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, VisionConfig
from balcap_jax.plan.workloads.random_folder import config_of

LEARNING_RATE = 1e-6  # of all sides


@dataclass(frozen=True)
class Preset:
    """One workload.

    Attributes:
      config: sizes of the policy.
      dtype: of the computation; our trained weights are float32, the torch side's are of it.
      batch, group: B images, G captions of each.
      image: height and width in pixels, a multiple of what the tower merges to one token.
      text_tokens: of the prompt, all that are no image placeholder.
      completion: C tokens of each caption.
      remat: what our update keeps of a layer, by a name of `models.remat`.
      torch_sequences: of these many the torch side runs a forward and a backward at a time, with
        gradient checkpointing if they are fewer than B G; None: all at once.
    """

    config: PolicyConfig
    dtype: str
    batch: int
    group: int
    image: tuple[int, int]
    text_tokens: int
    completion: int
    remat: str = "none"
    torch_sequences: int | None = None


CPU_SMALL = Qwen2_5_VLConfig(
    text=DecoderConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        mrope_section=(8, 12, 12),
    ),
    vision=VisionConfig(
        depth=8,
        hidden_size=320,
        intermediate_size=864,
        num_heads=8,
        fullatt_block_indexes=(1, 3, 5, 7),
    ),
    vision_start_token_id=2,
    vision_end_token_id=3,
    image_token_id=4,
    video_token_id=5,
    stop_tokens=(1,),
    pad_token_id=0,
    tie_word_embeddings=True,
)
_REAL = {
    "dtype": "bfloat16",
    "batch": 8,
    "group": 8,
    "text_tokens": 24,
    "completion": 256,
    "remat": "full",
    "torch_sequences": 4,
}


def preset_of(name: str) -> Preset:
    """One of PRESETS.

    Raises:
      UserError: there is none of this name.
    """
    if name not in PRESETS:
        raise UserError(
            f"preset {name!r} is unknown, known are "
            f"{', '.join(PRESETS)}{did_you_mean(name, PRESETS, '--preset {}')}"
        )
    return PRESETS[name]


PRESETS = {
    "cpu-small": Preset(
        CPU_SMALL,
        dtype="float32",
        batch=2,
        group=8,
        image=(280, 280),
        text_tokens=24,
        completion=48,
        remat="dots",  # as fast as "none" on a CPU, with half a gigabyte less
    ),
    # 896 x 896 pixels are 1024 image tokens.
    "qwen3b": Preset(config_of("qwen2.5-vl-3b"), image=(896, 896), **_REAL),
    "qwen7b": Preset(config_of("qwen2.5-vl-7b"), image=(896, 896), **_REAL),
    "llava7b": Preset(config_of("llava-1.5-7b"), image=(336, 336), **_REAL),
}
