"""`balcap data check`: everything that is wrong is listed, and good data are exit 0."""

import json
import shutil

import pytest
from images import red, text_file, write_rows
from PIL import Image

from balcap_jax.cli.main import main
from balcap_jax.commands.check_data import check_data
from balcap_jax.config.judge import CheckConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.scene_source import export
from balcap_jax.errors import UserError


def checked(path, **settings):
    found = check_data(CheckConfig(file=str(path), data=DataConfig(path="memory", **settings)))
    return found.facts, {problem.what: problem for problem in found.problems}


def test_good_data(tmp_path, capsys):
    for i, size in enumerate([(16, 12), (32, 24), (64, 48)]):
        Image.new("RGB", size, (80 * i, 0, 0)).save(tmp_path / f"{i}.{'png' if i else 'jpg'}")
    box = {"label": "wall", "box": [0, 0, 1, 1]}
    path = write_rows(
        tmp_path,
        [
            {"image": "0.jpg", "captions": ["A wall.", "A red wall."], "boxes": [box]},
            {"image": "1.png", "caption": "A wall.", "units": ["a wall"]},
            {"image": "2.png", "caption": "A dark wall.", "prompt": "What is it?"},
        ],
    )
    facts, problems = checked(path)
    assert problems == {}
    assert facts == {
        "kind": "jsonl",
        "rows": "3",
        "images": "3",
        "captions per image": "1 ... 2",
        "words per caption": "2 ... 3",
        "prompts": '2, most often "Describe the image." (2)',
        "rows with boxes": "1",
        "rows with units": "1",
        "rows with a scene": "0",
        "sizes": "16 x 12 ... 32 x 24 ... 64 x 48",
        "formats": "PNG 2, JPEG 1",
    }
    assert main(["data", "check", str(path)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_all_that_is_wrong(tmp_path, capsys):
    red(tmp_path, "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    red(tmp_path, "b.png", size=(40, 40))
    text_file(tmp_path)
    path = write_rows(
        tmp_path,
        [
            {"id": 1, "image": "a.png", "caption": "A wall."},
            {"id": 2, "image": "./a.png", "caption": "A red wall."},
            {"id": 3, "image": "copy.png", "caption": "A wall."},
            {"id": 4, "image": "b.png", "caption": "wall " * 300},
            {"id": 5, "image": "b.png", "caption": " "},
            {"id": 6, "image": "missing.png", "caption": "A wall."},
            {"id": 7, "image": "text.jpg", "caption": "A wall."},
        ],
    )
    facts, problems = checked(path)
    assert (facts["rows"], facts["images"]) == ("6", "5")
    counts = {what: problem.count for what, problem in problems.items()}
    assert counts == {
        "rows that are none": 1,
        "images that are bad: there is no such file": 1,
        "images that are bad: it is not an image": 1,
        "captions above 256 words": 1,
        "images in several rows": 1,
        "images of the same content under several paths": 1,
    }
    assert problems["images in several rows"].examples == (f"{tmp_path}/a.png in 1 2",)
    assert "line 5" in problems["rows that are none"].examples[0]
    assert main(["data", "check", str(path)]) == 1
    assert "images in several rows" in capsys.readouterr().out


@pytest.mark.parametrize("copied", [False, True])
def test_images_on_both_sides(tmp_path, copied):
    red(tmp_path, "a.png")
    red(tmp_path, "b.png", size=(40, 40))
    path = write_rows(tmp_path, [{"image": "a.png", "caption": "A."}])
    other = tmp_path / "heldout.jsonl"
    shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
    names = ["c.png" if copied else "./a.png", "b.png"]
    other.write_text("".join(json.dumps({"image": n, "caption": "A."}) + "\n" for n in names))
    facts, problems = checked(path, heldout_path=str(other))
    assert facts["held out"] == "2 rows"
    assert [(what, problem.count) for what, problem in problems.items()] == [
        ("held-out images that are trained on", 1)
    ]


def test_ids_that_come_twice_and_rows_of_no_use(tmp_path):
    red(tmp_path)
    path = write_rows(tmp_path, [{"id": 1, "image": "red.png", "caption": "A."}] * 2)
    assert checked(path)[1]["ids or names that come twice"].count == 1
    share = tmp_path / "share.json"
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A wall."}]
    row = {"image": "red.png", "conversations": turns}
    share.write_text(json.dumps([row, {"conversations": turns}, 5]))
    assert checked(share)[1]["rows or entries that are of no use"].count == 2


def test_what_cannot_be_opened_is_one_sentence(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "nowhere.jsonl")]) == 2
    assert main(["data", "check", "a.jsonl", "--data.path", "b.jsonl"]) == 2
    assert "both name data" in capsys.readouterr().err


def test_scenes_are_not_written_onto_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(UserError, match="cannot be made"):
            export(folder, split="train", count=1)


# ---- for supervised runs


def talk(*words, system=None):
    """Messages of a question, an answer, a question ..."""
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": content} for i, content in enumerate(words)]
    return [{"role": "system", "content": system}, *said] if system else said


def checked_for_sft(path, **settings):
    data = DataConfig(path="memory", **settings)
    found = check_data(CheckConfig(file=str(path), task="sft", data=data))
    return found.facts, {problem.what: problem for problem in found.problems}


def test_good_conversations(tmp_path, capsys):
    red(tmp_path, "a.png")
    red(tmp_path, "b.png", size=(40, 40))
    path = write_rows(
        tmp_path,
        [
            {
                "image": "a.png",
                "messages": talk("<image>\nWhat?", "A wall.", "Sure?", "Yes it is."),
            },
            {
                "images": ["a.png", "b.png"],
                "messages": talk("<image> <image> or?", "The first one."),
            },
            {"image": "b.png", "messages": talk("What?", "A wall.", system="Be brief.")},
            {"image": "b.png", "captions": ["A wall.", "A red, red wall of bricks."]},
        ],
    )
    facts, problems = checked_for_sft(path)
    assert problems == {}
    assert facts == {
        "kind": "jsonl",
        "rows": "4",
        "images": "2",
        "images per row": "1 ... 2",
        "turns per row": "1 ... 2",
        "answers": "6",
        "words per answer": "2 ... 3 ... 6",
        "first questions": '3, most often "What?" (2)',
        "rows with a system turn": "1",
        "sizes": "16 x 12 ... 40 x 40 ... 40 x 40",
        "formats": "PNG 5",
    }
    assert main(["data", "check", str(path), "--task", "sft"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    # On rewards they cannot be trained.
    assert main(["data", "check", str(path)]) == 1


def test_all_that_is_wrong_with_conversations(tmp_path):
    red(tmp_path, "a.png")
    text_file(tmp_path)
    good = talk("<image>\nWhat?", "A wall.")
    path = write_rows(
        tmp_path,
        [
            {"id": 1, "image": "a.png", "messages": good},
            {"id": 2, "image": "./a.png", "messages": good},
            {"id": 3, "image": "a.png", "messages": talk("<image>\nWhat?")},
            {"id": 4, "image": "a.png", "messages": [{"role": "judge", "content": "Good."}]},
            {"id": 5, "image": "a.png", "messages": talk("<image><image> or?", "The first.")},
            {"id": 6, "images": ["a.png", "missing.png"], "messages": talk("<image><image>", "A.")},
            {"id": 7, "image": "text.jpg", "messages": talk("<image>\nWhat?", "A wall.<|im_end|>")},
            {"id": 8, "image": "a.png", "messages": talk("<image>", "A.", "<image>", "B.")},
        ],
    )
    facts, problems = checked_for_sft(path)
    assert facts["rows"] == "3"
    counts = {what: problem.count for what, problem in problems.items()}
    assert counts == {
        "rows that are none": 5,
        "images that are bad: there is no such file": 1,
        "rows that come twice": 1,
    }
    assert problems["rows that come twice"].examples == ("1 2",)
    reasons = problems["rows that are none"].examples
    assert "line 3" in reasons[0]
    assert "without an answer" in reasons[0]
    assert "another speaker" in reasons[1]
    assert "has 1 images where its" in reasons[2]
    assert problems["images that are bad: there is no such file"].examples == (
        f"{tmp_path}/missing.png",
    )


def test_conversations_of_llava_and_images_on_both_sides(tmp_path):
    red(tmp_path, "a.png")
    red(tmp_path, "b.png", size=(40, 40))
    red(tmp_path, "c.png", size=(50, 40))
    shutil.copy(tmp_path / "b.png", tmp_path / "copy.png")

    def row(images, *words):
        turns = [
            {"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(words)
        ]
        return {"image": images, "conversations": turns}

    path, other = tmp_path / "talk.json", tmp_path / "heldout.json"
    rows = [row(["a.png", "b.png"], "<image><image>", "A."), row("a.png", "<image>", " ")]
    path.write_text(json.dumps([*rows, row("a.png", "<image>", "A.", "And?", "B.")]))
    other.write_text(
        json.dumps(
            [
                row(["c.png", "a.png"], "<image><image>", "A."),
                row("copy.png", "<image>", "A."),
                row("c.png", "<image>", "A."),
            ]
        )
    )
    facts, problems = checked_for_sft(path, heldout_path=str(other))
    assert (facts["kind"], facts["answers"], facts["turns per row"]) == ("llava", "3", "1 ... 2")
    assert facts["held out"] == "3 rows"
    assert {what: problem.count for what, problem in problems.items()} == {
        "rows or entries that are of no use": 1,
        "held-out images that are trained on": 2,
    }
    first, second = problems["held-out images that are trained on"].examples
    assert first == f"{tmp_path}/a.png"
    assert second == f"{tmp_path}/b.png = {tmp_path}/copy.png"
