"""Files of LLaVA and ShareGPT4V: rows with an image and an answer, the others counted."""

import json
import logging

import pytest
from images import RED, red

from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import iterate
from balcap_jax.data.llava_files import LlavaRows
from balcap_jax.data.photos import Photos
from balcap_jax.errors import UserError


def turns(*words):
    return [{"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(words)]


def row(*words, image="coco/red.png", **values):
    return {"id": "7", "image": image, "conversations": turns(*words), **values}


def write(folder, values, **options):
    path = folder / "share.json"
    path.write_text(json.dumps(values, **options), encoding="utf-8")
    return path


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": False}])
def test_rows_become_examples(tmp_path, options):
    (tmp_path / "root" / "coco").mkdir(parents=True)
    red(tmp_path / "root" / "coco")
    path = write(
        tmp_path,
        [
            row("<image>\nWhat is thé colour?", " Réd.\n"),
            row("What is it?\n<image>", "A wall."),
            row("<image>", "All is red.", "Sure?", "Yes."),
            {**row("<image>\nAsk", "Answer"), "id": 12},
        ],
        **options,
    )
    rows = LlavaRows(path, images=tmp_path / "root")
    first, second, third, fourth = iterate(Photos(rows, name="share"))
    assert (first.prompt, first.reference) == ("What is thé colour?", "Réd.")
    assert (second.prompt, second.reference) == ("What is it?", "A wall.")
    assert (third.prompt, third.reference) == (PROMPT, "All is red.")
    assert [first.id, second.id, fourth.id] == ["7#1", "7#2", "12#4"]  # published ids repeat
    assert first.image.getpixel((3, 3)) == RED
    assert (first.references, first.boxes, first.scene) == ((), (), None)


def test_rows_of_no_use_are_counted(tmp_path, caplog):
    speaking = {"from": "system", "value": "Be brief."}
    path = write(
        tmp_path,
        [
            {"id": "t", "conversations": turns("Hello", "Hello!")},
            row("<image>\nWhat?"),
            row("<image>\nWhat?", "  "),
            row("<image>\nWhat?", image=["a.png", "b.png"]),
            row("<image><image>\nWhat differs?", "Nothing."),
            {**row(), "conversations": []},
            {**row(), "conversations": [speaking, *turns("<image>\nWhat?", "A wall.")]},
            {
                **row(),
                "conversations": [
                    {"from": "user", "value": "<image>Why?"},
                    {"from": "assistant", "value": "So."},
                ],
            },
        ],
    )
    with caplog.at_level(logging.WARNING):
        rows = LlavaRows(path)
    assert [(r.id, r.prompt, r.reference) for r in rows] == [
        ("7#7", "What?", "A wall."),
        ("7#8", "Why?", "So."),
    ]
    assert rows[0].image == tmp_path / "coco/red.png"
    assert rows.skipped == {
        "without an image": 1,
        "without an answer": 3,
        "with a list of images": 1,
        "with several image tags": 1,
    }
    assert any("skipped 3 rows without an answer" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "no row that can be used .it is empty."),
        ([{"conversations": turns("Hi", "Ho")}], "1 rows without an image"),
        ([row("What is it?", "A wall.")], "1 rows without <image> before or after the words"),
        ([3, 3], '2 rows that are no object with "conversations", first row 1'),
        ([{"image": "a.png", "caption": "A wall."}], "no object with .conversations.*as .jsonl"),
        ([{**row(), "conversations": ["Hi"]}], "turns must be like"),
        ([{**row(), "conversations": [{"from": "human"}]}], "turns must be like"),
        ([row("<image>", "a", image=5)], "with an image that is no path"),
        ({"images": [1]}, "is a JSON object.*--data.format coco"),
    ],
)
def test_bad_files_are_named(tmp_path, values, said):
    with pytest.raises(UserError, match=said) as error:
        LlavaRows(write(tmp_path, values))
    assert str(tmp_path / "share.json") in str(error.value)


def test_a_file_that_changes_is_noticed(tmp_path):
    path = write(tmp_path, [row("<image>", "One."), row("<image>", "Two.")])
    rows = LlavaRows(path)
    path.write_text("[" + " " * 500)
    with pytest.raises(UserError, match="has changed since the start of the run .row 2"):
        rows[1]


def test_a_row_nested_too_deeply_is_one_row_that_is_skipped(tmp_path):
    deep = 1
    for _ in range(150):
        deep = [deep]
    good = row("<image>\nWhat?", "A wall.")
    rows = LlavaRows(write(tmp_path, [good, {**good, "x": deep}]))
    assert [found.id for found in rows] == ["7#1"]
    assert rows.skipped == {"that are nested deeper than 100 levels": 1}
