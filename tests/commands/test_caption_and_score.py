"""`balcap caption` and `balcap score` on real files."""

import json

import pytest
from PIL import Image

from balcap_jax.commands.caption import caption
from balcap_jax.commands.score import score
from balcap_jax.config.commands import CaptionConfig, ScoreConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.scene_source import export
from balcap_jax.errors import UserError


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


def test_references_of_scenes_score_100_and_silence_0(scenes, tmp_path):
    rows = rows_of(scenes)
    perfect = write(
        tmp_path / "perfect.jsonl", [{"id": r["id"], "caption": r["caption"]} for r in rows]
    )
    out = tmp_path / "scores.jsonl"
    found = score(
        ScoreConfig(input=perfect, output=out, judge=JudgeConfig(kind="scene"), data=scenes)
    )
    assert found["b_capscore"] == pytest.approx(100.0)
    assert [row["id"] for row in rows_of(out)] == [r["id"] for r in rows]
    assert all(unit["covered"] for row in rows_of(out) for unit in row["units"])
    silent = write(tmp_path / "silent.jsonl", [{"id": r["id"], "caption": ""} for r in rows])
    nothing = ScoreConfig(
        input=silent, output=tmp_path / "0.jsonl", judge=JudgeConfig(kind="scene"), data=scenes
    )
    assert [score(nothing)[name] for name in ("precision", "recall", "linguistic")] == [0, 0, 0]


GOOD = {"image": None, "caption": "A dog runs.", "references": ["A dog is running.", "A dog."]}


def test_rows_are_scored_in_order_with_their_fields(tmp_path):
    source = write(tmp_path / "in.jsonl", [{**GOOD, "note": i} for i in range(5)])
    out = tmp_path / "out.jsonl"
    found = score(ScoreConfig(input=source, output=out, batch_size=2))
    rows = rows_of(out)
    assert [row["note"] for row in rows] == [0, 1, 2, 3, 4]
    assert found["rows"] == 5
    assert found["errors"] == 0
    first = rows[0]
    assert first["error"] is None
    assert {"text", "verified", "pointable"} <= first["assertions"][0].keys()
    assert first["units"][0].keys() == {"text", "covered"}
    harmonic = 3 / sum(1 / first[name] for name in ("precision", "recall", "linguistic"))
    assert first["b_capscore"] == pytest.approx(harmonic, rel=1e-5)


def test_a_row_without_a_score_has_nulls_and_an_error(tmp_path):
    source = tmp_path / "in.jsonl"
    bad = ['{"caption": "A dog."}', "no json", '{"references": ["A dog."]}', '{"caption": 3}']
    bad.append('{"caption": "A dog.", "references": ["A dog."], "boxes": [["dog", 1]]}')
    source.write_text("\n".join([*bad, json.dumps(GOOD)]) + "\n\n")
    found = score(ScoreConfig(input=source, output=tmp_path / "out.jsonl"))
    *failed, good = rows_of(tmp_path / "out.jsonl")
    assert len(failed) == found["errors"] == 5
    for row in failed:
        assert row["error"]
        names = ("precision", "recall", "linguistic", "b_capscore")
        assert [row[name] for name in names] == [None] * 4
    assert good["error"] is None
    assert found["precision"] == pytest.approx(100 * good["precision"])


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    source = write(tmp_path / "in.jsonl", [{**GOOD, "note": i} for i in range(6)])
    config = ScoreConfig(input=source, output=tmp_path / "out.jsonl", batch_size=2)
    whole_summary = score(config)
    whole = config.output.read_bytes()
    # Killed in the middle of a row, of the first row, before anything, after everything.
    for cut in (len(whole) // 2, 10, 0, len(whole)):
        config.output.write_bytes(whole[:cut])
        assert score(config) == whole_summary
        assert config.output.read_bytes() == whole


def test_the_output_of_another_input_is_not_touched(tmp_path):
    config = ScoreConfig(input=write(tmp_path / "in.jsonl", [GOOD]), output=tmp_path / "out.jsonl")
    score(config)
    before = config.output.read_bytes()
    write(config.input, [{**GOOD, "caption": "A cat sleeps."}])
    with pytest.raises(UserError, match="give another OUTPUT"):
        score(config)
    assert config.output.read_bytes() == before


def test_bad_settings_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="set data to"):
        ScoreConfig(input=tmp_path / "a", output=tmp_path / "b", judge=JudgeConfig(kind="scene"))
    with pytest.raises(UserError, match="cannot be read"):
        score(ScoreConfig(input=tmp_path / "a", output=tmp_path / "b"))
