"""Settings to sources: splits of scenes and of files, and which kind of data is which."""

import json
import shutil

import pytest
import tiny_tfds
from images import red, write_rows

from balcap_jax.config.sections import DataConfig
from balcap_jax.data import photos
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.coco_files import CocoRows
from balcap_jax.data.examples import Source, iterate
from balcap_jax.data.llava_files import LlavaRows
from balcap_jax.data.scene_source import export
from balcap_jax.data.sources import detect, open_rows, open_sources
from balcap_jax.data.tfds_folders import TfdsRows
from balcap_jax.errors import UserError
from balcap_jax.scenes import world as scenes


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return export(tmp_path_factory.mktemp("scenes"), split="train", count=5)


def test_scenes_train_by_seed_and_hold_out_the_same():
    train, heldout = open_sources(DataConfig(heldout=3), seed=1)
    train2, heldout2 = open_sources(DataConfig(heldout=3), seed=2)
    assert isinstance(train, Source)
    assert train[0].scene == scenes.make_scene(1, "train", 0) != train2[0].scene
    assert [e.id for e in iterate(heldout)] == [e.id for e in iterate(heldout2)]
    assert [e.scene for e in iterate(heldout)] == [e.scene for e in iterate(heldout2)]
    assert len(heldout) == 3
    assert train[10**6].scene is not None  # as long as any run


def test_a_file_is_cut_at_its_end(file):
    train, heldout = open_sources(DataConfig(path=str(file), heldout=2), seed=0)
    ids = [f"train-0-{i:06d}" for i in range(5)]
    assert isinstance(train, Source)
    assert [example.id for example in iterate(train)] == ids[:3]
    assert [example.id for example in iterate(heldout)] == ids[3:]


@pytest.mark.parametrize("heldout", [5, 6])
def test_something_must_be_left_to_train_on(file, heldout):
    with pytest.raises(UserError, match=f"5 usable.*heldout={heldout}.*below 5"):
        open_sources(DataConfig(path=str(file), heldout=heldout), seed=0)


def test_other_data_may_be_held_out(file, tmp_path):
    red(tmp_path)
    other = write_rows(tmp_path, [{"image": "red.png", "caption": str(i)} for i in range(4)])
    config = DataConfig(path=str(file), heldout_path=str(other), heldout=3)
    train, heldout = open_sources(config, seed=0)
    assert len(train) == 5
    assert [example.reference for example in iterate(heldout)] == ["0", "1", "2"]
    config = DataConfig(path=str(file), heldout_path=str(other), heldout=9)
    assert len(open_sources(config, seed=0)[1]) == 4


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_sources(DataConfig(path=str(tmp_path / "nowhere.jsonl"), heldout=1), seed=0)


# Kinds ------------------------------------------------------------------------------------------

