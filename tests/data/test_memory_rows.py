"""Rows in memory in every form that users have them."""

import io
import math

import numpy as np
import pytest
from images import write_rows
from PIL import Image

from balcap_jax.config.sections import PROMPT, DataConfig
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.memory_rows import MemoryRows
from balcap_jax.data.photos import Photos
from balcap_jax.data.rows import BadRowError
from balcap_jax.data.sources import open_sources
from balcap_jax.errors import UserError

RED = Image.new("RGB", (20, 10), "red")


def png() -> bytes:
    file = io.BytesIO()
    RED.save(file, "PNG")
    return file.getvalue()


def examples(rows):
    photos = Photos(MemoryRows(rows, name="rows"), name="rows")
    return [photos[i] for i in range(len(photos))]


def test_an_image_may_come_in_any_form(tmp_path):
    RED.save(tmp_path / "red.png")
    forms = [
        RED,
        np.asarray(RED),
        np.full((10, 20), 76, np.uint8),  # grey
        str(tmp_path / "red.png"),
        tmp_path / "red.png",
        png(),
        {"bytes": png(), "path": None},
        {"bytes": None, "path": str(tmp_path / "red.png")},
        RED.convert("RGBA"),
    ]
    found = examples([{"image": form, "caption": "A wall."} for form in forms])
    for i, example in enumerate(found):
        assert (example.image.mode, example.image.size) == ("RGB", (20, 10)), i
        assert example.image.getpixel((3, 3)) == ((76, 76, 76) if i == 2 else (255, 0, 0)), i
        assert example.id == f"row-{i:06d}"
    assert examples([{"images": [RED], "caption": "A wall."}])[0].image.size == (20, 10)


def test_captions_and_other_columns():
    row = {
        "id": 7,
        "image": RED,
        "caption": "A wall.",
        "references": np.array(["A red wall of stone.", "A wall."]),
        "prompt": "What is it?",
        "boxes": [{"label": "wall", "box": [0, 0, 1, 1]}],
        "source": "web",
    }
    (example,) = examples([row])
    assert example.id == "7"
    assert example.reference == "A wall."
    others = examples([{name: row[name] for name in ("image", "references")}])
    assert others[0].reference == "A red wall of stone."  # the longest tells most
    assert example.references == ("A wall.", "A red wall of stone.")
    assert example.prompt == "What is it?"
    assert example.boxes[0].label == "wall"
    assert example.columns["source"] == "web"
    assert not {"image", "prompt"} & set(example.columns)
    assert examples([{"image": RED}])[0].reference == ""  # no judge needs one


def test_prompts_may_be_messages():
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    ]
    (example,) = examples([{"image": RED, "prompt": messages}])
    assert example.messages == tuple(messages)
    assert example.prompt == "What is it?"


def test_datasets_of_other_libraries():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(), "path": None}] * 3, "captions": [["A wall.", "Red."]] * 3}
    )
    decoded = rows.cast_column("image", datasets.Image())
    for data in (rows, decoded):
        assert examples(data)[2].references == ("A wall.", "Red.")
        assert examples(data)[2].image.getpixel((0, 0)) == (255, 0, 0)

    class Mapped:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"image": RED, "caption": f"Wall {index}."}

    assert [example.reference for example in examples(Mapped())] == ["Wall 0.", "Wall 1."]


class SimpleFrame:
    """What is seen of a DataFrame of pandas: places are columns."""

    iloc = ()

    def __len__(self):
        return 1

    def __getitem__(self, name):
        raise KeyError(name)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "rows is empty"),
        (iter([]), "rows is a list_iterator, which must be a list of rows"),
        ({"train": [RED]}, r"rows is a dict.*; give one of its parts, such as data\['train'\]"),
        (SimpleFrame(), r"rows is a SimpleFrame, which must .*table\.to_dict\(.records.\)"),
        (["a.png"], "rows, row 0 is a str, which must be a dict"),
        ([{"caption": "A wall."}], 'row 0 has a NoneType as "image"'),
        ([{"image": 3}], 'row 0 has a int as "image"'),
        ([{"images": [RED, RED]}], "row 0 has 2 images"),
        ([{"image": RED, "caption": " "}], '"caption": " ", which must be a text'),
        ([{"image": RED, "captions": []}], "must be a list of texts"),
        ([{"image": RED, "prompt": 3}], "must be a text or a list of messages"),
        ([{"image": RED, "prompt": [{"role": "user"}]}], "a list of messages"),
        (
            [{"image": RED, "prompt": [{"role": "assistant", "content": "A wall."}]}],
            "last message must be of the user",
        ),
        ([{"image": RED, "id": 1}, {"image": RED, "id": "1"}], "has the id '1' twice"),
    ],
)
def test_rows_that_are_none_are_one_sentence(rows, said):
    with pytest.raises(UserError, match=said) as error:
        examples(rows)
    assert "\n" not in str(error.value)


