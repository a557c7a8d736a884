"""`balcap data recaption` and `balcap data units`: each answer belongs to its own row."""

import dataclasses
import fcntl
import json

import pytest
from images import red, text_file
from PIL import Image

from balcap_jax.commands import recaption as module
from balcap_jax.commands.asked_rows import _path_from
from balcap_jax.commands.recaption import make_units, recaption
from balcap_jax.config.judge import JudgeConfig, RecaptionConfig, UnitsConfig
from balcap_jax.data import photos
from balcap_jax.data.caption_files import CaptionFile, CaptionRows
from balcap_jax.data.examples import Box
from balcap_jax.errors import UserError
from balcap_jax.rewards.llm.stored_units import StoredUnits, units_path
from balcap_jax.storage.paths import as_path


class Seeing:
    """Tells the width of the image, and nothing of images in `silent`."""

    silent: tuple[int, ...] = ()
    last_failures = "HTTP 500"

    def __init__(self, judge):
        self.asked = 0

    def captions_of(self, examples):
        self.asked += len(examples)
        widths = [example.image.width for example in examples]
        return [None if w in self.silent else f"An image of {w} pixels." for w in widths]

    def units_of(self, examples):
        return [None if c is None else (c,) for c in self.captions_of(examples)]

    def close(self):
        pass


@pytest.fixture(params=["short", "long"])
def data(request, tmp_path, monkeypatch):
    """Six images whose widths are 10 times their id; the ones of id 2 and 4 are none."""
    monkeypatch.setattr(module, "LLMJudge", Seeing)
    if request.param == "long":  # images are opened when their turn comes
        monkeypatch.setattr(photos, "CHECKED", 2)
        monkeypatch.setattr(photos, "SAMPLED", 1)
    lines = []
    for i in range(1, 7):
        red(tmp_path, f"{i}.png", size=(10 * i, 10))
        lines.append(json.dumps({"id": str(i), "image": f"{i}.png", "caption": f"No. {i}."}))
    text_file(tmp_path).rename(tmp_path / "2.png")
    lines[3] = '{"image": "4.png", "caption": 4}'
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


JUDGE = JudgeConfig(kind="llm", model="m")
GOOD = ["1", "3", "5", "6"]


def test_every_row_gets_the_caption_of_its_own_image(data, tmp_path):
    config = RecaptionConfig(data=data, out=tmp_path / "out.jsonl", judge=JUDGE)
    assert recaption(config) == config.out
    found = rows_of(config.out)
    assert [row["id"] for row in found] == GOOD
    for row in found:
        i = int(row["id"])
        assert row["image"] == f"{i}.png"
        assert row["caption"] == f"An image of {10 * i} pixels."
        assert row["original"] == f"No. {i}."
    before = config.out.read_bytes()
    recaption(config)
    assert config.out.read_bytes() == before


def test_every_row_gets_the_units_of_its_own_image(data):
    path = make_units(UnitsConfig(data=str(data), judge=JUDGE))
    stored = StoredUnits(path)
    assert len(stored) == 4
    source = CaptionFile(data, max_bad_images=2)
    found = [source.exactly(i) for i in range(len(source))]
    units = {e.id: stored.get(e) for e in found if e is not None}
    assert units == {i: (f"An image of {10 * int(i)} pixels.",) for i in GOOD}


def test_what_has_no_answer_is_asked_for_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Seeing, "silent", (50,))
    config = RecaptionConfig(data=data, out=tmp_path / "out.jsonl", judge=JUDGE)
    with pytest.raises(UserError, match="1 of . images have no new captions"):
        recaption(config)
    assert [row["id"] for row in rows_of(config.out)] == ["1", "3", "6"]
    with config.out.open("a") as file:
        file.write('{"id": "5", "orig')  # torn
    monkeypatch.setattr(Seeing, "silent", ())
    recaption(config)
    assert [row["id"] for row in rows_of(config.out)] == ["1", "3", "6", "5"]


def test_an_id_twice_in_the_output_is_refused(data, tmp_path):
    config = RecaptionConfig(data=data, out=tmp_path / "out.jsonl", judge=JUDGE)
    recaption(config)
    lines = config.out.read_text().splitlines(keepends=True)
    config.out.write_text("".join([*lines, lines[1].replace("30 pixels", "31 pixels")]))
    with pytest.raises(UserError, match="the id '3' twice, in the lines 2 and 5"):
        recaption(config)
    config.out.write_text(lines[0].replace('"id": "1"', '"id": ["1"]'))
    with pytest.raises(UserError, match="is not a file of rewritten captions"):
        recaption(config)


