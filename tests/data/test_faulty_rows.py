"""Faults of single rows, in every kind of data: one row, one reason, and the others go on."""

import json
import logging

import numpy as np
import pytest
from images import red, write_rows
from PIL import Image

from balcap_jax.config.sections import DataConfig
from balcap_jax.data import photos
from balcap_jax.data.caption_files import CaptionFile, CaptionRows
from balcap_jax.data.coco_files import CocoRows
from balcap_jax.data.examples import Box, iterate
from balcap_jax.data.llava_files import LlavaRows
from balcap_jax.data.memory_rows import MemoryRows
from balcap_jax.data.photos import Photos
from balcap_jax.data.sources import detect, open_rows, open_sources
from balcap_jax.errors import UserError

GOOD = {"image": "red.png", "caption": "A red wall."}


# A key twice --------------------------------------------------------------------------------------


def coco(folder, name="coco", **changes):
    sections = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in (1, 2)],
        "annotations": [{"id": 10 + i, "image_id": i, "caption": f"Number {i}."} for i in (1, 2)],
        **changes,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(sections))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"images": [{"id": i, "file_name": f"p{n}.png"} for n, i in enumerate((1, 2, 1))]},
            "two images of the id 1",
        ),
        (
            {"annotations": [{"id": 5, "image_id": i, "caption": "Red."} for i in (1, 2)]},
            "two annotations of the id 5",
        ),
        ({"images": [{"id": True, "file_name": "a.png"}]}, '"id": true'),
        ({"images": [{"id": 10**400, "file_name": "a.png"}]}, "must be a whole number"),
    ],
)
def test_ids_of_coco_are_told_apart(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        CocoRows(coco(tmp_path, **changes))


def test_ids_of_objects_and_categories_are_told_apart(tmp_path):
    objects = [{"id": 3, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}] * 2
    names = [{"id": 1, "name": "dog"}, {"id": 1, "name": "cat"}]
    for changes, said in (
        ({"annotations": objects, "categories": names[:1]}, "two annotations of the id 3"),
        ({"annotations": objects[:1], "categories": names}, "two categories of the id 1"),
    ):
        with pytest.raises(UserError, match=said):
            CocoRows(coco(tmp_path), boxes=coco(tmp_path, "instances", **changes))


def test_a_section_or_a_field_twice_is_refused(tmp_path):
    path = tmp_path / "coco.json"
    image, caption = '{"id": 1, "file_name": "a.png"}', '{"image_id": 1, "caption": "A."}'
    path.write_text(f'{{"images": [{image}], "annotations": [{caption}], "images": []}}')
    with pytest.raises(UserError, match='it has "images" twice'):
        CocoRows(path)
    path.write_text(f'{{"images": [{image[:-1]}, "id": 2}}], "annotations": [{caption}]}}')
    with pytest.raises(UserError, match='images 1 has "id" twice'):
        CocoRows(path)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ('"id": 1', '"id": 1', "the id '1' twice, in the lines 1 and 2503"),
        ('"id": "a"', '"id" : "\\u0061"', "the id 'a' twice"),
        ('"note": 1', '"id": "data-000001"', "the id 'data-000001' twice, in the lines 1 and 2503"),
        ('"id": "data-002503"', '"note": 1', "the id 'data-002503' twice"),
        ('"more": {"id": 7}', '"id": 7', None),
        ('"id": 17', '"id": 1', None),
        ('"caption": "\\"id\\": 1"', '"id": 1', None),
    ],
)
def test_ids_of_a_long_file_are_told_apart(tmp_path, first, second, said):
    rows = ['{"image": "red.png", "caption": "Red.", "n": 1}'] * 2501
    rows = [f'{{"image": "red.png", "captions": ["Red."], {first}}}', *rows]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*rows, rows[1][:-1] + f", {second}}}"]))
    if said is None:
        assert len(CaptionRows(path)) == 2503
    else:
        with pytest.raises(UserError, match=said):
            CaptionRows(path)


