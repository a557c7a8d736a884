"""`balcap data rubrics`: each rubric belongs to its image, and what was written is kept."""

import dataclasses
import json

import pytest
from images import red
from judge_server import JudgeServer, outage, schedule

from balcap_jax.cli import main as cli
from balcap_jax.commands import asked_rows
from balcap_jax.commands.rubrics import make_rubrics
from balcap_jax.config.claim_rivals import RubricsConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.caption_files import CaptionFile
from balcap_jax.errors import UserError
from balcap_jax.rewards.rivals.rubric_files import RubricFile, rubrics_path
from balcap_jax.rewards.rivals.rubric_questions import TEACH, WRITE
from balcap_jax.storage.paths import as_path

IDS = [str(i) for i in range(1, 9)]


def answer(body):
    """Teachers tell their name; the writer makes a criterion of each caption that it was told, met
    by its teacher, and one that all meet; of the student "3" it has none.
    """
    system, content = body["messages"][0]["content"], body["messages"][1]["content"]
    assert content[0]["type"] == "image_url"
    if system == TEACH.instructions:
        return f"A caption by {body['model']}."
    assert system == WRITE.instructions
    told = json.loads(content[1]["text"])
    if told["student"] == "Start 3.":
        return '{"criteria": []}'
    ids = [teacher["id"] for teacher in told["teachers"]]
    criteria = [
        {"text": f"Says {teacher['caption']}", "severity": 2, "teachers": [teacher["id"]]}
        for teacher in told["teachers"]
    ]
    both = {"text": f"Not {told['student']}", "severity": 3, "teachers": ids[:2]}
    return json.dumps({"criteria": [*criteria, both]})


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = []
    for i in IDS:
        red(tmp_path, f"{i}.png", size=(20 + int(i), 20))
        rows.append({"id": i, "image": f"{i}.png", "caption": f"No. {i}."})
    for name, word in (("data", None), ("start", "Start"), ("teacher", "Teacher")):
        told = rows if word is None else [{"id": i, "caption": f"{word} {i}."} for i in IDS]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    return path


def config(data, server, teachers=(), **changes):
    judge = {
        "kind": "llm", "model": "w", "base_url": server.url, "cache": data.parent / "cache.sqlite",
        "backoff": 0.002, "retries": 12, "concurrency": 4,
    } | changes.pop("judge", {})  # fmt: skip
    given = {"start": data.parent / "start.jsonl", **changes}
    teachers = teachers or (str(data.parent / "teacher.jsonl"), "one", "two")
    return RubricsConfig(data=data, teachers=teachers, judge=JudgeConfig(**judge), **given)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rubrics_are_written_once_from_what_half_of_the_teachers_agree_on(data):
    with JudgeServer(answer=answer, latency=0.01) as server:
        path = make_rubrics(config(data, server))
        assert server.most_at_once > 1  # several images at once
        assert server.calls == 3 * len(IDS)  # two models of three teachers, and the writer
        before = path.read_bytes()
        make_rubrics(config(data, server))
        assert server.calls == 3 * len(IDS)
    assert path.read_bytes() == before
    assert path.name == "data.jsonl.rubrics.jsonl"
    found = {row["id"]: row for row in rows_of(path)}
    assert sorted(found) == IDS
    for i, row in found.items():
        # Of three teachers two agree on the last criterion alone.
        told = [] if i == "3" else [{"text": f"Not Start {i}.", "severity": 3}]
        assert row["criteria"] == told
        assert row["captions"] == [f"Teacher {i}.", "A caption by one.", "A caption by two."]
        assert row["start"] == f"Start {i}."
    rubrics = RubricFile(path)
    source = CaptionFile(data)
    assert [len(rubrics.get(source[i]).criteria) for i in range(3)] == [1, 1, 0]
    assert rubrics.get(source[0]).criteria[0].weight == 3
    with pytest.raises(UserError, match="another reference"):  # the image of id 1 is another now
        rubrics.get(source[0]._replace(reference="No. 7."))


def test_two_teachers_of_whom_one_is_half(data):
    with JudgeServer(answer=answer) as server:
        path = make_rubrics(config(data, server, teachers=("one", "two")))
    assert {len(row["criteria"]) for row in rows_of(path)} == {0, 3}


