"""Tiny folders of vision towers and decoders with random weights, as transformers writes them."""

import json
from pathlib import Path

import tiny_hf

WORDS = "<pad> <s> <stop> <unk> user assistant : describe the image a red square .".split()
# As text models have it: contents are texts.
TEXT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ' : ' + message['content'] }}"
    " {% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def write_clip(folder: Path, *, whole: bool = False, **sizes) -> Path:
    """A CLIPVisionModel, or a whole CLIPModel."""
    import transformers

    own = {**SIZES, "intermediate_size": 24, "projection_dim": 8, **sizes}
    vision = transformers.CLIPVisionConfig(**own)
    if whole:
        text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
        text |= {"num_attention_heads": 1, "projection_dim": 8}
        config = transformers.CLIPConfig(
            vision_config=vision.to_dict(), text_config=text, projection_dim=8
        )
        model = tiny_hf.random_model(transformers.CLIPModel, config)
    else:
        model = tiny_hf.random_model(transformers.CLIPVisionModel, vision)
    model.save_pretrained(folder)
    return folder


def write_dinov2(folder: Path, *, classifier: bool = False, **sizes) -> Path:
    """A Dinov2Model, or one with a classifier on top."""
    import transformers

    config = transformers.Dinov2Config(**{**SIZES, "mlp_ratio": 2, **sizes})
    kind = transformers.Dinov2ForImageClassification if classifier else transformers.Dinov2Model
    tiny_hf.random_model(kind, config).save_pretrained(folder)
    return folder


def write_decoder(
    folder: Path, model_type: str = "llama", *, template: str | None = TEXT_TEMPLATE, **sizes
) -> Path:
    """A causal model of this type with its tokenizer, which has no placeholder of images."""
    import transformers

    own = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "sliding_window": None,
    }
    if model_type != "mistral":
        del own["sliding_window"]
    kinds = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}
    name = kinds[model_type]
    config = getattr(transformers, f"{name}Config")(**{**own, **sizes})
    model = tiny_hf.random_model(getattr(transformers, f"{name}ForCausalLM"), config)
    model.save_pretrained(folder)
    write_tokenizer(folder, template=template)
    return folder


def write_tokenizer(folder: Path, *, template: str | None = TEXT_TEMPLATE) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<stop>",
        pad_token="<pad>",
        unk_token="<unk>",
        **({} if template is None else {"chat_template": template}),
    ).save_pretrained(folder)


def change_config(folder: Path, **entries) -> None:
    """config.json with some entries replaced; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