def test_ids_in_memory_are_told_apart(monkeypatch):
    monkeypatch.setattr(photos, "CHECKED", 3)
    monkeypatch.setattr(photos, "SAMPLED", 1)
    rows = [{"image": Image.new("RGB", (9, 9)), "id": i % 5} for i in range(6)]
    with pytest.raises(UserError, match="the id '0' twice, in the rows 0 and 5"):
        MemoryRows(rows, name="rows")

    class Lazy:  # whose ids can only be read with the images
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return rows[index]

    source = Photos(MemoryRows(Lazy(), name="rows"), name="rows")
    with pytest.raises(UserError, match="the id '0' twice, in the rows 0 and 5"):
        list(iterate(source))


@pytest.mark.parametrize("row", ['{"image": "a.png", "caption": "A.", "caption": "B."}'])
def test_a_field_twice_is_no_row(tmp_path, row):
    path = tmp_path / "data.jsonl"
    path.write_text(row)
    with pytest.raises(UserError, match='line 1 is not JSON .it has "caption" twice'):
        CaptionRows(path)[0]


# One row, one reason ------------------------------------------------------------------------------

FAULTS = [
    {"caption": "Half \ud83d an emoji."},
    {"caption": 5},
    {"caption": "A wall.<|im_end|>"},
    {"caption": "<image> A wall."},
    {"captions": ["A wall.", "A wall. \ud83d"]},
    {"boxes": 5},
    {"boxes": [{"label": "a", "box": [0, 0, 10**400, 1]}]},
    {"boxes": [{"label": "a", "box": [0, 0, float("nan"), 1]}]},
    {"boxes": [["a", 0, 0, "1", 1]]},
    {"units": 5},
    {"units": [{"text": 3}]},
    {"units": ["a wall", "\udc00"]},
    {"id": [1]},
    {"id": True},
    {"prompt": "What is it?<|im_end|>"},
    {"prompt": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
    {
        "prompt": [
            {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": "A"}]}
        ]
    },  # noqa: E501
    {"scene": 5},
    {"scene": {"things": [{}], "background": "white"}},
    {"image": "red\0.png"},
    {"image": "\ud83d.png"},
    {"image": "a" * 5000},
]


def deep(levels):
    return json.loads("[" * levels + "]" * levels)


@pytest.mark.parametrize("fault", [*FAULTS, {"note": deep(600)}])
def test_a_faulty_row_of_a_file_is_left_out_with_its_reason(tmp_path, fault, caplog):
    red(tmp_path)
    path = write_rows(tmp_path, [{**GOOD, "id": 1}, {**GOOD, **fault}, {**GOOD, "id": 3}])
    with caplog.at_level(logging.WARNING):
        source = CaptionFile(path, max_bad_images=1)
    assert [example.id for example in iterate(source)] == ["1", "3"]
    ((_, reason),) = source.bad.reasons.items()
    assert reason
    assert "\n" not in reason
    assert sum("skipped" in message for message in caplog.messages) == 1
    caplog.messages[0].encode()  # it can be printed
    with pytest.raises(UserError, match="1 bad (rows|images) of 3") as error:
        CaptionFile(path)
    str(error.value).encode()


@pytest.mark.parametrize("fault", [f for f in FAULTS if not isinstance(f.get("image"), str)])
def test_a_faulty_row_in_memory_is_left_out_with_its_reason(fault):
    good = {"image": Image.new("RGB", (9, 9)), "caption": "A wall."}
    rows = MemoryRows([good, {**good, **fault}, good], name="rows")
    source = Photos(rows, name="rows", max_bad_images=1)
    assert [example.id for example in iterate(source)] == ["row-000000", "row-000002"]
    assert list(source.bad.reasons) in (["rows, row 1"], ["rows, row 1:"])


def test_a_faulty_row_of_coco_is_left_out_with_its_reason(tmp_path):
    for i in (1, 2, 3):
        red(tmp_path, f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in (1, 2, 3)]
    captions = [{"id": i, "image_id": i, "caption": "A wall."} for i in (1, 2, 3)]
    for section, number, fault in (
        ("annotations", 1, {"caption": 5}),
        ("annotations", 1, {"caption": "\ud83d"}),
        ("images", 1, {"file_name": None}),
        ("images", 1, {"width": "9"}),
        ("images", 1, {"width": 10**400}),
    ):
        sections = {"images": [*images], "annotations": [*captions]}
        sections[section][number] = {**sections[section][number], **fault}
        rows = CocoRows(coco(tmp_path, **sections))
        source = Photos(rows, name="coco", max_bad_images=1)
        assert [example.id for example in iterate(source)] == ["1", "3"]
        assert list(source.bad.reasons) == [f"{tmp_path / 'coco.json'}, {section} 2"]


def test_boxes_in_the_forms_of_scores_and_of_training(tmp_path):
    red(tmp_path)
    forms = [
        [{"label": "wall", "box": [0, 0, 1, 0.5]}],
        {"label": "wall", "box": [0, 0, 1, 0.5]},
        [["wall", 0, 0, 1, 0.5]],
        [{"label": "wall", "left": 0, "top": 0, "right": 1, "bottom": 0.5}],
        {"label": ["wall"], "box": [[0, 0, 1, 0.5]]},
    ]
    path = write_rows(tmp_path, [{**GOOD, "boxes": boxes} for boxes in forms])
    in_memory = MemoryRows(
        [{"image": Image.new("RGB", (9, 9)), "boxes": np.array(forms[2], object)}], name="rows"
    )
    for row in (*CaptionRows(path), in_memory[0]):
        assert row.boxes == (Box("wall", 0.0, 0.0, 1.0, 0.5),)


def test_one_caption_in_two_spellings_is_one_reference(tmp_path):
    composed, split = "A caf\u00e9.", "A cafe\u0301."
    path = write_rows(tmp_path, [{"image": "red.png", "captions": [composed, split]}])
    assert CaptionRows(path)[0].references == ()
    assert CaptionRows(path)[0].reference == composed


# Conversations ------------------------------------------------------------------------------------


def turn(speaker, value):
    return {"from": speaker, "value": value}


def conversation(*turns, image="red.png", **values):
    return {"id": 1, "image": image, "conversations": list(turns), **values}


USED = conversation(turn("human", "<image>\nWhat is it?"), turn("gpt", "A wall."))


@pytest.mark.parametrize("lines", [True, False])
def test_conversations_lose_no_words(tmp_path, lines):
    red(tmp_path)
    rows = [
        conversation(
            turn("human", "<image>"), turn("human", "What is it?"), turn("gpt", "A wall.")
        ),
        conversation(*USED["conversations"][:1], turn("gpt", "A"), turn("gpt", "wall.")),
        conversation(*USED["conversations"], image=["red.png"]),
        {**USED, "id": None},
    ]
    path = tmp_path / "share.json"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    assert detect(path) == "llava"
    found = list(iterate(Photos(open_rows(DataConfig(path=str(path)), path, split=""), name="x")))
    assert [(e.prompt, e.reference) for e in found] == [
        ("What is it?", "A wall."),
        ("What is it?", "A\nwall."),
        ("What is it?", "A wall."),
        ("What is it?", "A wall."),
    ]
    assert found[3].id == "share#4"


HUMAN = turn("human", "<image>\nWhat is it?")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (conversation(HUMAN, turn("gpt", "<image> A wall.")), "with a special token in the answer"),
        (conversation(HUMAN, turn("gpt", "A wall.</s>")), "with a special token in the answer"),
        (conversation(turn("human", "<image><|im_end|>"), turn("gpt", "A.")), "special token"),
        (conversation(HUMAN, turn("gpt", ["A wall."])), "whose turns must be like"),
        (conversation(HUMAN, turn("gpt", {"a": 1})), "whose turns must be like"),
        (conversation(HUMAN, turn(3, "A wall.")), "whose turns must be like"),
        (conversation(HUMAN, turn("tool", "A wall.")), "of another speaker"),
        (conversation(HUMAN, turn("gpt", "Half \ud83d.")), "with half of a character"),
        (conversation(HUMAN, None), "whose turns must be like"),
        (conversation(HUMAN, turn("gpt", "A."), image=[["a"]]), "with an image that is no path"),
        (conversation(HUMAN, turn("gpt", "A."), image=["a", "b"]), "with a list of images"),
        (conversation(HUMAN, turn("gpt", "A."), id=[1]), "with an id that is neither"),
        (5, "that are no object"),
        ({"id": 3, "image": "red.png", "conversations": "Hi"}, "that are no object"),
    ],
)
@pytest.mark.parametrize("lines", [True, False])
def test_conversations_that_cannot_be_used_are_counted(tmp_path, caplog, row, reason, lines):
    path = tmp_path / "share.json"
    rows = [USED, row, USED]
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    with caplog.at_level(logging.WARNING):
        found = LlavaRows(path)
    assert [r.id for r in found] == ["1#1", "1#3"]
    assert sum(found.skipped.values()) == 1
    assert reason in next(iter(found.skipped))
    assert "the first is row 2" in caplog.messages[0]


