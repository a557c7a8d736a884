"""Both families against stored answers of Hugging Face's models: what needs no torch to be run."""

from pathlib import Path

import golden_inputs
import numpy as np
import pytest

import balcap_jax

STORED = np.load(Path(__file__).parents[1] / "golden" / "hf_answers.npz")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_logits_and_greedy_tokens(family):
    policy, params, inputs = golden_inputs.case(family)
    for name, value in inputs.items():  # the case is the one that was answered
        np.testing.assert_array_equal(STORED[f"{family}/{name}"], value)
    mask = inputs["attention_mask"].astype(bool)
    theirs, tokens = STORED[f"{family}/logits"], STORED[f"{family}/tokens"]
    ours = np.asarray(policy.logits(params, **inputs))
    np.testing.assert_allclose(ours[mask], theirs[mask], rtol=0, atol=1e-4 * np.ptp(theirs))
    count = tokens.shape[1]
    new = balcap_jax.generate(policy, params, inputs, max_new_tokens=count, stop_tokens=())
    np.testing.assert_array_equal(new, tokens)
