"""Makes hf_answers.npz: logits and greedy tokens of Hugging Face's models on our random weights.

Run from the repository root with the test extra installed: `python tests/golden/make_hf.py`.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import golden_inputs  # noqa: E402

from balcap_jax.models.hf.weights import save_pretrained  # noqa: E402

NEW = 24  # tokens
MODELS = {
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "llava": transformers.LlavaForConditionalGeneration,
}


def answers(family: str) -> dict[str, np.ndarray]:
    """Inputs, logits [b t v] and greedy tokens [b NEW] of one family."""
    policy, params, inputs = golden_inputs.case(family)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, policy, params)
        hf = MODELS[family].from_pretrained(folder).eval()
    theirs = {name: torch.tensor(value) for name, value in inputs.items()}
    with torch.no_grad():
        logits = hf(**theirs).logits.numpy()
        hf.generation_config.eos_token_id = None
        banned = list(policy.config.banned_tokens)
        tokens = hf.generate(**theirs, max_new_tokens=NEW, do_sample=False, suppress_tokens=banned)
    length = inputs["input_ids"].shape[1]
    found = {**inputs, "logits": logits, "tokens": tokens[:, length:].numpy()}
    return {f"{family}/{name}": value for name, value in found.items()}


if __name__ == "__main__":
    np.savez_compressed(HERE / "hf_answers.npz", **answers("qwen2_5_vl"), **answers("llava"))
