"""The bench of the judge: its statistics by hand, its files, and its bars where the labels are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from captions import CASES

from balcap_jax.bench import bag_of_words
from balcap_jax.bench.agreement import (
    auc,
    bootstrap,
    held_out,
    is_held_out,
    numbered,
    pearson,
    within,
)
from balcap_jax.bench.judge import measure, zeros
from balcap_jax.bench.judge_data import HumanLabels, Rated, photo, read_labels
from balcap_jax.errors import UserError
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.judge import LexicalJudge

DATA = Path(os.environ.get("BALCAP_DATA", Path(__file__).parents[2] / "../shared/data"))


def test_auc_by_hand():
    # positives 3 and 1 against negatives 2 and 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1 -> (2 + 0.5) / 4
    assert auc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])) == 0.625


def test_pearson_by_hand():
    assert pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)


def test_auc_of_one_kind_is_no_number():
    assert np.isnan(auc(np.array([1.0, 2.0]), np.array([1.0, 1.0])))


def test_within_sees_only_what_differs_in_an_image():
    images = np.array([0, 0, 1, 1])
    # Between images the scores fall with the labels, within each they rise.
    scores, labels = np.array([5.0, 6.0, 1.0, 2.0]), np.array([1.0, 2.0, 8.0, 9.0])
    assert pearson(scores, labels) < -0.8
    assert within(scores, labels, images) == pytest.approx(1.0)


def test_images_drawn_twice_are_two_images_and_the_seed_decides():
    images = numbered(["b", "b", "a", "c"])
    np.testing.assert_array_equal(images, [1, 1, 0, 2])
    seen = []

    def statistic(places, draws):
        seen.append((places.tolist(), draws.tolist()))
        return float(len(places))

    low, high = bootstrap(statistic, images, rounds=200)
    assert 3 <= low < high <= 6
    first = list(seen)
    for places, draws in first:
        assert sorted(set(draws)) == [0, 1, 2]
        # Captions of an image stay together.
        assert places.count(0) == places.count(1)
    seen.clear()
    bootstrap(statistic, images, rounds=200)
    assert seen == first


def test_bootstrap_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap(lambda p, _: float(values[p].mean()), np.arange(400))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_halves_are_by_id_alone():
    ids = [str(i) for i in range(400)]
    assert 160 < held_out(ids).sum() < 240
    assert held_out(ids).tolist() == [is_held_out(i) for i in ids]
    assert held_out(ids[::-1]).tolist() == held_out(ids).tolist()[::-1]
    assert held_out(ids, seed=1).tolist() != held_out(ids).tolist()


def test_zero_is_what_captions_of_another_photo_get():
    rated = [
        Rated(photo(str(i), list(case.references)), "Human", case.caption, 5.0, 5.0)
        for i, case in enumerate(CASES)
    ]
    found = {zero.name: zero for zero in zeros(HumanLabels(tuple(rated), (), ()))}
    assert list(found) == ["precision", "recall", "linguistic", "b-CapScore"]
    judge = LexicalJudge()
    captions = [case.caption for case in CASES]
    shifted = judge([r.example for r in (*rated[1:], rated[0])], captions)
    other = rewards_of(shifted, ("recall",)).mean()
    assert found["recall"].other == pytest.approx(float(other))
    for name in ("precision", "recall", "b-CapScore"):
        assert found[name].own > found[name].other
        assert 0 < found[name].gap[0] <= found[name].own - found[name].other <= found[name].gap[1]
    assert found["linguistic"].own == found["linguistic"].other


def test_bag_of_words_by_hand():
    # dog, red, ball against dog, ball, park: two of three
    assert bag_of_words.precision("A dog with red balls", ["The dog", "ball in a park"]) == 2 / 3
    assert bag_of_words.recall("A dog", ["The dog and ball", "dogs"]) == 0.75
    assert bag_of_words.descriptive("It suggests that it is likely") == -2


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_labels_are_read(tmp_path):
    write(tmp_path / "thumb/references.jsonl", [{"seg_id": "1", "refs": ["A dog."]}])
    write(
        tmp_path / "thumb/mscoco_THumB-1.0.jsonl",
        [{"SYS": "s", "seg_id": "1", "hyp": "A cat.", "P": 2.0, "R": 3.0, "Fl": 0.0}],
    )
    instance = {"category": "dog", "bbox": [0, 0, 1, 1]}
    row = {"id": "2", "captions": ["A dog."], "instances": [instance]}
    write(tmp_path / "coco20/captions_boxes.jsonl", [row])
    answer = {"id": "2", "stage 1": {" it runs": 0}, "stage 2": {"There is a dog.": 1}}
    write(tmp_path / "faithscore/annotation.jsonl", [answer])
    labels = read_labels(tmp_path)
    assert (labels.captions[0].caption, labels.captions[0].precision) == ("A cat.", 2.0)
    assert labels.facts[0].example.boxes[0].label == "dog"
    assert (labels.sentences[0].text, labels.sentences[0].label) == ("it runs", False)
    with pytest.raises(UserError, match="captions_boxes.jsonl"):
        read_labels(tmp_path / "nowhere")


def test_the_judge_is_above_its_bars():
    if not (DATA / "thumb").exists():
        pytest.skip("needs the human labels; set BALCAP_DATA to the folder of docs/judges.md")
    found = {figure.name: figure for figure in measure(read_labels(DATA))}
    assert found["precision, models"].judge >= 0.44
    assert found["recall, models"].judge >= 0.27
    assert found["is a fact true"].judge >= 0.80
    assert found["does it describe"].judge >= 0.92
    for name in ("precision, models", "precision within, models", "does it describe"):
        assert found[name].gain[0] > 0, found[name]
    for name in ("recall, models", "recall within, models", "both within, models"):
        assert found[name].judge > found[name].baseline, found[name]
