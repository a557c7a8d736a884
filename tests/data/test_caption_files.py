"""Caption files: rows become examples, each kind of bad line is one sentence."""

import numpy as np
import pytest
from images import RED, red, write_rows

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import photos, row_index
from balcap_jax.data.caption_files import CaptionFile, CaptionRows
from balcap_jax.data.examples import Box, iterate
from balcap_jax.errors import UserError
from balcap_jax.scenes.world import make_scene


def test_rows_become_examples(tmp_path):
    red(tmp_path)
    scene = make_scene(0, "train", 3)
    path = write_rows(
        tmp_path,
        [
            {"image": "red.png", "caption": "A red wall.", "id": 7, "prompt": "What is it?"},
            {"image": str(tmp_path / "red.png"), "caption": "Red.", "scene": scene.to_json()},
        ],
    )
    source = CaptionFile(path)
    first, second = iterate(source)
    assert (first.id, first.prompt, first.reference) == ("7", "What is it?", "A red wall.")
    assert first.scene is None
    assert first.image.mode == "RGB"
    assert first.image.size == (16, 12)
    assert first.image.getpixel((3, 3)) == RED
    assert (second.id, second.prompt) == ("data-000002", PROMPT)
    assert second.scene == scene


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    red(tmp_path)
    path = tmp_path / "data.jsonl"
    path.write_text('\ufeff\n{"image": "red.png", "caption": "A\u2028 b"}\r\n\n', encoding="utf-8")
    assert [example.id for example in iterate(CaptionFile(path))] == ["data-000002"]


ROW = '{"image": "red.png", "caption": "Red."}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        (ROW + "\n{'image'}", "line 2 is not JSON"),
        (ROW + "\n\n[1]", "line 3 is not a JSON object"),
        ('{"a":' * 100_000, "line 1 is not JSON"),
        ('{"image": "red.png"}', 'line 1 has no "caption" and no "captions"'),
        ("[{}]", "is a JSON array"),
        ('{"image": "red.png", "captions": []}', '"captions": [], which must be a list of texts'),
        ('{"image": "red.png", "captions": ["a", ""]}', '"captions": "", which must be a text'),
        ('{"image": "red.png", "references": "a"}', '"references": "a", which must be a list'),
        (ROW[:-1] + ', "units": ["a", 1]}', '"units": 1'),
        (ROW[:-1] + ', "boxes": [{"label": "a", "box": [0, 0, 1]}]}', "has the box"),
        (ROW[:-1] + ', "boxes": [{"label": "a", "box": [0, 0, 640, 9]}]}', "from 0 to 1"),
        (ROW[:-1] + ', "boxes": [{"label": "a", "box": [0.5, 0, 0.5, 1]}]}', "has the box"),
        (ROW[:-1] + ', "boxes": [{"label": "", "box": [0, 0, 1, 1]}]}', "has the box"),
        (ROW[:-1] + ', "boxes": 3}', "has the box 3"),
        ('{"caption": "Red."}', 'line 1 has no "image"'),
        ('{"image": "red.png", "caption": "  "}', "must be a text that is not empty"),
        ('{"image": 3, "caption": "Red."}', '"image": 3'),
        ('{"image": "red.png", "caption": "Red.", "prompt": 1}', '"prompt": 1'),
        ('{"image": "red.png", "caption": "Red.", "id": [1]}', '"id": [1]'),
        ('{"image": "red.png", "caption": "Red.", "scene": {"a": 1}}', "line 1: scene"),
        (ROW[:-1] + ', "id": 1}\n' + ROW[:-1] + ', "id": "1"}', "'1' twice"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, said):
    red(tmp_path)
    path = tmp_path / "data.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        CaptionFile(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="missing.jsonl cannot be read .No such file"):
        CaptionFile(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match="cannot be read .Is a directory"):
        CaptionFile(tmp_path)
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-8"):
        CaptionFile(binary)


def test_all_that_is_known_of_a_photo(tmp_path):
    red(tmp_path)
    box = {"label": "wall", "box": [0, 0.25, 1, 0.5]}
    path = write_rows(
        tmp_path,
        [
            {"image": "red.png", "captions": ["Red.", "A red wall.", "All is red.", "Red."]},
            {"image": "red.png", "caption": "Red.", "references": ["A red wall.", "Red."]},
            {"image": "red.png", "references": ["A wall."], "boxes": [box], "units": ["a wall"]},
        ],
    )
    first, second, third = iterate(CaptionFile(path))
    # The longest in words, the first of two; each text once.
    assert first.reference == "A red wall."
    assert first.references == ("Red.", "A red wall.", "All is red.")
    assert (second.reference, second.references) == ("Red.", ("Red.", "A red wall."))
    assert (third.reference, third.references, third.units) == ("A wall.", (), ("a wall",))
    assert third.boxes == (Box("wall", 0.0, 0.25, 1.0, 0.5),)
    assert (first.boxes, first.units) == ((), ())


def test_images_may_lie_under_another_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    path = write_rows(tmp_path, [{"image": "a/red.png", "caption": "Red."}])
    assert CaptionRows(path)[0].image == tmp_path / "a/red.png"
    rows = CaptionRows(path, images=tmp_path / "photos")
    assert rows[0].image == tmp_path / "photos/a/red.png"


def test_a_long_file_is_parsed_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr(row_index, "_PIECE", 1000)
    lines = [f'{{"image": "{i}.png", "caption": "Number {i}."}}' for i in range(2000)]
    lines[1234] = "{'image'}"
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    rows = CaptionRows(path)
    assert len(rows) == 2000
    assert [rows[i].reference for i in (0, 999, 1999)] == [
        "Number 0.",
        "Number 999.",
        "Number 1999.",
    ]
    assert rows[1999].id == "long-002000"
    with pytest.raises(UserError, match="long.jsonl, line 1235 is not JSON"):
        rows[1234]
    # What stays in memory: where each row begins and ends, and its number.
    index = rows._texts.index
    assert sum(part.nbytes for part in index) == 2000 * 3 * np.dtype(np.int64).itemsize


def test_the_first_rows_are_read_at_once_the_others_in_their_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "CHECKED", 3)
    monkeypatch.setattr(photos, "SAMPLED", 1)
    red(tmp_path)
    for bad, refused in ((2, True), (3, False)):
        lines = [ROW] * 5
        lines[bad] = "no row"
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        if refused:
            with pytest.raises(UserError, match="line 3 is not JSON"):
                CaptionFile(path)
        else:
            with pytest.raises(UserError, match="line 4 is not JSON"):
                CaptionFile(path)[3]
            source = CaptionFile(path, max_bad_images=1)
            assert source[3].id == "data-000005"  # the next good one
            assert list(source.bad.reasons) == [f"{path}, line 4"]
