"""Tokenizer, chat template and processor files of a LLaVA that is assembled from its parts."""

from pathlib import Path
from typing import Any

from balcap_jax.data.prompts.folder_parts import as_user_error, check_files, load_tokenizer
from balcap_jax.errors import UserError
from balcap_jax.models.hf.companions import PAPERS, write_json
from balcap_jax.models.hf.weight_files import lies_within
from balcap_jax.models.json_files import read_json
from balcap_jax.models.llava.assembly import Tokens
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.llava.parts import DecoderPart, TowerPart

# Before the decoder's own template, which reads text: parts of a message become one text, an image
# the placeholder and a line break.
_FLATTEN = (
    "{%- set flat = namespace(messages=[], text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set flat.text = message['content'] -%}"
    "{%- else -%}{%- set flat.text = '' -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set flat.text = flat.text + 'IMAGE\\n' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set flat.text = flat.text + part['text'] -%}"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=flat.text)] -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)
# For a decoder without a template: the turns of LLaVA-1.5.
_PLAIN = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] + ' ' }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ 'ASSISTANT: ' + message['content'] + (eos_token or '') }}"
    "{%- else -%}{{ 'USER: ' + message['content'] + ' ' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)


def tokenizer_with(decoder: DecoderPart, placeholder: str) -> tuple[Any, Tokens]:
    """The decoder's tokenizer with a placeholder for images, and the ids that matter.

    Raises:
      UserError: no usable tokenizer, or nothing ends a text.
    """
    check_files(decoder.folder)
    tokenizer = load_tokenizer(decoder.folder)
    with as_user_error(
        lambda reason: (
            f"{decoder.folder} has a tokenizer that takes no {placeholder!r} ({reason}); take the "
            "one that was published with the weights."
        )
    ):
        from tokenizers import AddedToken

        vocabulary = tokenizer.get_vocab()
        words = max(vocabulary.values()) + 1
        if placeholder not in vocabulary:
            added = AddedToken(placeholder, special=True, normalized=False)
            tokenizer.add_tokens([added], special_tokens=True)
        image = tokenizer.convert_tokens_to_ids(placeholder)
    if tokenizer.encode(placeholder, add_special_tokens=False) != [image]:
        raise UserError(
            f"--image-token {placeholder!r} is not one token of the decoder's tokenizer; choose "
            "another text, such as '<image>'."
        )
    stops = _stops(decoder, tokenizer)
    pad = tokenizer.pad_token_id
    return tokenizer, Tokens(image, words, stops, stops[-1] if pad is None else pad)


def write_processor_files(
    folder: Path,
    tower: TowerPart,
    decoder: DecoderPart,
    tokenizer: Any,
    config: LlavaConfig,
    *,
    placeholder: str,
) -> None:
    """Writes all but the weights to `folder`: tokenizer, template, processors, config, licences."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    flatten = _FLATTEN.replace("IMAGE", placeholder.replace("\\", "\\\\").replace("'", "\\'"))
    tokenizer.chat_template = flatten + (own or _PLAIN)
    tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", _image_settings(tower, config))
    write_json(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "image_token": placeholder,
            "patch_size": config.vision.patch_size,
            "num_additional_image_tokens": 1,  # the class token
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
        },
    )
    write_json(folder / "config.json", config.to_hf())
    write_json(folder / "generation_config.json", config.to_hf_generation())
    for part, name in ((tower, "tower"), (decoder, "decoder")):
        _copy_licences(part.folder, folder, name)


def _stops(decoder: DecoderPart, tokenizer: Any) -> tuple[int, ...]:
    """What ends a text: the tokenizer's end of a turn first, then what the decoder's files name."""
    named = [decoder.generation.get("eos_token_id"), decoder.entries.get("eos_token_id")]
    given = next((ids for ids in named if ids not in (None, [])), [])
    found = [tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])]
    stops = tuple(dict.fromkeys(token for token in found if token is not None))
    if not stops:
        raise UserError(
            f"{decoder.folder} names no token that ends a text; give eos_token_id in its "
            "generation_config.json or eos_token in its tokenizer_config.json."
        )
    return stops


def _image_settings(tower: TowerPart, config: LlavaConfig) -> dict[str, Any]:
    """The tower's own image processor, brought to the size that the tower takes here."""
    own = tower.folder / "preprocessor_config.json"
    settings = read_json(own) if own.is_file() else dict(tower.kind.processor)
    size = config.vision.image_size
    square = {"height": size, "width": size}
    stretched = isinstance(settings.get("size"), dict) and "height" in settings["size"]
    settings["size"] = square if stretched else {"shortest_edge": size}
    settings["crop_size"] = square
    settings.pop("auto_map", None)
    return settings | {"do_resize": True, "do_center_crop": not stretched}


def _copy_licences(source: Path, folder: Path, part: str) -> None:
    """LICENSE as LICENSE-tower: the parts keep their terms, README excepted."""
    for pattern in PAPERS:
        for path in sorted(source.glob(pattern)):
            readable = path.is_file() and lies_within(source, path.name)
            if readable and not path.name.upper().startswith("README"):
                name = f"{path.stem}-{part}{path.suffix}"
                (folder / name).write_bytes(path.read_bytes())
