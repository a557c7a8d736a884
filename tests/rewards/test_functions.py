"""The offline judge as TRL and verl call it."""

import math
import subprocess
import sys

import pytest
from captions import CASES

from balcap_jax.rewards import (
    compute_score,
    lexical_linguistic,
    lexical_precision,
    lexical_recall,
    lexical_reward,
)

CASE = CASES[0]
COLUMNS = {
    "prompts": ["Describe."] * 3,
    "completions": [CASE.caption, [{"role": "assistant", "content": CASE.caption}], "A zebra."],
    "references": [list(CASE.references)] * 3,
    # TRL gives these, too, and more with every version.
    "completion_ids": [[1], [1], [2]],
    "trainer_state": None,
}


def test_trl_gets_a_number_per_completion_whether_text_or_chat():
    parts = [f(**COLUMNS) for f in (lexical_precision, lexical_recall, lexical_linguistic)]
    for values in (*parts, lexical_reward(**COLUMNS)):
        assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)
        assert values[0] == values[1]
    assert lexical_reward(**COLUMNS)[0] == pytest.approx(3 / sum(1 / p[0] for p in parts), rel=1e-5)
    assert lexical_reward(**COLUMNS)[2] < lexical_reward(**COLUMNS)[0]


def test_without_references_there_is_no_signal():
    given = {"prompts": ["x"], "completions": ["A dog."]}
    assert lexical_reward(**given) == [None]
    assert lexical_precision(**given, references=[[]]) == [None]
    assert math.isnan(compute_score("photos", "A dog.", [])["score"])


def test_verl_gets_the_score_with_its_parts():
    found = compute_score("photos", CASE.caption, list(CASE.references), {"boxes": ["dog"]})
    assert found.keys() == {"score", "precision", "recall", "linguistic"}
    values = [found[name] for name in ("precision", "recall", "linguistic")]
    assert found["score"] == pytest.approx(3 / sum(1 / value for value in values), rel=1e-5)


def test_importing_the_rewards_is_cheap():
    code = "import sys, balcap_jax.rewards; print({'jax', 'numpy', 'lemminflect'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
