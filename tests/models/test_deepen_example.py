"""The start of a verifier of scenes computes what the base policy does."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.config.sections import QUESTION_PROMPT
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.prompts.questions import QuestionEncoder
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.weights import load_pretrained

SCRIPT = Path(__file__).parents[2] / "examples" / "verifier" / "deepen.py"


@pytest.mark.slow
def test_new_layers_add_nothing_and_statements_stand_where_captions_do(tmp_path):
    spec = importlib.util.spec_from_file_location("deepen", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.deepen(tmp_path / "deep", layers=2)
    processor = Processor.load(policy_folder("base"))
    example = SceneSource("heldout", 1)[0]
    prompts = processor.prompts([example])
    words = np.arange(20, 26)[None, None].astype(np.int32)
    found = []
    for folder in (policy_folder("base"), tmp_path / "deep"):
        policy, params = load_pretrained(folder)
        features = policy.encode_images(params, prompts.images)
        found.append(policy.completion_hidden(params, prompts, features, words))
    assert policy.config.text.num_hidden_layers == 6
    assert float(jnp.abs(found[0] - found[1]).max()) == 0.0
    questions = QuestionEncoder(Processor.load(tmp_path / "deep"))
    row = questions.row(example._replace(prompt=QUESTION_PROMPT))
    np.testing.assert_array_equal(row.tokens, processor.row(example).tokens)
    assert len(questions.after) <= 6
