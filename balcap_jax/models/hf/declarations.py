"""What a folder says about its own weights; where it cannot be obeyed it is refused.

Quantised weights read as plain numbers, a base without the adapter beside it, another library's
layout: each loads and computes something else than what was published.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError
from balcap_jax.models.json_files import shown

# Entries and files by which libraries say that weights are not the plain numbers.
QUANTIZED = ("quantization_config", "compression_config", "quantization", "quant_config")
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Of the authors' own LLaVA code; llava-hf folders have none of them.
ORIGINAL_LLAVA = ("mm_vision_tower", "mm_projector_type", "mm_hidden_size")
ORIGINAL_LLAVA_FILES = ("mm_projector.bin", "mm_projector.safetensors")


def check_adapter(folder: Path) -> None:
    """Raises a UserError where an adapter lies beside a policy: transformers would put it on."""
    found = next((name for name in ADAPTERS if (folder / name).is_file()), None)
    if found is not None:
        raise UserError(
            f"{folder} holds an adapter ({found}) but not an adapter alone, which is "
            "adapter_config.json and adapter_model.safetensors without a config.json; give a "
            "folder with one of the two, the policy or its adapter."
        )


def check_original_llava(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises a UserError for a folder of the authors' own LLaVA code."""
    kind = config.get("model_type")
    named = isinstance(kind, str) and kind.startswith("llava_") and kind.count("_") == 1
    original = (named and kind.removeprefix("llava_") not in ("next", "onevision")) or any(
        name in config for name in ORIGINAL_LLAVA
    )
    if original or any((folder / name).is_file() for name in ORIGINAL_LLAVA_FILES):
        raise UserError(
            f"{folder} is in the layout of the original LLaVA code (model_type {shown(kind)}), "
            "which is not read; take the llava-hf folder of the same model, such as "
            "llava-hf/llava-1.5-7b-hf."
        )


def check_plain_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises a UserError where config.json, a section of it or a file beside it says that the
    weights are quantised.
    """
    found = next(_quantizations(config), None)
    if found is not None:
        raise UserError(
            f"{folder} holds quantised weights ({found} in config.json), which are not read; give "
            "the folder with the weights before that (bfloat16, float16 or float32)."
        )
    file = next((name for name in QUANTIZED_FILES if (folder / name).is_file()), None)
    if file is not None:
        raise UserError(
            f"{folder} holds quantised weights by its {file}, which are not read; give the folder "
            "with the weights before that (bfloat16, float16 or float32)."
        )


def _quantizations(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in section.items():
        if name in QUANTIZED and value not in (None, {}):
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            yield f"{prefix}{name}" + (f", {shown(method)}" if method else "")
        elif isinstance(value, Mapping):
            yield from _quantizations(value, f"{prefix}{name}.")
