"""A new tiny policy: its sizes, its tokenizer and its processor files, as a Hugging Face folder.

What `balcap sft` starts from when no folder is given. The folder has everything a published
Qwen2.5-VL folder has, so that the tiny policy takes the same path as a real one.
"""

import json
import random
from pathlib import Path
from typing import Any

from balcap_jax.config.sections import PROMPT
from balcap_jax.models.config import DecoderConfig
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig, VisionConfig
from balcap_jax.scenes.captions import FaultRates, faulty_caption, reference_caption
from balcap_jax.scenes.world import WORDS, random_scene

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
SPECIAL = (END, START, STOP, *IMAGE)
VOCABULARY = 768

# The user's turn and the start of the answer; the roles are left out to keep the prompt short.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def write_tokenizer(folder: Path, *, captions: int = 4000) -> None:
    """Trains a byte-level BPE on the corpus and writes it: any text has tokens, known words have
    one.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random("tokenizer")
    texts = [PROMPT] * 8 + [f'"{word}"' for word in WORDS] * 8
    for _ in range(captions):
        scene = random_scene(rng)
        texts += [reference_caption(scene), faulty_caption(scene, rng, FaultRates())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=STOP,
        pad_token=END,
        additional_special_tokens=list(SPECIAL),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def write_new_policy(folder: Path) -> Qwen2_5_VLConfig:
    """Writes everything but weights to `folder` and returns the policy's sizes."""
    from transformers import AutoTokenizer

    write_tokenizer(folder)
    config = tiny_config(
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    )
    write_image_processor(folder, config)
    for name, content in (
        ("config.json", config.to_hf()),
        ("generation_config.json", config.to_hf_generation()),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return config


def tiny_config(tokenizer: Any) -> Qwen2_5_VLConfig:
    """Sizes of the policy that ships: 2.1 million parameters, 7 x 7 image tokens for 112 x 112
    pixels.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    return Qwen2_5_VLConfig(
        text=DecoderConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            # Few wide heads: narrow ones are slow on CPUs.
            num_attention_heads=2,
            num_key_value_heads=1,
            mrope_section=(8, 12, 12),
            rope_theta=10000.0,
            max_position_embeddings=1024,
        ),
        vision=VisionConfig(
            depth=4,
            hidden_size=128,
            intermediate_size=384,
            num_heads=2,
            patch_size=8,
            window_size=32,
            fullatt_block_indexes=(1, 3),
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        stop_tokens=(ids[STOP],),
        pad_token_id=ids[END],
        tie_word_embeddings=True,
        initializer_range=0.05,
    )


def write_image_processor(folder: Path, config: Qwen2_5_VLConfig) -> None:
    """Writes preprocessor_config.json: Hugging Face's Qwen2-VL processor at this policy's patch
    size.
    """
    side = config.vision.patch_size * config.vision.spatial_merge_size
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": config.vision.temporal_patch_size,
        "merge_size": config.vision.spatial_merge_size,
        # Images of other sizes are brought to about the area that the policy was trained on.
        "min_pixels": 7 * 7 * side * side,
        "max_pixels": 7 * 7 * side * side,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
