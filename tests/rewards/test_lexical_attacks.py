"""Nobody is paid who does not look: searches for constant captions and suffixes, and families of
attack, on photos that are told here and, where they are, on real captions.
"""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from attack_families import FAMILIES
from attack_search import (
    CONSTANT,
    RAISED,
    caption_scores,
    constant_of_sentences,
    constant_of_words,
    corpus_score,
    suffix,
    suffixes,
)
from captions import NO_IMAGE
from told_photos import HONEST, PHOTOS

from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.rewards.lexical.words import sentences

DATA = Path(os.environ.get("BALCAP_DATA", Path(__file__).parents[2] / "../shared/data"))


def _words_of(captions):
    words = [w for caption in captions for s in sentences(caption) for w in s.words]

    def most(tag):
        return [text for text, _ in Counter(w.text for w in words if w.tag == tag).most_common(60)]

    vocabulary = sorted({w.text for w in words if w.text.isalpha()})
    return vocabulary, suffixes(most("NOUN"), most("ADJ"), [
        verb for verb in most("VERB") if verb.endswith("ing")
    ])  # fmt: skip


TEXTS = [reference for photo in PHOTOS for reference in photo.references]
VOCABULARY, SUFFIXES = _words_of(TEXTS)


@pytest.fixture(scope="module")
def flickr():
    path = DATA / "flickr8k"
    if not path.exists():
        pytest.skip("needs the real captions of flickr8k; set BALCAP_DATA to their folder")

    def rows(name, count):
        lines = (path / name).read_text().splitlines()[:count]
        return [[_sentence(c) for c in json.loads(line)["captions"]] for line in lines]

    told = rows("val.jsonl", 60)
    photos = [
        Example(str(i), NO_IMAGE, PROMPT, refs[0], None, tuple(refs[:-1]))
        for i, refs in enumerate(told)
    ]
    training = [caption for row in rows("train.jsonl", 700) for caption in row]
    return photos, [row[-1] for row in told], training


def _sentence(caption):
    caption = caption.replace(" .", "").replace(" ,", ",").strip()
    return caption[0].upper() + caption[1:] + "."


def _lies_below(photos, honest, found):
    assert found.value <= CONSTANT * corpus_score(photos, honest), found


def test_one_caption_for_all_photos_is_not_paid():
    _lies_below(PHOTOS, HONEST, constant_of_words(PHOTOS, VOCABULARY, trials=150))
    _lies_below(PHOTOS, HONEST, constant_of_sentences(PHOTOS, TEXTS, trials=100))


def test_no_suffix_pays():
    assert suffix(PHOTOS, HONEST, SUFFIXES, trials=150).value <= RAISED


@pytest.mark.slow
@pytest.mark.long
def test_long_searches_find_nothing_that_is_paid():
    """Of words at random, on the real captions below alone: 24 photos are few enough to fit."""
    _lies_below(PHOTOS, HONEST, constant_of_sentences(PHOTOS, TEXTS, trials=2000))
    found = suffix(PHOTOS, HONEST, SUFFIXES, trials=2000)
    assert found.value <= RAISED, found


@pytest.mark.slow
@pytest.mark.long
def test_long_searches_on_real_captions(flickr):
    photos, honest, training = flickr
    vocabulary, candidates = _words_of(training)
    _lies_below(photos, honest, constant_of_words(photos, vocabulary, trials=2000))
    _lies_below(photos, honest, constant_of_sentences(photos, training, trials=2000))
    found = suffix(photos, honest, candidates, trials=1000)
    assert found.value <= RAISED, found


def test_there_are_enough_families():
    assert len(FAMILIES) >= 61


def _mean_gain(family, photos, honest):
    attacked = [FAMILIES[family](caption) for caption in honest]
    return float(np.mean(caption_scores(photos, attacked) - caption_scores(photos, honest)))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_lose_on_average(family):
    assert _mean_gain(family, PHOTOS, HONEST) < 0


@pytest.mark.parametrize("family", FAMILIES)
def test_families_lose_on_real_captions(family, flickr):
    photos, honest, _ = flickr
    able = [i for i, caption in enumerate(honest) if _attackable(family, caption)]
    assert len(able) > 40
    assert _mean_gain(family, [photos[i] for i in able], [honest[i] for i in able]) < 0


def _attackable(family, caption):
    try:
        FAMILIES[family](caption)
    except IndexError:  # no noun to attack with
        return False
    return True
