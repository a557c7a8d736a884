"""Data sets of TFDS, read without TensorFlow."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_tfds

from balcap_jax.data.examples import Box
from balcap_jax.data.photos import Photos
from balcap_jax.data.rows import BadRowError
from balcap_jax.data.tfds_folders import TfdsRows, find_folder
from balcap_jax.errors import UserError


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    tiny_tfds.prepare(data_dir)
    return data_dir


@pytest.fixture(scope="module")
def folder(data_dir):
    return find_folder(data_dir)


def test_the_folder_is_found_from_above(data_dir, folder):
    assert folder == data_dir / "coco_captions" / "2014" / "1.1.0"
    for start in (data_dir / "coco_captions", data_dir / "coco_captions" / "2014", folder):
        assert find_folder(start) == folder
    assert find_folder(data_dir / "downloads") is None


def test_examples(folder):
    source = Photos(TfdsRows(folder, split="train"), name=str(folder))
    assert len(source) == 6
    by_id = {int(source[i].id): source[i] for i in range(6)}  # tfds shuffles what it writes
    assert sorted(by_id) == list(range(6))
    for i, example in by_id.items():
        assert example.reference == f"A longer caption of image {i}."
        assert example.references == (f"Café {i}.", f"A longer caption of image {i}.")
        assert example.image.size == (16, 12)
        assert example.image.mode == "RGB"
        assert example.image.getpixel((5, 5)) == (10 * i,) * 3
        # tfds stores [ymin, xmin, ymax, xmax]; the crowd is left out.
        assert example.boxes == ((Box("dog", 0.25, 0.125, 0.75, 0.5),) if i else ())
    assert "tensorflow" not in sys.modules


def test_an_example_that_is_damaged_is_one_row(folder):
    rows = TfdsRows(folder, split="train")
    example = next(e for e in (rows._source[i] for i in range(6)) if e["image/id"] == 1)
    objects, captions = example["objects"], example["captions"]
    for change, said in (
        # tfds has -1 for no label, which would be the last name.
        ({"objects": objects | {"label": np.array([-1, -1])}}, "has the box .* of the label"),
        ({"objects": objects | {"label": np.array([7, 7])}}, "has the box .* from 0 to 1; prepare"),
        ({"objects": objects | {"bbox": np.array([[0.5, 0, 0.1, 1]] * 2)}}, "has the box"),
        ({"objects": objects | {"bbox": np.array([[0, 0, 1, np.nan]] * 2)}}, "has the box"),
        ({"objects": objects | {"label": np.array([1])}}, "has 2 boxes of 1 objects"),
        ({"captions": captions | {"text": [b"\xff\xfe"]}}, "which is not UTF-8"),
        ({"captions": captions | {"text": []}}, "has no caption"),
        ({"captions": {}}, 'has no list of "text"'),
        ({"image": None}, "has no image"),
        ({"image/id": 1.5}, 'has "id"'),
    ):
        rows._source = [example | change]
        with pytest.raises(BadRowError, match=said) as error:
            rows[0]
        assert "\n" not in str(error.value)
    crowd = objects | {"label": np.array([1, -1])}  # what is left out may be anything
    rows._source = [example | {"objects": crowd}]
    assert [box.label for box in rows[0].boxes] == ["dog"]


def test_splits_and_parts_of_them(folder):
    assert {int(row.id) for row in TfdsRows(folder, split="val")} == {20, 21, 22}
    parts = [TfdsRows(folder, split=split) for split in ("train[:4]", "train[4:]")]
    assert [len(part) for part in parts] == [4, 2]
    assert len({row.id for part in parts for row in part}) == 6


def test_many_threads_may_read(folder):
    rows = TfdsRows(folder, split="train")
    ids = [rows[i].id for i in range(6)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: rows[i % 6].id, range(300))) == ids * 50


def test_bad_folders_are_named(tmp_path, data_dir, folder):
    with pytest.raises(UserError, match="split 'vall' .*Should be one of.*--data.split"):
        TfdsRows(folder, split="vall")
    with pytest.raises(UserError, match="split 'train.:0.' .*cannot be read"):
        TfdsRows(folder, split="train[:0]")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read .*file_format='array_record'"):
        TfdsRows(tmp_path, split="train")
    for name in ("a", "b"):
        (tmp_path / "many" / name).mkdir(parents=True)
        (tmp_path / "many" / name / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="several data sets .*give one of these folders"):
        find_folder(tmp_path / "many")


def test_other_features_and_lost_files_are_named(tmp_path):
    folder = tiny_tfds.prepare(tmp_path, tiny_tfds.Unlabelled)
    with pytest.raises(UserError, match="has the features image, text, where image and captions"):
        TfdsRows(folder, split="train")
    folder = tiny_tfds.prepare(tmp_path / "lost")
    for path in folder.glob("*.array_record*"):
        path.unlink()
    with pytest.raises(UserError, match="split 'train' of the data set in .*cannot be read"):
        TfdsRows(folder, split="train")
