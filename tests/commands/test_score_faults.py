"""`balcap score` where its input, its data or its judge are not as they should be."""

import fcntl
import json
import os
import subprocess
import sys

import pytest
from images import red

from balcap_jax.cli import main as cli
from balcap_jax.commands import score as score_module
from balcap_jax.commands.score import score
from balcap_jax.config.commands import ScoreConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.errors import UserError
from balcap_jax.rewards.lexical.judge import LexicalJudge

GOOD = {"caption": "A dog runs.", "references": ["A dog is running.", "A dog."]}
REWARDS = ("precision", "recall", "linguistic", "b_capscore")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def config_of(folder, rows, **settings):
    return ScoreConfig(
        input=write(folder / "in.jsonl", rows), output=folder / "out.jsonl", **settings
    )


# Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"caption": "Half \ud83d an emoji."},
        {"references": ["A dog. \ud83d"]},
        {"references": "A dog."},
        {"references": [3]},
        {"boxes": 5},
        {"boxes": [["dog", 0, 0, 10**400, 1]]},
        {"boxes": [{"label": "dog", "box": [0, 0, float("nan"), 1]}]},
        {"units": 5},
        {"units": [{"text": None}]},
        {"id": {"a": 1}},
        {"image": "a\0.png"},
        {"note": json.loads("[" * 600 + "]" * 600)},
        {"caption": None},
    ],
)
def test_a_faulty_row_has_a_reason_and_the_others_a_score(tmp_path, fault):
    config = config_of(tmp_path, [GOOD, {**GOOD, **fault}, GOOD])
    summary = score(config)
    first, bad, last = rows_of(config.output)
    assert (first["error"], last["error"], first["b_capscore"]) == (None, None, last["b_capscore"])
    assert [bad[name] for name in REWARDS] == [None] * 4
    assert bad["error"]
    assert (summary["rows"], summary["scored"], summary["errors"]) == (3, 2, 1)
    whole = config.output.read_bytes()
    assert score(config) == summary
    assert config.output.read_bytes() == whole


def test_a_key_twice_and_bytes_that_are_no_text_have_a_reason(tmp_path):
    good = json.dumps(GOOD).encode()
    lines = [good, good[:-1] + b', "caption": "A cat."}', good.replace(b"A", b"\xff"), good]
    config = config_of(tmp_path, [])
    config.input.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    assert score(config)["scored"] == 2
    assert [bool(row["error"]) for row in rows_of(config.output)] == [False, True, True, False]
    assert 'it has "caption" twice' in rows_of(config.output)[1]["error"]


def test_other_fields_are_kept_and_never_in_the_way(tmp_path):
    notes = [float("nan"), float("inf"), 10**400, "half \ud83d", {"a": [float("nan")]}]
    config = config_of(tmp_path, [{**GOOD, "note": note} for note in notes], batch_size=1)
    summary = score(config)
    assert summary["errors"] == 0
    whole = config.output.read_bytes()
    assert [row["note"] for row in rows_of(config.output)] == [
        None, None, 10**400, "half \ud83d", {"a": [None]},
    ]  # fmt: skip
    for cut in (len(whole), len(whole) // 2):
        config.output.write_bytes(whole[:cut])
        assert score(config) == summary
        assert config.output.read_bytes() == whole


# The data file ------------------------------------------------------------------------------------


def test_boxes_and_units_of_the_data_file_are_those_of_the_rows(tmp_path):
    red(tmp_path)
    told = {
        "references": ["A dog on a lawn.", "A brown dog."],
        "units": ["a dog", "a lawn"],
        "boxes": [
            {"label": "dog", "box": [0, 0, 0.5, 1]},
            {"label": "frisbee", "box": [0, 0, 1, 1]},
        ],
    }
    caption = "A dog with a frisbee and a cat on a lawn."
    data = write(tmp_path / "data.jsonl", [{"id": "a", "image": "red.png", **told}])
    by_id = config_of(tmp_path, [{"id": "a", "caption": caption}], data=data)
    score(by_id)
    (found,) = rows_of(by_id.output)
    (tmp_path / "whole").mkdir()
    whole = config_of(tmp_path / "whole", [{"id": "a", "caption": caption, **told}])
    score(whole)
    (wanted,) = rows_of(whole.output)
    for name in (*REWARDS, "assertions", "units"):
        assert found[name] == wanted[name], name
    assert [unit["text"] for unit in found["units"]] == told["units"]
    without = {name: value for name, value in told.items() if name == "references"}
    (tmp_path / "less").mkdir()
    less = config_of(tmp_path / "less", [{"id": "a", "caption": caption, **without}])
    score(less)
    assert rows_of(less.output)[0]["precision"] != found["precision"]


def test_the_data_may_be_of_any_kind(tmp_path):
    coco = tmp_path / "coco.json"
    coco.write_text(
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 7, "caption": "A dog is running."}],
            }
        )
    )
    config = config_of(tmp_path, [{"id": 7, "caption": "A dog runs."}], data=coco)
    assert score(config)["scored"] == 1