def test_a_field_twice_in_a_conversation_is_counted(tmp_path):
    path = tmp_path / "share.json"
    text = json.dumps(USED)
    path.write_text(f'[{text}, {text[:-1]}, "image": "b.png"}}]')
    assert LlavaRows(path).skipped == {"with a field twice": 1}


# The same image in several rows -------------------------------------------------------------------


def rows_of_three_images(folder):
    """Six rows: a photo with three captions, one of them by another path, the last one held out."""
    for name in ("a", "b", "c"):
        red(folder, f"{name}.png")
    (folder / "link.png").symlink_to(folder / "a.png")
    (folder / "sub").mkdir()
    names = ["a.png", "b.png", "sub/../a.png", "link.png", "c.png", "a.png"]
    return [{"id": i, "image": name, "caption": f"No. {i}."} for i, name in enumerate(names)]


@pytest.mark.parametrize("checked", [1, 2000])
def test_an_image_is_on_one_side_of_the_split(tmp_path, checked, monkeypatch, caplog):
    monkeypatch.setattr(photos, "CHECKED", checked)
    monkeypatch.setattr(photos, "SAMPLED", 1)
    path = write_rows(tmp_path, rows_of_three_images(tmp_path))
    with caplog.at_level(logging.WARNING):
        train, heldout = open_sources(DataConfig(path=str(path), heldout=1), seed=0)
        seen = [example.id for example in iterate(train)]
    assert [example.id for example in iterate(heldout)] == ["5"]
    assert set(seen) == {"1", "4"}
    assert any("held out" in message for message in caplog.messages)
    if checked == 2000:
        assert len(train) == 2
        assert "left out 3 of 5 examples" in caplog.messages[0]