LLAVA = [
    {
        "id": "1",
        "image": "red.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A wall."},
        ],
    }
]
COCO = {
    "info": {},
    "images": [{"id": 1, "file_name": "red.png", "width": 16, "height": 12}],
    "annotations": [{"image_id": 1, "caption": "A wall."}],
}
INSTANCES = {
    "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 8, 6]}],
    "categories": [{"id": 2, "name": "wall"}],
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder with one example of each kind of data."""
    folder = tmp_path_factory.mktemp("kinds")
    red(folder)
    write_rows(folder, [{"image": "red.png", "caption": "A wall."}])
    (folder / "llava.json").write_text(json.dumps(LLAVA, indent=1))
    (folder / "coco.json").write_text("\ufeff\n" + json.dumps(COCO), encoding="utf-8")
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    tiny_tfds.prepare(folder / "tfds")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "rows"),
    [
        ("data.jsonl", "jsonl", CaptionRows),
        ("llava.json", "llava", LlavaRows),
        ("coco.json", "coco", CocoRows),
        ("tfds", "tfds", TfdsRows),
    ],
)
def test_the_kind_shows_in_the_content(kinds, name, kind, rows):
    path = kinds / name
    assert detect(path) == kind
    for format_ in ("auto", kind):
        found = open_rows(DataConfig(path=str(path), format=format_), path, split="train")
        assert isinstance(found, rows)
        assert found[0].reference


def test_rows_on_one_line_may_be_called_json(kinds, tmp_path):
    path = tmp_path / "rows.json"
    shutil.copy(kinds / "data.jsonl", path)
    assert detect(path) == "jsonl"


def test_settings_reach_their_kind(kinds):
    config = DataConfig(
        path=str(kinds / "coco.json"), boxes=str(kinds / "instances.json"), images=str(kinds)
    )
    rows = open_rows(config, kinds / "coco.json", split="")
    assert rows[0].boxes[0][1:] == (0.0, 0.0, 0.5, 0.5)
    config = DataConfig(path=str(kinds / "tfds"), split="train[1:]", heldout_split="val")
    train, heldout = open_sources(config, seed=0)
    assert (len(train), len(heldout)) == (5, 3)
    assert {int(example.id) // 10 for example in iterate(heldout)} == {2}


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("data.jsonl", {"images": "nowhere"}, "data.images='nowhere' is not a folder; give the"),
        (
            "data.jsonl",
            {"format": "llava"},
            "is a JSON object without conversations, where LLaVA .* array",
        ),
        ("data.jsonl", {"format": "coco"}, "COCO|not JSON|no image with a caption"),
        ("data.jsonl", {"format": "tfds"}, "holds no data set of TFDS"),
        ("llava.json", {"format": "jsonl"}, "is a JSON array.*--data.format llava"),
        ("llava.json", {"format": "coco"}, "is a JSON array, where COCO"),
        ("coco.json", {"format": "jsonl"}, "line 2 has no .caption."),
        ("coco.json", {"format": "llava"}, "is a JSON object.*--data.format coco"),
        ("instances.json", {}, "has no .caption.*as --data.boxes"),
        ("coco.json", {"boxes": "nowhere.json"}, "nowhere.json cannot be read"),
        ("data.jsonl", {"boxes": "a.json"}, "data.boxes='a.json' has no effect on jsonl data"),
        ("llava.json", {"split": "val"}, "data.split='val' has no effect on llava data"),
        ("data.jsonl", {"heldout_split": "val"}, "leave out --data.heldout-split"),
        ("tfds", {"images": "."}, "data.images='.' has no effect on tfds data"),
        ("missing", {"format": "tfds"}, "missing does not exist, where a folder with"),
        ("", {}, "is a folder without a data set of TFDS; give a .jsonl"),
        ("missing", {}, "missing cannot be read .No such file"),
        ("red.png", {}, "line 1 is not JSON|is not UTF-8"),
        ("empty.json", {}, "holds no rows"),
        ("other.json", {}, "is one JSON object without the images and annotations of COCO"),
    ],
)
def test_bad_inputs_are_one_sentence(kinds, tmp_path, name, values, said):
    (kinds / "empty.json").write_text(" \n")
    (kinds / "other.json").write_text('{\n "a": 1\n}')
    path = kinds / name if name else tmp_path
    config = DataConfig(path=str(path), heldout=1, **values)
    with pytest.raises(UserError, match=said) as error:
        open_sources(config, seed=0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [{"images": "."}, {"split": "val"}, {"heldout_path": "a"}, {"format": "coco"}]
)
def test_scenes_read_no_settings_of_files(values):
    with pytest.raises(UserError, match="has no effect with data.path='scenes'"):
        DataConfig(**values)


def talk(*images):
    shown = [{"type": "image"} for _ in images]
    return {
        "images": list(images),
        "messages": [
            {"role": "user", "content": [*shown, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "All is red."},
        ],
    }


@pytest.mark.parametrize("checked", [1, 100])
@pytest.mark.parametrize(
    ("train", "heldout"),
    [
        (("a.png", "b.png"), ("b.png",)),
        (("b.png",), ("a.png", "b.png")),
        (("./b.png",), ("b.png",)),
    ],
)
def test_every_image_of_a_held_out_conversation_is_held_out(
    tmp_path, monkeypatch, checked, train, heldout
):
    monkeypatch.setattr(photos, "CHECKED", checked)
    for name in ("a.png", "b.png", "c.png"):
        red(tmp_path, name)
    path = write_rows(tmp_path, [talk(*train), talk("c.png"), talk(*heldout)])
    source, _ = open_sources(DataConfig(path=str(path), heldout=1), seed=0, conversations=True)
    met = {source[i].id for i in range(len(source))}
    assert met == {"data-000002"}  # the row of c.png


def test_a_shared_image_of_long_data_is_told_when_it_is_met(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(photos, "CHECKED", 1)
    for name in ("a.png", "b.png"):
        red(tmp_path, name)
    rows = [{"image": name, "caption": "Red."} for name in ("a.png", "b.png")]
    train = write_rows(tmp_path, rows)
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(rows[1]) + "\n")
    config = DataConfig(path=str(train), heldout_path=str(other), heldout=1)
    source, _ = open_sources(config, seed=0)
    assert source[0].reference == "Red."
    assert "held out as well" not in caplog.text
    for _ in range(2):
        assert source[1].reference == "Red."  # the user has named both: it is used
    assert caplog.text.count("have images that are held out as well; the first is data-000002") == 1