def test_an_id_twice_or_unknown_is_told(tmp_path):
    rows = [{"id": 1, "image": "a.png", "caption": "A dog."}] * 2
    data = write(tmp_path / "data.jsonl", rows)
    with pytest.raises(UserError, match="the id '1' twice"):
        score(config_of(tmp_path, [{"id": 1, "caption": "A dog."}], data=data))
    data = write(tmp_path / "data.jsonl", rows[:1])
    config = config_of(tmp_path, [{"id": 2, "caption": "A."}, {"caption": "A."}], data=data)
    assert score(config)["scored"] == 0
    assert "has no id '2'" in rows_of(config.output)[0]["error"]
    assert 'there is no "id"' in rows_of(config.output)[1]["error"]


def test_data_that_have_changed_are_refused(tmp_path):
    row = {"id": 1, "image": "a.png", "caption": "A dog is running."}
    data = write(tmp_path / "data.jsonl", [row])
    config = config_of(tmp_path, [{"id": 1, "caption": "A dog."}], data=data)
    score(config)
    before = config.output.read_bytes()
    write(data, [{**row, "caption": "A cat."}])
    with pytest.raises(UserError, match="row 1 is not what .* with --data .*give another OUTPUT"):
        score(config)
    assert config.output.read_bytes() == before


# The judge ----------------------------------------------------------------------------------------


class Moody(LexicalJudge):
    """Gives no verdict on the captions that it is told to fail on."""

    last_failures = "HTTP 500"

    def __init__(self, *fails):
        self.fails, self.asked = fails, []

    def __call__(self, examples, captions):
        self.asked += captions
        verdicts = super().__call__(examples, captions)
        pairs = zip(captions, verdicts, strict=True)
        return [None if c in self.fails else verdict for c, verdict in pairs]

    def lap(self):
        return {}

    def close(self):
        pass


@pytest.fixture
def judge_is(monkeypatch):
    def set_judge(judge):
        monkeypatch.setattr(score_module, "make_judge", lambda *_, **__: judge)
        return judge

    return set_judge


def captions_of(count):
    return [{**GOOD, "caption": f"A dog runs with {n} balls."} for n in range(count)]


@pytest.fixture
def with_image(tmp_path):
    red(tmp_path)
    return [{**row, "image": "red.png"} for row in captions_of(7)]


def test_rows_that_failed_are_asked_again_and_no_other(tmp_path, judge_is, with_image):
    llm = JudgeConfig(kind="llm", model="m1")
    config = config_of(tmp_path, with_image, judge=llm, batch_size=2)
    captions = [row["caption"] for row in with_image]
    judge_is(Moody())
    summary = score(config)
    whole = config.output.read_bytes()
    config.output.unlink()
    judge_is(Moody(captions[1], captions[4], captions[5]))
    assert score(config)["scored"] == 4
    assert "HTTP 500" in rows_of(config.output)[1]["error"]
    # Killed, too: the last row is torn, and what failed before it is asked again.
    config.output.write_bytes(config.output.read_bytes()[:-5])
    again = judge_is(Moody(captions[4]))
    assert score(config)["scored"] == 6
    assert again.asked == [captions[i] for i in (1, 4, 5, 6)]
    last = judge_is(Moody())
    assert score(config) == summary
    assert last.asked == [captions[4]]
    assert config.output.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "red.png"]


def test_a_row_that_was_corrected_is_scored(tmp_path):
    config = config_of(tmp_path, [GOOD, {"caption": "A dog."}])
    assert score(config)["scored"] == 1
    write(config.input, [GOOD, GOOD])
    assert score(config)["scored"] == 2


