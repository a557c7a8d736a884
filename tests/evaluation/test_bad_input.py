"""Bad input of evaluations: one sentence each, and nothing is lost."""

import json
import subprocess
from pathlib import Path

import pytest
from benchmark_world import answer, make_world
from judge_server import JudgeServer, Sent

from balcap_jax.cli.main import main
from balcap_jax.errors import UserError
from balcap_jax.evaluation.caparena_run import read_battles
from balcap_jax.evaluation.caption_files import matched, read_captions
from balcap_jax.evaluation.captionqa_data import read_entries, skipped
from balcap_jax.evaluation.dcscore_run import read_facts
from balcap_jax.evaluation.fact_lists import extracted, judged, listed, parsed
from balcap_jax.evaluation.official import official_prompts
from balcap_jax.evaluation.prompts import CAPARENA, CAPTIONQA, DCSCORE
from balcap_jax.evaluation.results import title_of
from balcap_jax.rewards.llm.answer_text import BadAnswer


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
    assert f"{tmp_path / 'dcscore'} {words}{whole})" in told(two, "--allow-missing")
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


# Files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"a.jpg": "A dog.", "b.jpg": ""}',
        '{"id": "a.jpg", "caption": "A dog."}\n{"id": "b.jpg", "caption": ""}\n',
        '{"image_path": "a.jpg", "caption": "A dog.", "oracle_caption": "x"}\n\n'
        '{"image_path": "b.jpg", "caption": "", "oracle_caption": "y"}',
        '[{"image": "a.jpg", "caption": "A dog."}, {"image_name": "b.jpg", "caption": ""}]',
    ],
)
def test_caption_files_of_all_forms(text, tmp_path):
    (tmp_path / "c").write_text(text)
    assert read_captions(tmp_path / "c") == {"a.jpg": "A dog.", "b.jpg": ""}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": "x", "a": "y"}', "names an image twice"),
        ('{"id": "a", "caption": "x"}\n{"id": "a", "caption": "y"}\n', "names the image 'a' twice"),
        ('{"id": "a", "caption": "x"}\n{"id"', "line 2 is not JSON"),
        ('{"caption": "x"}\n', "row 1 has no caption with the name of its image"),
        ("[1]", "row 1 has no caption"),
        ('{"a": "\\ud83d"}', "holds half of a character"),
    ],
)
def test_caption_files_that_are_none(text, words, tmp_path):
    (tmp_path / "c").write_text(text)
    with pytest.raises(UserError) as error:
        read_captions(tmp_path / "c")
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (read_facts, '{"image_name": "a"}\n', "line 1 has no image_name, oracle_caption and list"),
        (read_facts, '{"image_name": "a", "oracle_facts": []}\n', "line 1 has no image_name"),
        (read_facts, "", "holds no image"),
        (read_battles, "{}", "no JSON object of images"),
        (read_battles, "{", "is not JSON"),
        (read_battles, '{"a": {"ref_model": "x", "captions": {}}}', "none of the baselines"),
        (
            read_battles,
            '{"a": {"ref_model": "gpt", "captions": {"human": "x"}}}',
            'has no "ref_model" with its caption',
        ),
        (read_entries, '{"id": 3, "questions": []}', "entry 1 has no id with a list of questions"),
        *(
            (
                read_entries,
                json.dumps({"id": "a", "questions": [{"question": "q", "answer": "x"} | row]}),
                "a, question 0 is no text with a list of choices, each a text or a number",
            )
            for row in (
                {"choices": 5},
                {"choices": "xyz"},
                {"choices": {"x": 1, "y": 2}},
                {"choices": [None, "x"]},
                {"choices": ["x", "y"], "question": None},
                {"choices": ["x", "y"], "question": " "},
                {"choices": [["x"], "y"]},
            )
        ),
        (
            read_entries,
            json.dumps(
                [
                    {
                        "id": "a",
                        "questions": [
                            {
                                "question": "q",
                                "choices": [f"x{i}" for i in range(26)],
                                "answer": "x0",
                            }
                        ],
                    }
                ]
            ),
            "a, question 0 has 27 options, and the judge answers with one of 26 letters",
        ),
        (
            read_entries,
            '{"id": "a", "questions": [{"question": "q", "choices": ["x", "y"], "answer": "z"}]}',
            "no question with at least two choices and an answer among them",
        ),
    ],
)
def test_benchmark_files_that_are_none(read, text, words, tmp_path):
    (tmp_path / "f").write_text(text)
    with pytest.raises(UserError) as error:
        read(tmp_path / "f")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_questions_without_a_list_of_choices_are_skipped(tmp_path):
    asked = [
        {"question": "q", "answer": "x"},
        {"question": "q", "choices": [1, "x"], "answer": "x"},
    ]
    (tmp_path / "f").write_text(json.dumps({"a": asked}))
    entries = read_entries(tmp_path / "f")
    assert skipped(entries) == (1, "a, question 0: it has fewer than two choices")


