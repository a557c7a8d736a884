"""Which words fit each other: the pairs of a sentence, the asset as it ships, and its builder on a
model that is told here.
"""

import io

import numpy as np
import pytest
import tiny_parts

from balcap_jax.rewards.lexical import affinity as module
from balcap_jax.rewards.lexical import build_affinity, tables
from balcap_jax.rewards.lexical.affinity import LIMIT, affinity, expected, pairs
from balcap_jax.rewards.lexical.words import sentences


def of(text):
    (sentence,) = sentences(text)
    return sentence


def test_pairs_by_hand():
    assert list(pairs(of("A big brown dog is quickly chasing the red tennis ball.").words)) == [
        ("ADJ NOUN", ("brown",), "dog"),
        ("ADJ NOUN", ("big",), "dog"),
        ("NOUN VERB", ("dog",), "chase"),
        ("NOUN NOUN", ("tennis",), "ball"),
        ("ADJ NOUN", ("red",), "ball"),
        ("VERB NOUN", ("chase",), "ball"),
    ]
    assert list(pairs(of("Two women of a team sit on a bench near water.").words)) == [
        ("NOUN PREP", ("woman",), "of"),
        ("NOUN . NOUN", ("woman",), "team"),
        ("NOUN VERB", ("team", "woman"), "sit"),
        ("VERB PREP", ("sit",), "on"),
        ("PREP NOUN", ("on",), "bench"),
        ("VERB . NOUN", ("sit",), "bench"),
        ("NOUN PREP", ("bench",), "near"),
        ("PREP NOUN", ("near",), "water"),
        ("NOUN . NOUN", ("bench",), "water"),
    ]
    assert list(pairs(())) == []


def test_of_several_words_that_can_come_first_the_one_that_fits_counts():
    child, shirt = (expected("NOUN VERB", one, "play") for one in ("child", "shirt"))
    assert shirt < child
    assert child in affinity(of("A child in a shirt plays."))
    assert shirt not in affinity(of("A child in a shirt plays."))


@pytest.mark.parametrize(
    ("relation", "fits", "does_not"),
    [
        ("ADJ NOUN", ("wooden", "bench"), ("furry", "bench")),
        ("NOUN NOUN", ("street", "light"), ("street", "river")),
        ("NOUN VERB", ("dog", "bark"), ("table", "run")),
        ("VERB NOUN", ("ride", "horse"), ("ride", "sandwich")),
        ("VERB PREP", ("sit", "on"), ("sit", "through")),
        ("VERB . NOUN", ("swim", "pool"), ("swim", "shirt")),
        ("NOUN . NOUN", ("woman", "dress"), ("river", "dress")),
        ("PREP NOUN", ("on", "beach"), ("during", "beach")),
    ],
)
def test_what_fits_is_expected(relation, fits, does_not):
    assert expected(relation, *fits) > 0.3 > 0 > expected(relation, *does_not)


def test_words_that_are_not_known_say_nothing():
    assert expected("ADJ NOUN", "zibble", "dog") is None
    assert affinity(of("A zibble flarns.")) == ()


def test_no_pair_speaks_louder_than_the_limit():
    values = affinity(of("A furry bench is riding the sandwich in a soccer tree with a river."))
    assert len(values) > 5
    assert np.abs(values).max() <= LIMIT
    assert np.mean(values) < -0.5


def test_the_asset_is_whole():
    relations = module._relations()
    assert set(relations) == set(build_affinity.RELATIONS)
    for name, relation in relations.items():
        one = {len(vector) for vector in relation.first.values()}
        assert one == {len(vector) for vector in relation.second.values()}, name
    assert len(relations["NOUN NOUN"].first) > 2000


def test_the_next_word_is_that_of_each_start_alone(tmp_path):
    """Whatever is padded behind shorter ones in a batch."""
    model = build_affinity.NextWord(tiny_parts.write_decoder(tmp_path))
    starts = ["the red", "describe the image", "a", "the red square", "a red"]
    tokens = range(len(tiny_parts.WORDS))
    together = model(starts, tokens)
    alone = np.concatenate([model([start], tokens) for start in starts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.exp(together).sum(axis=1), 1, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 0.1  # the start matters
    assert model.token("red") == tiny_parts.WORDS.index("red")
    assert model.token("red square") is model.token("zibble") is None


class Told(build_affinity.NextWord):
    """A model of eleven words with one token each, whose likelihoods are told."""

    WORDS = tuple("dog bench brown wooden running sitting in on with at near".split())

    def __init__(self):
        pass

    def token(self, word):
        return self.WORDS.index(word) if word in self.WORDS else None

    def __call__(self, starts, tokens):
        logits = np.zeros((len(starts), len(self.WORDS)), np.float32)
        for row, start in zip(logits, starts, strict=True):
            for word, follower in (("brown", "dog"), ("wooden", "bench"), ("dog", "running")):
                row[self.WORDS.index(follower)] += 3 * (f" {word}" in start)
        return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))[:, list(tokens)]


def test_builder_on_a_model_that_is_told(monkeypatch, tmp_path):
    arrays = build_affinity.build(Told())
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    (tmp_path / "assets" / "lexicon").mkdir(parents=True)
    (tmp_path / "assets" / "lexicon" / "affinity.npz").write_bytes(file.getvalue())
    monkeypatch.setattr(tables, "files", lambda _: tmp_path)
    monkeypatch.setattr(module, "read_table", tables.read_table.__wrapped__)
    monkeypatch.setattr(module, "_relations", module._relations.__wrapped__)
    found = module.expected.__wrapped__
    # A dog behind "brown", "wooden", and "running" and "sitting", which can be adjectives, too.
    behind = np.array([np.e**3 / (np.e**3 + 10), 1 / (np.e**3 + 10), 1 / 11, 1 / 11])
    likely = np.log(behind[0] / behind.mean())
    assert found("ADJ NOUN", "brown", "dog") == pytest.approx(likely, abs=0.05)
    assert found("ADJ NOUN", "wooden", "dog") < 0 < found("ADJ NOUN", "wooden", "bench")
    assert found("NOUN VERB", "dog", "run") > 0 > found("NOUN VERB", "bench", "run")
    assert found("VERB . NOUN", "sit", "bench") == pytest.approx(0, abs=0.05)
