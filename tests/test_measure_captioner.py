"""What examples/real_parts/measure_captioner.py prints of a captioner, beside plain logits."""

import json

import jax
import jax.numpy as jnp
import measure_captioner
import numpy as np
import pytest
import tiny_llava
from PIL import Image

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained

CAPTIONS = ("a red square .", "describe the image", "a square", "the red image : a square .")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tiny_llava.write_processor(folder)
    policy, params = tiny_llava.policy()
    save_pretrained(folder, policy, params)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Photos of noise, two captions each."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    with (folder / "val.jsonl").open("w") as file:
        for i, caption in enumerate(CAPTIONS):
            noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(noise).save(folder / f"{i}.png")
            row = {"image": f"{i}.png", "captions": [caption, "the image"]}
            file.write(json.dumps(row) + "\n")
    return folder / "val.jsonl"


def test_nats_behind_the_own_image_and_the_next_one(folder, rows):
    """By the plain logits of one caption after the other, without padding."""
    policy, params = load_pretrained(folder)
    processor = Processor.load(folder)
    examples = measure_captioner.photos(rows, 3)
    assert len(examples) == 3
    found = measure_captioner.nats_right_and_other(
        policy, params, processor, examples, length=8, batch_size=2
    )

    def plain(example, image):
        caption = example.references[0]
        row = processor.row(example)
        answer = processor.tokenizer(caption, add_special_tokens=False)["input_ids"]
        answer = [*answer, tiny_llava.STOP]
        pixels = processor.image_processor(images=[image], return_tensors="np")["pixel_values"]
        tokens = np.array([[*row.tokens, *answer]], np.int32)
        logits = policy.logits(
            params, input_ids=tokens, attention_mask=np.ones_like(tokens), pixel_values=pixels
        )
        logprobs = jax.nn.log_softmax(logits[0, len(row.tokens) - 1 : -1])
        return -float(jnp.sum(logprobs[np.arange(len(answer)), np.array(answer)]))

    images = [example.image for example in examples]
    np.testing.assert_allclose(found.right, list(map(plain, examples, images)), rtol=1e-5)
    others = [*images[1:], images[0]]
    np.testing.assert_allclose(found.other, list(map(plain, examples, others)), rtol=1e-5)
    assert np.abs(found.right - found.other).min() > 1e-3


def test_what_is_printed_and_written(folder, rows, tmp_path, capsys):
    arguments = [str(folder), str(rows), "--out", str(tmp_path / "new"), "--length", "4"]
    measure_captioner.main([*arguments, "--batch-size", "3", "--shown", "2"])
    first, *shown = capsys.readouterr().out.splitlines()
    assert first.startswith("4 captions: ")
    written = [json.loads(line) for line in (tmp_path / "new" / "captions.jsonl").open()]
    assert [row["references"] for row in written] == [[c, "the image"] for c in CAPTIONS]
    assert [row["caption"] for row in written[:2]] == shown


def test_the_summary_by_hand():
    nats = measure_captioner.Nats(np.array([2.0, 4.0, 6.0]), np.array([3.0, 3.0, 9.0]))
    assert nats.described() == (
        "3 captions: 4.00 nats with the right image, 5.00 with another one: +1.00 +- 1.15; the "
        "right one is better for 67%"
    )
