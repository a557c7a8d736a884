"""The bench of the judge: its statistics by hand, its files, and its bars where the labels are."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from balcap_jax.bench import bag_of_words
from balcap_jax.bench.judge import auc, measure, pearson
from balcap_jax.bench.judge_data import read_labels
from balcap_jax.errors import UserError

DATA = Path(os.environ.get("BALCAP_DATA", Path(__file__).parents[2] / "../shared/data"))


def test_auc_by_hand():
    # positives 3 and 1 against negatives 2 and 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1 -> (2 + 0.5) / 4
    assert auc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])) == 0.625


def test_pearson_by_hand():
    assert pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])) == pytest.approx(1.0)


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
    photo = {"id": "2", "captions": ["A dog."], "instances": [instance]}
    write(tmp_path / "coco20/captions_boxes.jsonl", [photo])
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
    for figure in found.values():
        assert figure.judge > figure.baseline, figure
    for captions in ("all", "models only"):
        assert found[f"THumB precision, {captions}"].judge > 0.36
        assert found[f"THumB recall, {captions}"].judge > 0.25
    assert found["FaithScore, is a fact true"].judge > 0.80
    assert found["FaithScore, does it describe"].judge > 0.90