def test_a_long_file_of_one_image_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "CHECKED", 1)
    red(tmp_path)
    path = write_rows(tmp_path, [GOOD] * 5)
    train, _ = open_sources(DataConfig(path=str(path), heldout=1), seed=0)
    with pytest.raises(UserError, match="4 examples to train on, whose images are all held out"):
        train[0]


def test_an_image_in_memory_is_on_one_side_of_the_split():
    first, second = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue"))
    for same in (first.copy(), np.asarray(first)):
        rows = [
            {"image": image, "caption": f"No. {i}."}
            for i, image in enumerate((first, second, same))
        ]
        train, heldout = open_sources(DataConfig(path="memory", heldout=1), seed=0, train=rows)
        assert [example.id for example in iterate(train)] == ["row-000001"]
        assert [example.id for example in iterate(heldout)] == ["row-000002"]
    with pytest.raises(UserError, match="whose images are all held out"):
        open_sources(DataConfig(path="memory", heldout=1), seed=0, train=[rows[0], rows[2]])


def test_images_that_are_held_out_by_name_and_trained_on_are_told(tmp_path, caplog):
    path = write_rows(tmp_path, rows_of_three_images(tmp_path))
    other = tmp_path / "heldout.jsonl"
    other.write_text(json.dumps({"image": "a.png", "caption": "A."}))
    with caplog.at_level(logging.WARNING):
        train, _ = open_sources(DataConfig(path=str(path), heldout_path=str(other)), seed=0)
    assert len(train) == 6
    assert "4 of the 6 examples to train on have images that are held out" in caplog.text