def test_a_start_that_was_killed_goes_on(data, monkeypatch):
    monkeypatch.setattr(asked_rows, "_CHUNKS", 1)
    with JudgeServer(answer=answer, fault=outage(after=14)) as server:
        failing = config(data, server, judge={"retries": 1, "concurrency": 2})
        with pytest.raises(UserError, match="of 8 images have no rubric .*what was made is kept"):
            make_rubrics(failing)
        path = data.parent / "data.jsonl.rubrics.jsonl"
        done = path.read_bytes()
        assert 0 < len(rows_of(path)) < len(IDS)
        with path.open("a") as file:
            file.write('{"id": "8", "crit')  # torn by a kill
        server.fault = schedule
        make_rubrics(config(data, server))
    assert path.read_bytes().startswith(done)
    assert sorted(row["id"] for row in rows_of(path)) == IDS


def test_a_teacher_elsewhere_gets_a_key_of_its_own(data, monkeypatch):
    monkeypatch.setenv("BALCAP_JUDGE_KEY", "mine")
    monkeypatch.setenv("BALCAP_TEACHER_KEY", "theirs")
    with JudgeServer(answer=answer) as server, JudgeServer(answer=answer) as other:
        make_rubrics(config(data, server, teachers=("one", f"far@{other.url}")))
        assert server.authorization == {"Bearer mine"}
        assert other.authorization == {"Bearer theirs"}
        assert {body["model"] for body in other.requests} == {"far"}


def test_rubrics_of_another_kind_are_not_mixed(data):
    with JudgeServer(answer=answer) as server:
        path = make_rubrics(config(data, server))
        for changes, said in (
            ({"judge": {"model": "v"}}, "whose writer is 'w, prompts 1', and now it is 'v,"),
            ({"teachers": ("one",)}, "whose committee of teachers is"),
        ):
            with pytest.raises(UserError, match=said):
                make_rubrics(config(data, server, **changes))
        (data.parent / "start.jsonl").write_text(json.dumps(dict.fromkeys(IDS, "Other.")))
        with pytest.raises(UserError, match="whose starting caption is 'Start"):
            make_rubrics(config(data, server))
        path.write_text(path.read_text().replace('"id": "1"', '"id": "x"'))
        with pytest.raises(UserError, match="rubrics of images that .* has not, the first of 'x'"):
            make_rubrics(config(data, server))
        path.write_text('{"id": "1", "caption": "A."}\n')
        with pytest.raises(UserError, match="is not a file of rubrics"):
            make_rubrics(config(data, server))


def test_captions_that_are_missing_or_foreign_are_refused_before_anything_is_asked(data):
    start = data.parent / "start.jsonl"
    with JudgeServer(answer=answer) as server:
        for ids in (IDS[1:], [*IDS, "x"]):
            start.write_text(json.dumps({i: "A." for i in ids}))
            with pytest.raises(UserError, match="start.jsonl"):
                make_rubrics(config(data, server))
        assert server.calls == 0


def test_the_command_line(data, capsys):
    assert cli.main(["data", "rubrics", str(data), str(data.parent / "start.jsonl")]) == 2
    assert "teachers=() is empty" in capsys.readouterr().err
    names = ["--teachers", "a", "a"]
    assert cli.main(["data", "rubrics", str(data), str(data.parent / "start.jsonl"), *names]) == 2
    assert "a teacher twice" in capsys.readouterr().err
    with JudgeServer(answer=answer) as server:
        out = data.parent / "mine.jsonl"
        flags = ["--teachers", "one", "--out", str(out), "--judge.model", "w"]
        where = ["--judge.base-url", server.url, "--judge.cache"]
        where.append(str(data.parent / "c.sqlite"))
        start = str(data.parent / "start.jsonl")
        assert cli.main(["data", "rubrics", str(data), start, *flags, *where]) in (0, None)
    assert len(rows_of(out)) == len(IDS)


def test_files_of_a_bucket_are_written_as_those_of_a_disk(data, bucket):
    bucket.put_folder(data.parent, "set")
    there = as_path(bucket.url) / "set"
    with JudgeServer(answer=answer) as server:
        local = make_rubrics(
            config(data, server, teachers=("one", str(data.parent / "start.jsonl")))
        )
        given = config(
            data, server, teachers=("one", f"{there}/start.jsonl"), start=there / "start.jsonl"
        )
        for _ in "12":
            path = make_rubrics(dataclasses.replace(given, data=there / "data.jsonl"))
    assert path == there / "data.jsonl.rubrics.jsonl"
    rows = [json.loads(line) for line in bucket.text("set/data.jsonl.rubrics.jsonl").splitlines()]
    committee = ["one", f"{there}/start.jsonl"]
    assert rows == [{**row, "committee": committee} for row in rows_of(local)]
    found = RubricFile(rubrics_path(there / "data.jsonl"))
    assert len(found.get(CaptionFile(data)[0]).criteria) == 3
