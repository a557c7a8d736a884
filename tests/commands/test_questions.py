"""`balcap data questions`: CapRL's recipe with a server that plays writer and answerer."""

import base64
import dataclasses
import io
import json
import re

import pytest
from images import red
from judge_server import JudgeServer, schedule
from PIL import Image

from balcap_jax.cli.main import main
from balcap_jax.commands.questions import rejected_path, write_questions
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.questions import AnswererConfig, QuestionsConfig
from balcap_jax.data.caption_files import CaptionFile
from balcap_jax.errors import UserError
from balcap_jax.rewards.rivals.qa_questions import questions_of
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.storage.paths import as_path

EASY = 40  # pixels: the image whose questions all can be answered without it


def play(body) -> str:
    """The answer of the writer, or of the answerer with or without the image."""
    content = body["messages"][-1]["content"]
    shown = isinstance(content, list)
    if body["messages"][0]["role"] == "system":
        data = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
        width = Image.open(io.BytesIO(data)).width
        return json.dumps({"questions": [_question(i, width) for i in range(5)]})
    text = content[1]["text"] if shown else content
    number, width = map(int, re.search(r"Question (\d) of (\d+)", text).groups())
    options = dict(re.findall(r"([A-E])\) (.+)", text))
    right = next(letter for letter, option in options.items() if option == "right")
    wrong = next(letter for letter, option in options.items() if option == "wrong 0")
    assert ("None of the above" in text) == shown
    if not shown:
        # Number 1: always A, right in one of four orders: 0.25, which is not below it.
        return {1: "A", 2: right}.get(number, right if width == EASY else wrong)
    return wrong if number == 3 and right == "A" else right  # 3: 0.75, which is not above it


def _question(number: int, width: int) -> dict:
    choices = ["wrong 0", "wrong 1", "wrong 2"]
    choices.insert(number % 4, "right")
    return {
        "question": f"Question {number} of {width}?",
        "choices": choices,
        "answer": "ABCD"[number % 4],
    }


@pytest.fixture
def data(tmp_path):
    """Four images, 10 times their id in width."""
    lines = []
    for i in range(1, 5):
        red(tmp_path, f"{i}.png", size=(10 * i, 10))
        row = {"id": str(i), "image": f"{i}.png", "caption": f"No. {i}.", "source": "web"}
        lines.append(json.dumps(row) + "\n")
    path = tmp_path / "data.jsonl"
    path.write_text("".join(lines))
    return path


def settings(server, data, **changes) -> QuestionsConfig:
    given = {
        "model": "w", "base_url": server.url, "cache": data.parent / "c.sqlite", "backoff": 0.002,
        "retries": 8, "timeout": 30.0,
    }  # fmt: skip
    judge = JudgeConfig(kind="llm", temperature=0.1, max_tokens=2048, **given)
    answerer = AnswererConfig(kind="llm", temperature=0.1, max_tokens=4, **(given | {"model": "a"}))
    return QuestionsConfig(
        **({"data": data, "out": data.parent / "out.jsonl", "judge": judge, "answerer": answerer}
           | changes)
    )  # fmt: skip


def test_questions_that_need_the_image_are_kept(data):
    with JudgeServer(answer=play) as server:
        config = settings(server, data)
        assert write_questions(config) == (3, 1)
        # One call to write and 5 questions x 4 orders x 2 to try, of each image; the questions
        # without the image are other ones for every image, because they tell its width.
        assert server.calls == 4 * 41
        assert server.most_at_once > 8  # several images at once
        sampled = {(r["model"], r["temperature"], r["max_completion_tokens"])
                   for r in server.requests}  # fmt: skip
        assert sampled == {("w", 0.1, 2048), ("a", 0.1, 4)}
    source = CaptionFile(config.out)
    assert len(source) == 3
    for i in range(3):
        example = source[i]
        width = 10 * int(example.id)
        assert example.image.width == width
        assert example.reference == f"No. {example.id}."
        assert example.columns["source"] == "web"
        found = questions_of(example, None)
        assert [q.text for q in found] == [f"Question {n} of {width}?" for n in (0, 4)]
        assert [q.choices[q.correct] for q in found] == ["right", "right"]
    (rejected,) = read_jsonl(rejected_path(config.out))
    assert rejected["id"] == "4"
    shares = [(t["visual"], t["text"]) for t in rejected["tried"]]
    assert shares == [(1, 1), (1, 0.25), (1, 1), (0.75, 1), (1, 1)]
    row = next(row for row in read_jsonl(config.out) if row["id"] == "1")
    shares = [(t["visual"], t["text"]) for t in row["tried"]]
    assert shares == [(1, 0), (1, 0.25), (1, 1), (0.75, 0), (1, 0)]


