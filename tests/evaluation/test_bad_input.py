"""Bad input of evaluations: one sentence each, and nothing is lost."""

import json
from pathlib import Path

import pytest
from benchmark_world import answer, make_world
from judge_server import JudgeServer, Sent

from balcap_jax.cli.main import main
from balcap_jax.errors import UserError
from balcap_jax.evaluation.caption_files import matched


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", 3)


@pytest.fixture(scope="module")
def server():
    with JudgeServer(answer=answer) as running:
        yield running


def said(world, server, capsys, captions, *more, benchmark="dcscore"):
    data = {
        "dcscore": ["--facts", world.folder / "facts.jsonl"],
        "captionqa": ["--data", world.folder / "questions.jsonl"],
        "caparena": ["--data", world.folder / "battles.json"],
    }[benchmark]
    arguments = ["eval", benchmark, "--captions", captions, *data, "--images", world.images,
                 "--judge.base-url", server.url, "--judge.model", "m",
                 "--judge.cache", world.folder / "c.sqlite", "--out", world.folder / "out",
                 "--judge.backoff", "0.01", *more]  # fmt: skip
    code = main(list(map(str, arguments)))
    printed = capsys.readouterr()
    if code == 2:
        *_, line = printed.err.splitlines()  # progress stands before it
        assert line.startswith("balcap: error: ")
        return line
    assert code == 0
    return printed.out


def test_captions_that_do_not_fit(world, server, capsys, tmp_path):
    whole = json.loads(world.captions("whole.json").read_text())

    def of(rows):
        (tmp_path / "c.json").write_text(json.dumps(rows))
        return said(world, server, capsys, tmp_path / "c.json")

    assert "captions of 1 images that" in of({**whole, "cat.jpg": "A cat."})
    assert "does not know (cat.jpg)" in of({**whole, "cat.jpg": "A cat."})
    two = dict(list(whole.items())[:2])
    assert "lacks the captions of 1 of 3 images (test_00002.jpg)" in of(two)
    assert "names images as 'a/test_00000.png' where" in of(
        {f"a/{name[:-4]}.png": text for name, text in whole.items()}
    )
    assert "the caption of 'test_00000.jpg' is no text" in of({**whole, "test_00000.jpg": 3})
    assert server.calls == 0
    found = said(world, server, capsys, tmp_path / "c.json", "--allow-missing") if of(two) else ""
    assert "1 missing" in found


def test_captions_of_images_that_are_not_asked_about(world, server, capsys):
    whole = world.captions("whole.json")
    found = said(world, server, capsys, whole, "--domains", "document", benchmark="captionqa")
    assert "1 planned, 0 missing, 3 questions, 0 unparsed, 0 failed, 1 skipped" in found
    for name in ("gpt", "GPT-4o-0806"):  # a baseline's own image
        found = said(world, server, capsys, whole, "--name", name, benchmark="caparena")
        assert "2 planned, 0 missing, 2 battles" in found
    battles = json.loads((world.folder / "battles.json").read_text())
    own = {name: row for name, row in battles.items() if row["ref_model"] == "GPT-4o-0806"}
    (world.folder / "own.json").write_text(json.dumps(own))
    more = ("--data", world.folder / "own.json", "--name", "gpt")
    error = said(world, server, capsys, whole, *more, benchmark="caparena")
    assert "has battles against GPT-4o-0806 alone, and name='gpt' says that the captions" in error


@pytest.mark.parametrize(
    ("ours", "theirs", "shown"),
    [
        ("a b.jpg", "a%20b.jpg", "'a%20b.jpg' where DATA has 'a b.jpg'"),
        ("\u00e9.jpg", "e\u0301.jpg", r"'e\u0301.jpg' where DATA has '\xe9.jpg'"),
        ("x/1.jpg", "1.png", "'1.png' where DATA has 'x/1.jpg'"),
    ],
)
def test_names_in_another_form(ours, theirs, shown):
    given = {"path": Path("C"), "data": Path("DATA"), "allow_missing": True}
    # Others may have the right names.
    with pytest.raises(UserError) as error:
        matched({"z.jpg": "", theirs: ""}, ["z.jpg", ours], **given)
    assert f"captions=C names images as {shown}; write the names" in str(error.value)
    assert matched({"z.jpg": "", ours: "x"}, [ours], passed_over=["z.jpg"], **given) == {ours: "x"}