def test_all_else_of_a_row_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LLMJudge", Seeing)
    (tmp_path / "store").mkdir()
    red(tmp_path / "store", "a.png", size=(30, 10))
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    messages = [{"role": "user", "content": "What is it?"}]
    row = {
        "image": "linked/a.png",
        "captions": ["A wall.", "A red wall of stone.", "All is red."],
        "boxes": [{"label": "wall", "box": [0, 0, 1, 0.5]}],
        "units": ["a wall"],
        "prompt": messages,
        "source": "web",
        "id": 7,
    }
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row))
    for out in (tmp_path / "out.jsonl", tmp_path / "far" / "out.jsonl"):
        recaption(RecaptionConfig(data=data, out=out, judge=JUDGE))
        (found,) = rows_of(out)
        link = tmp_path / "linked" / "a.png"
        assert found["image"] == ("linked/a.png" if out.parent == tmp_path else str(link))
        assert (found["original"], found["source"]) == ("A red wall of stone.", "web")
        (read,) = CaptionRows(out)
        assert read.reference == "An image of 30 pixels."
        assert read.references == ("An image of 30 pixels.", "A wall.", "All is red.")
        assert read.boxes == (Box("wall", 0.0, 0.0, 1.0, 0.5),)
        assert (read.units, read.id, read.messages) == (("a wall",), "7", tuple(messages))


def test_one_process_writes_at_a_time(data, tmp_path):
    out = tmp_path / "out.jsonl"
    for path, run in (
        (out, lambda: recaption(RecaptionConfig(data=data, out=out, judge=JUDGE))),
        (units_path(data), lambda: make_units(UnitsConfig(data=str(data), judge=JUDGE))),
    ):
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(UserError, match="is being written by another process"):
                run()
            assert path.read_bytes() == b""


def test_images_without_a_file_cannot_be_named(tmp_path):
    with pytest.raises(UserError, match="in no files of their own"):
        _path_from(Image.new("RGB", (9, 9)), folder=tmp_path)


def test_captions_of_two_models_or_of_other_data_are_not_mixed(data, tmp_path):
    config = RecaptionConfig(data=data, out=tmp_path / "out.jsonl", judge=JUDGE)
    recaption(config)
    assert rows_of(config.out)[0]["rewritten_by"].startswith("m, prompts ")
    before = config.out.read_bytes()
    other = dataclasses.replace(config, judge=JudgeConfig(kind="llm", model="m2"))
    with pytest.raises(UserError, match="were written by m, prompts .* now it is m2, prompts"):
        recaption(other)
    data.write_text(data.read_text().replace("No. 3.", "Another one."))
    with pytest.raises(UserError, match="of the id '3' that was written from another one than"):
        recaption(config)
    assert config.out.read_bytes() == before
    old = [{k: v for k, v in row.items() if k != "rewritten_by"} for row in rows_of(config.out)]
    data.write_text(data.read_text().replace("Another one.", "No. 3."))
    config.out.write_text("".join(json.dumps(row) + "\n" for row in old[:2]))
    recaption(config)  # of an older version, which did not tell
    assert [row["id"] for row in rows_of(config.out)] == GOOD


def test_units_of_two_models_are_not_mixed(data):
    path = make_units(UnitsConfig(data=str(data), judge=JUDGE))
    before = path.read_bytes()
    with pytest.raises(UserError, match="units that were made by m, and now it is m2"):
        make_units(UnitsConfig(data=str(data), judge=JudgeConfig(kind="llm", model="m2")))
    assert path.read_bytes() == before
    people = [{k: v for k, v in row.items() if k != "model"} for row in rows_of(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in people))
    make_units(UnitsConfig(data=str(data), judge=JudgeConfig(kind="llm", model="m2")))


def test_files_of_a_bucket_are_written_as_those_of_a_disk(data, bucket, tmp_path, monkeypatch):
    bucket.put_folder(tmp_path, "set")
    there = as_path(bucket.url) / "set"
    out, named = there / "new.jsonl", there / "data.jsonl"
    monkeypatch.setattr(Seeing, "silent", (60,))
    with pytest.raises(UserError, match=r"1 of \d images have no new captions"):
        recaption(RecaptionConfig(data=named, out=out, judge=JUDGE))
    assert len(bucket.text("set/new.jsonl").splitlines()) == 3
    monkeypatch.setattr(Seeing, "silent", ())
    for _ in "12":
        assert recaption(RecaptionConfig(data=named, out=out, judge=JUDGE)) == out
        assert make_units(UnitsConfig(data=str(named), judge=JUDGE)) == there / (
            "data.jsonl.units.jsonl"
        )
    local = recaption(RecaptionConfig(data=data, out=tmp_path / "new.jsonl", judge=JUDGE))
    rows = [json.loads(line) for line in bucket.text("set/new.jsonl").splitlines()]
    assert rows == [{**row, "image": f"{there}/{row['image']}"} for row in rows_of(local)]
    units = make_units(UnitsConfig(data=str(data), judge=JUDGE))
    assert bucket.text("set/data.jsonl.units.jsonl") == units.read_text()
    other = dataclasses.replace(JUDGE, model="another")
    with pytest.raises(UserError, match=f"^{out} holds captions that were written by"):
        recaption(RecaptionConfig(data=named, out=out, judge=other))
    with pytest.raises(UserError, match=f"^{named}.units.jsonl holds units that were made by"):
        make_units(UnitsConfig(data=str(named), judge=other))
    assert not [name for name in bucket.objects if name.endswith(".lock")]