@pytest.mark.parametrize(
    "other",
    [
        {"model": "m2"},
        {"kind": "lexical", "model": ""},
        {"calls": "separate"},
        {"order": "caption_first"},
        {"image_side": 64},
        {"temperature": 1.0},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_judge_is_refused(tmp_path, judge_is, with_image, other):
    judge_is(Moody(with_image[0]["caption"]))
    settings = {"kind": "llm", "model": "m1"}
    config = config_of(tmp_path, with_image, judge=JudgeConfig(**settings))
    score(config)
    before = config.output.read_bytes()
    row = rows_of(config.output)[0]
    assert (row["judge"], row["judge_model"]) == ("llm", "m1")
    assert row["judge_prompts"]
    config = config_of(tmp_path, with_image, judge=JudgeConfig(**settings | other))
    with pytest.raises(UserError, match="was scored by the judge llm, model m1.*another OUTPUT"):
        score(config)
    config.output.write_bytes(before.replace(b'"judge_prompts": "', b'"judge_prompts": "old'))
    with pytest.raises(UserError, match="was scored by the judge llm, model m1, prompts old"):
        score(config_of(tmp_path, with_image, judge=JudgeConfig(**settings)))


def test_where_and_how_fast_a_judge_is_asked_makes_it_no_other(tmp_path, judge_is, with_image):
    judge_is(Moody(with_image[0]["caption"]))
    settings = {"kind": "llm", "model": "m1", "image_side": 64}
    score(config_of(tmp_path, with_image, judge=JudgeConfig(**settings)))
    told = rows_of(tmp_path / "out.jsonl")[0]
    assert told["judge_settings"] == '{"image_side": 64}'
    elsewhere = JudgeConfig(**settings, base_url="http://127.0.0.1:1/v1", concurrency=3)
    judge_is(Moody())
    assert score(config_of(tmp_path, with_image, judge=elsewhere))["errors"] == 0


def test_a_scored_row_is_an_input_and_the_command_can_go_on(tmp_path):
    """What another judge wrote beside the caption is not taken for what this one writes."""
    old = {"judge": "llm", "judge_model": "m", "judge_prompts": "3", "judge_settings": "x"}
    config = config_of(tmp_path, [{**GOOD, **old, "data_digest": "abc", "precision": 0.1}, GOOD])
    first = score(config)
    rows = rows_of(config.output)
    assert rows[0] == rows[1]
    assert score(config) == first
    assert rows_of(config.output) == rows


def test_scores_of_other_rules_are_refused(tmp_path):
    config = config_of(tmp_path, [GOOD], judge=JudgeConfig(kind="lexical"))
    score(config)
    assert rows_of(config.output)[0]["judge_version"] == "3"
    written = config.output.read_bytes()
    for older in (written.replace(b'"judge_version": "3"', b'"judge_version": "0"'),
                  written.replace(b'"judge_version": "3", ', b"")):  # fmt: skip
        assert older != written
        config.output.write_bytes(older)
        with pytest.raises(UserError, match="was scored by the judge lexical.*another OUTPUT"):
            score(config)


def test_a_second_process_is_refused_also_while_rows_are_asked_again(
    tmp_path, judge_is, with_image
):
    config = config_of(tmp_path, with_image, judge=JudgeConfig(kind="llm", model="m1"))
    judge_is(Moody(with_image[0]["caption"]))
    score(config)
    # One more row, which is judged after the new file has taken the place of the old one.
    write(config.input, [*with_image, {**with_image[0], "caption": "Last."}])
    refusals = []

    class Watching(Moody):
        def __call__(self, examples, captions):
            with config.output.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    refusals.append(captions[0])
            return super().__call__(examples, captions)

    judge_is(Watching())
    assert score(config)["scored"] == 8
    assert refusals == [with_image[0]["caption"], "Last."]


# The command --------------------------------------------------------------------------------------


def test_nothing_scored_is_exit_1(tmp_path, capsys):
    config = config_of(tmp_path, [{"caption": "A dog."}])
    assert cli.main(["score", str(config.input), str(config.output)]) == 1
    assert "none of the 1 rows" in capsys.readouterr().err
    write(config.input, [{"caption": "A dog."}, GOOD])
    assert cli.main(["score", str(config.input), str(config.output)]) == 0


@pytest.mark.slow
def test_a_pipe_is_an_input(tmp_path):
    source = write(tmp_path / "in.jsonl", [{**GOOD, "note": i} for i in range(5)])
    balcap = f"{sys.executable} -m balcap_jax score <(cat {source}) {tmp_path / 'out.jsonl'}"
    for _ in range(2):
        ran = subprocess.run(
            ["env", "-u", "HOME", "bash", "-c", balcap], capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        assert [row["note"] for row in rows_of(tmp_path / "out.jsonl")] == list(range(5))


def test_a_pipe_is_no_data(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is no regular file but a pipe"):
        score(config_of(tmp_path, [GOOD], data=pipe))
