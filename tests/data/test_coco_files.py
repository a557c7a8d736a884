"""Annotation files of COCO: captions by image, boxes from instances."""

import json

import numpy as np
import pytest

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import row_index
from balcap_jax.data.coco_files import CocoRows
from balcap_jax.data.examples import Box
from balcap_jax.errors import UserError

IMAGES = [
    {"id": 9, "file_name": "9.jpg", "width": 200, "height": 100, "license": 3},
    {"id": 4, "file_name": "4.jpg", "width": 64, "height": 64},
    {"id": 5, "file_name": "5.jpg"},
    {"id": 7, "file_name": "7.jpg"},
]
CAPTIONS = [
    {"image_id": 4, "id": 1, "caption": "A café."},
    {"image_id": 9, "id": 2, "caption": "A dog on grass. "},
    {"image_id": 4, "id": 3, "caption": "People sit outside a café."},
    {"image_id": 9, "id": 4, "caption": "A dog on grass."},
    {"image_id": 5, "id": 5, "caption": "A wall."},
    {"image_id": 8, "id": 6, "caption": "Nobody knows this image."},
]
OBJECTS = [
    {"image_id": 9, "category_id": 18, "bbox": [50.0, 25.0, 100.0, 50.0], "iscrowd": 0},
    {"image_id": 4, "category_id": 1, "bbox": [0.0, 0.0, 32.0, 80.0], "iscrowd": 0},
    {"image_id": 9, "category_id": 1, "bbox": [0.0, 0.0, 9.0, 9.0], "iscrowd": 1},
    {"image_id": 9, "category_id": 1, "bbox": [0.0, 0.0, 20.0, 10.0], "iscrowd": 0},
    {"image_id": 5, "category_id": 1, "bbox": [0.0, 0.0, 20.0, 10.0], "iscrowd": 0},
]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]


def write(folder, name, **sections):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"info": {"year": 2017}, **sections}, ensure_ascii=False))
    return path


def captions(folder, **changes):
    return write(folder, "captions", **{"images": IMAGES, "annotations": CAPTIONS, **changes})


def instances(folder, **changes):
    sections = {"annotations": OBJECTS, "images": IMAGES, "categories": CATEGORIES, **changes}
    return write(folder, "instances", **sections)


@pytest.mark.parametrize("piece", [50, 1 << 24])
def test_images_get_all_their_captions(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(row_index, "_PIECE", piece)
    rows = CocoRows(captions(tmp_path), images=tmp_path / "train2017")
    assert [row.id for row in rows] == ["9", "4", "5"]  # in the order of the images
    first, second, third = rows
    assert (first.reference, first.references) == ("A dog on grass.", ())
    assert second.reference == "People sit outside a café."
    assert second.references == ("A café.", "People sit outside a café.")
    assert third.references == ()
    assert first.image == tmp_path / "train2017" / "9.jpg"
    assert (first.prompt, first.boxes) == (PROMPT, ())
    assert rows.skipped == {
        "images without a caption": 1,
        "captions of images that are not listed": 1,
    }


def test_boxes_are_shares_of_the_image(tmp_path):
    rows = CocoRows(captions(tmp_path), boxes=instances(tmp_path))
    # 50 / 200 = 0.25, 25 / 100 = 0.25, (50 + 100) / 200 = 0.75, (25 + 50) / 100 = 0.75; no crowd.
    assert rows[0].boxes == (
        Box("dog", 0.25, 0.25, 0.75, 0.75),
        Box("person", 0.0, 0.0, 0.1, 0.1),
    )
    # 32 / 64 = 0.5; 80 > 64 ends at the border.
    assert rows[1].boxes == (Box("person", 0.0, 0.0, 0.5, 1.0),)
    assert rows[2].boxes == ()  # the size of the image is not known
    assert all(np.isfinite(box[1:]).all() for row in rows for box in row.boxes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": []}, "no image with a caption"),
        ({"annotations": []}, "no image with a caption .4 images, captions of 0.; give captions_"),
        ({"annotations": OBJECTS}, "annotations 1 has no .caption.*instances_.*as --data.boxes"),
        ({"annotations": [{"image_id": "9", "caption": "a"}]}, 'annotations 1 has "image_id": "9"'),
        ({"images": [3]}, "images 1 is 3, which must be an object"),
    ],
)
def test_bad_captions_are_named(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        CocoRows(captions(tmp_path, **changes))
    assert str(tmp_path / "captions.json") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"categories": []}, "objects of category 1, which it does not name"),
        ({"annotations": CAPTIONS}, '"bbox": null, which must be .x, y, width, height.'),
        ({"annotations": [{"image_id": 9, "bbox": [1, 2, 3, 4]}]}, '"category_id": null'),
    ],
)
def test_bad_instances_are_named(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        CocoRows(captions(tmp_path), boxes=instances(tmp_path, **changes))
    assert str(tmp_path / "instances.json") in str(error.value)


def test_an_array_is_of_another_kind(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[1]")
    with pytest.raises(UserError, match="is a JSON array.*--data.format llava"):
        CocoRows(path)


def test_objects_of_other_images_are_refused(tmp_path):
    other = [{**OBJECTS[0], "image_id": 7}]  # an image without a caption
    with pytest.raises(UserError, match=r"data\.boxes=.* has no object of the 3 images"):
        CocoRows(captions(tmp_path), boxes=instances(tmp_path, annotations=other))


def test_boxes_of_images_of_unknown_size_are_counted(tmp_path):
    rows = CocoRows(captions(tmp_path), boxes=instances(tmp_path))
    assert rows.skipped["boxes of images without width and height"] == 1


def test_a_box_of_negative_width_is_refused(tmp_path):
    bad = [{**OBJECTS[0], "bbox": [50.0, 25.0, -10.0, 50.0]}]
    with pytest.raises(UserError, match=r"annotations 1 has .bbox.: \[50.0, 25.0, -10.0"):
        CocoRows(captions(tmp_path), boxes=instances(tmp_path, annotations=bad))
