"""A start for a verifier of scenes: the base policy with more layers, asked in its own words.

    python examples/verifier/deepen.py OUT [--layers 4]

A captioner tells at each word what it expects of the image, in its last layers, where nothing
reads it any more. New layers behind these can compare the word that comes with what was expected.
They add nothing at first, so OUT computes what the base policy does. Its chat template puts a
statement where the captioner has its caption.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from balcap_jax.config.sections import PROMPT, QUESTION_PROMPT
from balcap_jax.models.families import make_policy
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>PROMPT<|im_end|>"
    "<|im_start|>{% elif part['type'] == 'text' %}{{ part['text'] | replace('QUESTION\\n', '') }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def deepen(out: Path, *, layers: int) -> None:
    """Writes the folder `out`, which must not exist."""
    folder = policy_folder("base")
    policy, params = load_pretrained(folder)
    text = policy.config.text
    deeper = make_policy(
        dataclasses.replace(
            policy.config,
            text=dataclasses.replace(text, num_hidden_layers=text.num_hidden_layers + layers),
        )
    )
    fresh = deeper.init(jax.random.key(0))["language_model"]["layers"]
    new = jax.tree.map(lambda stack: stack[-layers:], fresh)
    for part, last in (("self_attn", "o_proj"), ("mlp", "down_proj")):
        new[part][last] = jax.tree.map(jnp.zeros_like, new[part][last])
    model = params["language_model"]
    model["layers"] = jax.tree.map(lambda *x: jnp.concatenate(x), model["layers"], new)
    out.mkdir(parents=True)
    save_pretrained(out, deeper, params, dtype="float32", source=folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += layers
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    template = TEMPLATE.replace("PROMPT", PROMPT).replace("QUESTION", QUESTION_PROMPT)
    (out / "chat_template.jinja").write_text(template)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    flags = parser.parse_args()
    deepen(flags.out, layers=flags.layers)