def test_baselines_under_short_and_full_names(tmp_path):
    rows = {
        "a": {"ref_model": "cog", "captions": {"human": "h", "cog": "c"}},
        "b": {"ref_model": "MiniCPM-V2.6-8B", "captions": {"human": "h", "cpm": "m"}},
        "c": {"ref_model": "gpt", "captions": {"human": "h", "GPT-4o-0806": "g"}},
    }
    (tmp_path / "f").write_text(json.dumps(rows), encoding="utf-8-sig")
    found = read_battles(tmp_path / "f")
    assert [b.baseline for b in found.values()] == [
        "CogVLM2-llama3-chat-19B", "MiniCPM-V2.6-8B", "GPT-4o-0806",
    ]  # fmt: skip
    assert [b.caption for b in found.values()] == ["c", "m", "g"]


def test_questions_of_all_forms(tmp_path):
    asked = [{"question": "q", "choices": ["x", "y"], "answer": "y"}]
    (tmp_path / "q.json").write_text(json.dumps({"nat_001": asked}))
    (found,) = read_entries(tmp_path / "q.json")
    assert (found.id, found.domain, len(found.questions)) == ("nat_001", "natural", 1)
    folder = tmp_path / "set"
    folder.mkdir()
    for domain in ("document", "natural", "embodiedai"):
        rows = [{"id": domain, "questions": asked}]
        (folder / f"{domain}.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="lacks the domains ecommerce"):
        read_entries(folder)
    pyarrow = pytest.importorskip("pyarrow", reason="parquet is read by pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table(
        {"id": ["shop"], "questions": [asked], "images": [[{"bytes": b"x", "path": None}]]}
    )
    (folder / "data").mkdir()
    parquet.write_table(table, folder / "data" / "ecommerce-00000-of-00001.parquet")
    found = read_entries(folder)
    assert [entry.id for entry in found] == ["natural", "document", "shop", "embodiedai"]
    assert found[2].images == (b"x",)
    assert found[2].domain == "ecommerce"


# Answers ------------------------------------------------------------------------------------------


def test_lists_of_facts_are_read_as_the_official_code_does():
    rows = [{"fact": 'It reads "A\'s".', "relevance": 1}]
    assert parsed(listed(rows)) == rows  # with a comma after the last row
    assert parsed("So:\n```json\n[{'fact': 'a', 'relevance': 1}]\n```\nDone.") == [
        {"fact": "a", "relevance": 1}
    ]
    assert parsed('```json\n[{"fact": "a", "relevance": null}]\n```')[0]["relevance"] is None
    assert parsed('[{"fact": "a"}]') == [{"fact": "a"}]
    assert parsed("```json[1]```\n```json\n[{'fact': 'b'}]\n```") == [{"fact": "b"}]


@pytest.mark.parametrize(
    "text", ["", "no list", '{"fact": "a"}', "[1]", '[{"text": "a"}]', "[" * 5000, "```json\n[{'f"]
)
def test_answers_that_are_no_list_of_facts(text):
    with pytest.raises(BadAnswer):
        parsed(text)


def test_answers_of_other_facts_are_refused():
    answer = '[{"fact": "a", "verification": 1}, {"fact": "b", "verification": "1"}]'
    assert judged(answer, field="verification", facts=["b", "a"]) == [("a", 1), ("b", "1")]
    with pytest.raises(BadAnswer, match="other facts"):
        judged(answer, field="verification", facts=["a"])
    with pytest.raises(BadAnswer, match="without matched_oracle_id"):
        judged(answer, field="matched_oracle_id", facts=["a", "b"])
    with pytest.raises(BadAnswer, match="without relevance"):
        extracted(answer)


# Prompts ------------------------------------------------------------------------------------------

OFFICIAL = {
    "dcscore": (
        "eval/evaluation_decapbench.py",
        "extract_prompt = '''Split {caption} into [{{\"fact\": 1}}]'''\n"
        "match_prompt = 'M {predicted_atomic_facts} O {oracle_atomic_facts}'\n"
        "verify_prompt = 'V {reference_caption} F {atomic_facts}'\n",
    ),
    "captionqa": (
        "qa.py",
        "def ask(caption, question, lines):\n    system_prompt = 'One {letter}.'\n"
        "    prompt = f'C {caption} Q {question} {{x}} {chr(10).join(lines)}'\n",
    ),
    "caparena": (
        "vlm_as_a_judge.py",
        "system_prompt_with_ref = 'Seven {rules}'\n"
        "def judge(a, b, c, ref):\n"
        "    if ref:\n        compare_prompt = f'1 {a} 2 {b} R {c}'\n"
        "    else:\n        compare_prompt = f'1 {a} 2 {b}'\n",
    ),
}


@pytest.mark.parametrize("benchmark", OFFICIAL)
def test_official_prompts_are_read_from_a_checkout(benchmark, tmp_path):
    name, source = OFFICIAL[benchmark]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path]
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *step], check=True)
    found = official_prompts(benchmark, tmp_path)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert found.version.split()[:2] == ["official", commit.stdout[:12]]
    if benchmark == "dcscore":
        assert found.text("extract", caption="{A}") == 'Split {A} into [{"fact": 1}]'
    if benchmark == "captionqa":
        assert found.text("system") == "One {letter}."
        filled = found.text("user", caption="c", question="q", options="A. x")
        assert filled == "C c Q q {x} A. x"
    if benchmark == "caparena":
        assert found.text("user", caption_1="a", caption_2="b", caption_ref="r") == "1 a 2 b R r"
    path.write_text(source + "\nVERSION = 2\n")
    assert official_prompts(benchmark, tmp_path).version == found.version  # of the texts
    path.write_text("x = 1\n")
    with pytest.raises(UserError, match="give the folder of a checkout of github.com/") as error:
        official_prompts(benchmark, tmp_path)
    assert f"official={tmp_path}: {name} has no " in str(error.value)


def test_the_name_says_prompts_and_judge():
    official = DCSCORE._replace(official=True)
    model = "gpt-4o-2024-05-13"
    assert title_of("dcscore", judge=model, prompts=official) == "DCScore"
    assert title_of("dcscore", judge="x", prompts=official) == "DCScore (judge: x)"
    assert title_of("dcscore", judge=model, prompts=DCSCORE) == (
        "DCScore (balcap prompts, judge gpt-4o-2024-05-13)"
    )
    assert title_of("bcapscore", judge="lexical", prompts=None) == "b-CapScore (judge: lexical)"


def test_our_prompts_have_the_version_of_their_texts():
    import hashlib

    texts = [text for prompts in (DCSCORE, CAPTIONQA, CAPARENA) for text in prompts.texts.values()]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
    assert (DCSCORE.version, digest) == ("balcap-1", "6e5a0748")
