"""`balcap caption` and `balcap score` on real files."""

import json

import pytest
from PIL import Image

from balcap_jax.caption import caption
from balcap_jax.config import CaptionConfig, ScoreConfig
from balcap_jax.data.scenes import export
from balcap_jax.errors import UserError
from balcap_jax.score import score


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return export(tmp_path_factory.mktemp("scenes"), split="heldout", count=3)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_captions_of_images_of_any_size(scenes, tmp_path):
    wide = tmp_path / "wide.jpg"
    Image.new("L", (300, 90), 200).save(wide)
    images = (*(scenes.parent / row["image"] for row in rows_of(scenes)), wide)
    found = dict(caption(CaptionConfig(images=images, max_new_tokens=24)))
    assert list(found) == list(images)
    assert all(text.strip() for text in found.values())
    # Alone or with others, greedy: the same caption.
    alone = dict(caption(CaptionConfig(images=images[1:2], max_new_tokens=24)))
    assert alone[images[1]] == found[images[1]]


def test_an_image_that_is_none_is_one_sentence(tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match="bad.png"):
        list(caption(CaptionConfig(images=(bad,))))


def test_a_model_that_is_none_is_one_sentence(scenes):
    image = scenes.parent / rows_of(scenes)[0]["image"]
    with pytest.raises(UserError, match="no-such-folder"):
        list(caption(CaptionConfig(images=(image,), model="no-such-folder")))


def test_references_score_100_and_silence_0(scenes, tmp_path):
    rows = rows_of(scenes)
    perfect = write(
        tmp_path / "perfect.jsonl", [{"id": r["id"], "caption": r["caption"]} for r in rows]
    )
    found = score(ScoreConfig(captions=perfect, data=scenes, out=tmp_path / "verdicts.jsonl"))
    assert found["b_capscore"] == pytest.approx(100.0)
    assert found["rho"] == pytest.approx(1.0)
    verdicts = rows_of(tmp_path / "verdicts.jsonl")
    assert [v["id"] for v in verdicts] == [r["id"] for r in rows]
    assert all(all(v["verdict"]["covered"]) for v in verdicts)
    silent = write(tmp_path / "silent.jsonl", [{"id": r["id"], "caption": ""} for r in rows])
    found = score(ScoreConfig(captions=silent, data=scenes))
    assert (found["precision"], found["recall"], found["linguistic"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "nobody", "caption": "x"}], "nobody"),
        ([{"caption": "x"}], "line 1"),
        ([], "no captions"),
    ],
)
def test_bad_caption_files(scenes, tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        score(ScoreConfig(captions=write(tmp_path / "c.jsonl", rows), data=scenes))


def test_a_second_caption_of_an_image_is_refused(scenes, tmp_path):
    row = {"id": rows_of(scenes)[0]["id"], "caption": "x"}
    with pytest.raises(UserError, match="second caption"):
        score(ScoreConfig(captions=write(tmp_path / "c.jsonl", [row, row]), data=scenes))
