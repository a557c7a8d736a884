"""A tiny LLaVA with random weights, random prompts for it, Hugging Face's model and a folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiny
import tiny_hf

from balcap_jax.models.config import DecoderConfig
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.inputs import ImagePatches, Prompts
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.llava.policy import Llava
from balcap_jax.models.llava.tower_config import ClipConfig, Dinov2Config, TowerConfig

PAD, BOS, STOP, IMAGE = 0, 1, 2, 3
FIRST_TEXT = 4  # ids from here on are words
SPECIAL = ("<pad>", "<s>", "<stop>", "<image>")
WORDS = ("USER", "ASSISTANT", ":", "describe", "the", "image", "a", "red", "square", ".")
CHAT_TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)

CONFIG = LlavaConfig(
    text=DecoderConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=10000.0,
        max_position_embeddings=256,
        attention_bias=False,
    ),
    vision=ClipConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
        projection_dim=8,
    ),
    image_token_id=IMAGE,
    stop_tokens=(STOP,),
    pad_token_id=PAD,
    bos_token_id=BOS,
    # Larger than usual: with 0.02 all tokens would be about equally likely and errors would hide.
    initializer_range=0.2,
)
DINOV2 = Dinov2Config(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
    mlp_ratio=2,
)


def config(
    *, text: dict | None = None, vision: dict | TowerConfig | None = None, **top
) -> LlavaConfig:
    """CONFIG with some fields replaced, `config(text={"num_hidden_layers": 3})`, or the tower."""
    if isinstance(vision, TowerConfig):
        return dataclasses.replace(tiny.replaced(CONFIG, text, None, **top), vision=vision)
    return tiny.replaced(CONFIG, text, vision, **top)


def policy(seed: int = 0, **options) -> tuple[Llava, Params]:
    """The tiny policy and random weights; see `tiny.random_params`."""
    model = Llava(options.pop("config", CONFIG), **options)
    return model, tiny.random_params(model, seed)


def model(config: LlavaConfig, *, seed: int = 0):
    """A random Hugging Face model of these sizes, in which norms and biases are random too."""
    from transformers import LlavaConfig as HFConfig
    from transformers import LlavaForConditionalGeneration

    return tiny_hf.random_model(LlavaForConditionalGeneration, HFConfig(**config.to_hf()), seed)


def images(counts: Sequence[int], config: LlavaConfig = CONFIG, *, seed: int = 0) -> np.ndarray:
    """Random `pixel_values` [sum(counts), channels, size, size]."""
    vision = config.vision
    shape = (sum(counts), vision.num_channels, vision.image_size, vision.image_size)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rows(counts: Sequence[int], config: LlavaConfig = CONFIG, *, seed: int = 0) -> list[np.ndarray]:
    """Random token rows; the i-th has counts[i] images between words and ends in words."""
    made = []
    for i, count in enumerate(counts):
        rng = np.random.default_rng([seed, i])

        def words(rng=rng, i=i):
            return rng.integers(FIRST_TEXT, config.vocab_size, 2 + i % 3)

        parts = [[BOS], words()]
        for _ in range(count):
            parts += [[IMAGE] * config.image_tokens, words()]
        made.append(np.concatenate(parts).astype(np.int32))
    return made


def prompts(
    counts: Sequence[int] = (1, 2, 0), *, config: LlavaConfig = CONFIG, seed: int = 0
) -> Prompts:
    """Random prompts; the i-th has counts[i] images."""
    tokens, pixels = rows(counts, config, seed=seed), images(counts, config, seed=seed)
    length, most = max(map(len, tokens)) - 1, max(counts)
    vision = config.vision
    batch, per_image = len(counts), vision.patches
    mask = np.array([np.arange(length) < len(row) - 1 for row in tokens])
    padded = np.full((batch, length), PAD, np.int32)
    padded[mask] = np.concatenate([row[:-1] for row in tokens])
    real = np.arange(most)[None] < np.array(counts)[:, None]
    patches = np.zeros((batch, most, per_image, vision.patch_dim), np.float32)
    side, size = vision.side, vision.patch_size
    cut = pixels.reshape(-1, vision.num_channels, side, size, side, size)
    patches[real] = cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, per_image, vision.patch_dim)
    ids = np.where(real, np.arange(most)[None], -1).repeat(per_image, axis=1).astype(np.int32)
    places = np.stack(np.mgrid[:side, :side], axis=-1).reshape(1, per_image, 2)
    return Prompts(
        tokens=padded,
        mask=mask,
        positions=np.where(mask, np.arange(length)[None], 0)[:, None].astype(np.int32),
        last_token=np.array([row[-1] for row in tokens], np.int32),
        last_position=np.array([len(row) - 1 for row in tokens], np.int32),
        images=ImagePatches(
            pixels=patches.reshape(batch, most * per_image, vision.patch_dim),
            positions=np.tile(places, (batch, most, 1)).astype(np.int32),
            image_ids=ids,
            windows=np.zeros((batch, 0, 0), np.int32),
        ),
    )


def write_processor(folder: Path, *, config: LlavaConfig = CONFIG) -> None:
    """config.json, tokenizer with chat template, image processor: as LLaVA-1.5 is published.

    The tokenizer, not the template, puts <s> before a text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate((*SPECIAL, "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<stop>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    vision = config.vision
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": vision.image_size},
        "crop_size": {"height": vision.image_size, "width": vision.image_size},
        "resample": 3,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": vision.patch_size,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
    }
    for name, content in (
        ("preprocessor_config.json", settings),
        ("processor_config.json", processor),
        ("config.json", config.to_hf()),
        ("generation_config.json", config.to_hf_generation()),
    ):
        (folder / name).write_text(json.dumps(content))
