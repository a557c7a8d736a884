"""A whole Hugging Face folder of a preset: random weights, and a tokenizer and image processor that
make its prompts of texts and images.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from balcap_jax.errors import UserError
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.plan.workloads.presets import Preset
from balcap_jax.plan.workloads.random_folder import write_random_folder
from balcap_jax.plan.workloads.workload import random_words

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}" + _IMAGE + ""
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def write_word_folder(folder: Path, preset: Preset) -> None:
    """Writes `folder`, which transformers, TRL and `--model.path` load; each token is a word.

    Raises:
      UserError: the preset is of another family than Qwen2.5-VL, or `folder` exists.
    """
    config = preset.config
    if not isinstance(config, Qwen2_5_VLConfig):
        raise UserError(
            "A folder with its own words is made for presets of Qwen2.5-VL alone; choose "
            "--preset cpu-small or qwen3b."
        )
    write_random_folder(folder, config)
    height, width = preset.image
    write_processor_files(folder, config, pixels=(height * width, height * width))


def write_processor_files(
    folder: Path, config: Qwen2_5_VLConfig, *, pixels: tuple[int, int]
) -> None:
    """Adds to `folder` a tokenizer whose tokens are words w0, w1 and so on, and an image processor.

    Args:
      pixels: least and most of an image.
    """
    _write_tokenizer(folder, config)
    vision = config.vision
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "min_pixels": pixels[0],
        "max_pixels": pixels[1],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def photos_of(preset: Preset, count: int) -> list[tuple[Image.Image, str]]:
    """Images of noise, each with a prompt of the preset's text tokens."""
    rng = np.random.default_rng(0)
    marks = 3  # what the template writes around an image, its placeholder among them
    found = []
    for _ in range(count):
        noise = rng.integers(0, 256, (*preset.image, 3), np.uint8)
        words = random_words(preset.config, preset.text_tokens + 1 - marks, rng)
        found.append((Image.fromarray(noise), " ".join(f"w{word}" for word in words)))
    return found


def _write_tokenizer(folder: Path, config: Qwen2_5_VLConfig) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = {
        config.pad_token_id: "<|endoftext|>",
        config.stop_tokens[0]: "<|im_end|>",
        config.vision_start_token_id: "<|vision_start|>",
        config.vision_end_token_id: "<|vision_end|>",
        config.image_token_id: "<|image_pad|>",
        config.video_token_id: "<|video_pad|>",
    }
    words = {named.get(i, f"w{i}"): i for i in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(named.values()),
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