def test_bad_images_are_passed_over_as_those_of_files():
    rows = [{"image": RED, "caption": "A."}, {"image": np.zeros((9, 9, 3), np.float32)}]
    photos = Photos(MemoryRows(rows, name="rows"), name="rows", max_bad_images=1)
    assert len(photos) == 1
    assert photos.bad.reasons == {
        "of row-000001": "its array is float32 [9, 9, 3], not uint8 [height, width, 3]"
    }


def test_rows_are_cut_or_held_out_apart():
    walls = [Image.new("RGB", (20, 10), (40 * i, 0, 0)) for i in range(5)]
    rows = [{"image": wall, "caption": f"Wall {i}."} for i, wall in enumerate(walls)]
    data = DataConfig(path="memory", heldout=2)
    train, heldout = open_sources(data, seed=0, train=rows)
    assert (len(train), len(heldout)) == (3, 2)
    train, heldout = open_sources(data, seed=0, train=rows, heldout=rows[:3])
    assert (len(train), [heldout[i].reference for i in range(2)]) == (5, ["Wall 0.", "Wall 1."])
    scenes, heldout = open_sources(DataConfig(heldout=2), seed=0, heldout=rows)
    assert (scenes[0].scene is not None, len(heldout)) == (True, 2)
    with pytest.raises(UserError, match="train_dataset has 5 usable examples"):
        open_sources(DataConfig(path="memory", heldout=5), seed=0, train=rows)
    with pytest.raises(UserError, match="were given to a Trainer in Python"):
        open_sources(data, seed=0)


@pytest.mark.parametrize(
    "row",
    [
        {"caption": ["A dog."], "captions": ["A cat.", "A cow."]},
        {"reference": ["A dog."], "references": ["A cat.", "A cow."]},
        {"captions": ["A dog.", "A cat."], "references": np.array(["A cow."]), "caption": None},
    ],
)
def test_no_caption_is_lost_where_one_and_several_are_given(row):
    assert MemoryRows([{"image": RED, **row}], name="rows")[0].all_references == (
        "A dog.", "A cat.", "A cow.",
    )  # fmt: skip


def test_the_reference_is_that_of_the_same_row_in_a_file(tmp_path):
    row = {"image": "red.png", "caption": "A dog.", "references": ["A dog that runs over grass."]}
    in_file = CaptionRows(write_rows(tmp_path, [row]))[0]
    in_memory = MemoryRows([row], name="rows")[0]
    assert in_memory.reference == in_file.reference == "A dog."
    assert in_memory.references == in_file.references


def test_a_table_has_nan_for_a_prompt_that_is_missing():
    row = {"image": RED, "caption": "A wall.", "prompt": math.nan}
    assert MemoryRows([row], name="rows")[0].prompt == PROMPT


class Broken:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index:
            raise OSError("the disk is gone")
        return {"image": RED, "caption": "A wall."}


def test_a_data_set_that_raises_is_a_bad_row():
    with pytest.raises(BadRowError, match=r"row 1 cannot be read \(OSError: the disk is gone\)"):
        MemoryRows(Broken(), name="rows")[1]
    photos = Photos(MemoryRows(Broken(), name="rows"), name="rows", max_bad_images=1)
    assert len(photos) == 1


@pytest.mark.parametrize("rows", ["data.jsonl", b"abc"])
def test_a_text_is_no_list_of_rows(rows):
    with pytest.raises(UserError, match=r"which must be a list of rows"):
        MemoryRows(rows, name="rows")


def test_a_table_is_told_how_to_become_rows():
    table = pytest.importorskip("pandas").DataFrame([{"image": "red.png", "caption": "A wall."}])
    with pytest.raises(UserError, match=r'is a DataFrame.*table\.to_dict\("records"\)'):
        MemoryRows(table, name="rows")
