"""The files and claims of examples/evidence: other starting policies, other references."""

import importlib.util
import statistics
from pathlib import Path

import pytest

from balcap_jax.data.scene_source import SceneSource
from balcap_jax.evidence.claims import read_claims
from balcap_jax.rewards.scene.judge import judge

FOLDER = Path(__file__).parents[2] / "examples" / "evidence"


@pytest.fixture(scope="module")
def files():
    spec = importlib.util.spec_from_file_location("make_files", FOLDER / "make_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def examples():
    source = SceneSource("train", 30, seed=11)
    return [source[i] for i in range(len(source))]


def test_captions_are_of_other_lengths(files, examples):
    def words(caption):
        return statistics.mean(len(caption(example).split()) for example in examples)

    references = statistics.mean(len(example.reference.split()) for example in examples)
    assert words(files.short) < 0.6 * references
    assert words(files.long) > 1.4 * references
    assert references < words(files.better) < 1.6 * references
    assert 0.8 * references < words(files.damaged) < 1.25 * references


def test_references_are_of_other_quality(files, examples):
    """By the exact judge: what the references say is true, of better ones and not of damaged ones,
    and better ones tell more.
    """

    def scores(caption):
        verdicts = [judge(caption(e), e.scene, e.reference) for e in examples]
        assertions = [a for verdict in verdicts for a in verdict.assertions]
        told = statistics.mean(sum(a.verified for a in v.assertions) for v in verdicts)
        return statistics.mean(a.verified for a in assertions), told

    better, original, damaged = (
        scores(caption) for caption in (files.better, lambda e: e.reference, files.damaged)
    )
    assert better[0] == original[0] == 1
    assert damaged[0] < 0.85
    assert better[1] > 1.05 * original[1]
    assert damaged[1] < 0.95 * original[1]


def test_their_claims_are_claims():
    claims = read_claims([FOLDER / "starts.toml", FOLDER / "references.toml"])
    assert [claim.number for claim in claims] == [5, 9]
    assert not any(claim.required for claim in claims)
    for claim in claims:
        assert {claim.cell(name, 1).seed for name in claim.settings} == {1}