def test_a_killed_start_goes_on_and_pays_nothing_twice(data):
    with JudgeServer(answer=play) as server:
        config = settings(server, data)
        write_questions(config)
        whole = {row["id"]: row for row in read_jsonl(config.out)}
        lines = config.out.read_text().splitlines(keepends=True)
        config.out.write_text(lines[0] + lines[1][:50])  # torn by kill -9
        rejected_path(config.out).unlink()
        calls = server.calls
        assert write_questions(config) == (3, 1)
        assert server.calls == calls  # all answers were in the cache
        assert {row["id"]: row for row in read_jsonl(config.out)} == whole
        before = config.out.read_bytes()
        assert write_questions(config) == (3, 1)
        assert config.out.read_bytes() == before


def test_through_faults_the_questions_are_as_without(data, tmp_path):
    harmless = ("500", "429", "drop", "half_body")
    with JudgeServer(answer=play) as server:
        server.fault = lambda n: fault if (fault := schedule(n)) in harmless else None
        assert write_questions(settings(server, data)) == (3, 1)
        assert sum(server.faults.values()) > 15


def test_an_image_without_an_answer_is_asked_for_again(data):
    def silent(body):
        made = play(body)
        return "no questions" if '"Question 0 of 20?"' in made else made

    with JudgeServer(answer=silent) as server:
        config = settings(server, data)
        with pytest.raises(UserError, match="1 of 4 images have no questions .*no JSON object"):
            write_questions(config)
        assert {row["id"] for row in read_jsonl(config.out)} == {"1", "3"}
        server.answer = play
        assert write_questions(config) == (3, 1)


def test_bad_input_is_one_sentence(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with JudgeServer(answer=play) as server:
        config = settings(server, data)
        write_questions(config)
        with pytest.raises(UserError, match="above 0.75, below 0.25.* and now it is .*above 0.5"):
            write_questions(settings(server, data, keep_above=0.5))
        config.out.write_text("[1]\n")
        with pytest.raises(UserError, match="is not a file of written questions"):
            write_questions(config)
    capsys.readouterr()
    for arguments, said in (
        (["data.jsonl", "data.jsonl", "--judge.model", "m"], "out='data.jsonl' is the data file"),
        (["data.jsonl", "o.jsonl"], "judge.model='' names no model to ask; name it by --judge"),
        (["data.jsonl", "o.jsonl", "--judge.model", "m", "--keep-above", "2"],
         "keep_above=2.0 must be a share from 0 to 1"),
        (["none.jsonl", "o.jsonl", "--judge.model", "m"], "none.jsonl"),
    ):  # fmt: skip
        assert main(["data", "questions", *arguments]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_without_a_model_of_its_own_the_writer_answers(tmp_path):
    judge = JudgeConfig(kind="llm", model="w", temperature=0.7, max_tokens=999)
    config = QuestionsConfig(data=tmp_path / "a", out=tmp_path / "b", judge=judge)
    assert (config.answering.model, config.answering.temperature) == ("w", 0.1)
    assert config.answering.max_tokens == 4


def test_files_of_a_bucket_are_written_as_those_of_a_disk(data, bucket):
    bucket.put_folder(data.parent, "set")
    there = as_path(bucket.url) / "set"
    with JudgeServer(answer=play) as server:
        counts = write_questions(settings(server, data))
        given = dataclasses.replace(
            settings(server, data), data=there / "data.jsonl", out=there / "out.jsonl"
        )
        for _ in "12":
            assert write_questions(given) == counts
    for name in ("out.jsonl", "out.jsonl.rejected.jsonl"):
        local = [json.loads(line) for line in (data.parent / name).read_text().splitlines()]
        found = [json.loads(line) for line in bucket.text(f"set/{name}").splitlines()]
        images = [{"image": f"{there}/{row['image']}"} if "image" in row else {} for row in local]
        assert found == [row | image for row, image in zip(local, images, strict=True)]