def test_a_place_that_cannot_be_written_costs_nothing(world, server, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    captions, before = world.captions("never_judged.json", drop=1), server.calls
    for benchmark in ("dcscore", "captionqa", "caparena"):
        more = ("--out", tmp_path / "file", "--judge.cache", tmp_path / "empty.sqlite")
        error = said(world, server, capsys, captions, *more, benchmark=benchmark)
        assert "file/" in error
        assert "Not a directory; what was saved before is intact" in error
        assert "give the same command again" in error
    assert server.calls == before


def test_results_of_other_captions_are_replaced_with_a_word(world, server, capsys, tmp_path):
    def told(captions, *more) -> str:
        arguments = ["eval", "dcscore", "--captions", captions, "--images", world.images,
                     "--facts", world.folder / "facts.jsonl", "--out", tmp_path,
                     "--judge.base-url", server.url, "--judge.model", "m",
                     "--judge.cache", world.folder / "c.sqlite", *more]  # fmt: skip
        assert main(list(map(str, arguments))) == 0
        return capsys.readouterr().err

    whole, words = world.captions("whole.json"), "has results of other captions ("
    assert words not in told(whole)
    assert words not in told(whole)
    two = world.folder / "two.json"
    two.write_text(json.dumps(dict(list(json.loads(whole.read_text()).items())[:2])))
    assert f"dcscore {words}{whole})" in told(two, "--allow-missing")
    # No file of the third caption is left for the official code to count.
    written = sorted(path.name for path in (tmp_path / "dcscore" / "results").iterdir())
    assert written == ["0.json", "1.json"]


def test_a_model_with_a_long_name(world, server, capsys, tmp_path):
    more = ("--name", "n" * 300, "--out", tmp_path)
    said(world, server, capsys, world.captions("whole.json"), *more, benchmark="caparena")
    assert json.loads((tmp_path / "caparena" / f"{'n' * 200}.battles.json").read_text())


def test_images_that_cannot_be_read(world, server, capsys, tmp_path):
    captions = world.captions("whole.json")
    before = server.calls
    error = said(world, server, capsys, captions, "--images", tmp_path)
    assert "lacks the image test_00000.jpg and 2 more" in error
    for name in world.names:
        (tmp_path / name).write_bytes((world.images / name).read_bytes())
    (tmp_path / world.names[1]).write_bytes(b"no image")
    error = said(world, server, capsys, captions, "--images", tmp_path)
    assert "lacks the image test_00001.jpg of" in error
    assert server.calls == before


def test_a_judge_without_images(world, capsys):
    words = {"error": {"message": "this model does not support image input"}}
    blind = lambda body, _: (  # noqa: E731
        Sent(words, status=400) if "image_url" in json.dumps(body) else None
    )
    captions = world.captions("blind.json", drop=1)
    with JudgeServer(answer=answer, reply=blind) as server:
        error = said(world, server, capsys, captions)
        assert "takes no images (HTTP 400 'this model does not support image input')" in error
        error = said(world, server, capsys, captions, benchmark="caparena")
        assert "name a multimodal model with --judge.model" in error


def test_a_judge_that_nobody_answers_for(world, capsys):
    with JudgeServer(answer=answer, fault=lambda _: "401") as server:
        error = said(world, server, capsys, world.captions("no.json", drop=2))
    assert "3 of 3 items of dcscore have no answer (HTTP 401 (3))" in error
    assert "what was answered is kept" in error


def test_reports_of_other_images(world, server, capsys, tmp_path):
    captions = world.captions("whole.json")
    said(world, server, capsys, captions, "--out", tmp_path / "a")
    two = dict(list(json.loads(captions.read_text()).items())[:2])
    (tmp_path / "two.json").write_text(json.dumps(two))
    more = ("--out", tmp_path / "b", "--allow-missing")
    said(world, server, capsys, tmp_path / "two.json", *more)
    # Other facts, of the same images.
    facts = (world.folder / "facts.jsonl").read_text().replace("The sky is grey.", "It is night.")
    (tmp_path / "facts.jsonl").write_text(facts)
    more = ("--facts", tmp_path / "facts.jsonl", "--out", tmp_path / "c")
    said(world, server, capsys, captions, *more)
    asked = (world.folder / "questions.jsonl").read_text().replace("What is shown?", "What now?")
    (tmp_path / "asked.jsonl").write_text(asked)
    said(world, server, capsys, captions, "--out", tmp_path / "d", benchmark="captionqa")
    more = ("--data", tmp_path / "asked.jsonl", "--out", tmp_path / "e")
    said(world, server, capsys, captions, *more, benchmark="captionqa")
    for folders, words in (
        (["a", "b"], "are of other images: 1, such as 'test_00002.jpg'"),
        (["a", "c"], "are of other data: the list of oracle facts of 'test_00000.jpg' differs"),
        (["d", "e"], "are of other data: the list of questions of 'test_00000.jpg' differs"),
        (["none"], "holds no results of `balcap eval`"),
        (["a"] * 6, "at most 5 models"),
    ):
        assert main(["eval", "report", *(str(tmp_path / f) for f in folders)]) == 2
        assert words in capsys.readouterr().err
    # Of different benchmarks there is nothing to compare.
    assert main(["eval", "report", str(tmp_path / "a"), str(tmp_path / "d")]) == 0
    shown = capsys.readouterr().out
    assert "Not every folder has results of DCScore, CaptionQA: no difference is told" in shown
    items = tmp_path / "a" / "dcscore" / "items.jsonl"
    rows = items.read_text().splitlines()
    for spoilt in ([], rows[:2], [*rows, rows[0]], [rows[0]] * 3, ['{"id": 1}']):
        items.write_text("".join(f"{row}\n" for row in spoilt))
        assert main(["eval", "report", str(tmp_path / "a")]) == 2
        assert "are not as `balcap eval` writes them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dcscore"], "facts=None names no file or folder of the oracle facts"),
        (["dcscor"], "did you mean `balcap eval dcscore`?"),
        (["dcscore", "--facts", "a", "--images", "b"], "a cannot be read (No such file"),
        (["captionqa", "--data", "no-such"], "no-such does not exist; give the folder of Borise"),
        (["caparena", "--data", "a", "--images", "b"], "data=a cannot be read"),
        (["report"], "required"),
        (["all", "--config"], "--config names no file"),
    ],
)
def test_commands_without_what_they_need(arguments, words, capsys):
    assert main(["eval", *arguments]) == 2
    assert words in capsys.readouterr().err
