"""Hugging Face's Qwen2.5-VL at the tiny sizes, and a folder as it would be published, for tests."""

import json
from pathlib import Path

import numpy as np
import tiny
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig

SPECIAL = ("<pad>", "<stop>", "<vision_start>", "<vision_end>", "<image>", "<video>")
WORDS = ("describe", "the", "image", "a", "red", "blue", "square", "circle", "left", "of", ".")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<vision_start><image><vision_end>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} .{% endif %}"
)


def model(config: Qwen2_5_VLConfig, *, seed: int = 0):
    """A random Hugging Face model of these sizes, in which norms and biases are random too."""
    from transformers import Qwen2_5_VLConfig as HFConfig
    from transformers import Qwen2_5_VLForConditionalGeneration

    return random_model(Qwen2_5_VLForConditionalGeneration, HFConfig(**config.to_hf()), seed)


def random_model(kind, config, seed: int = 0):
    """A model of transformers with random weights, norms and biases too."""
    import torch

    torch.manual_seed(seed)
    hf = kind(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return hf


def write_processor(folder: Path, *, config: Qwen2_5_VLConfig = tiny.CONFIG) -> None:
    """config.json, a word-level tokenizer with chat template, and the image processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<stop>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    vision = config.vision
    side = vision.patch_size * vision.spatial_merge_size
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "size": {"shortest_edge": 2 * side**2, "longest_edge": 16 * side**2},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))


def example(name: str, size: tuple[int, int], *, seed: int = 0, prompt: str = "describe the image"):
    """An example with a random image of `size` (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Example(name, Image.fromarray(pixels), prompt, reference="a red square .")
