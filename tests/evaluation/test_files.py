"""Files of the benchmarks, lists of facts in answers, and prompts: in every form, or refused."""

import json
import subprocess

import pytest

from balcap_jax.errors import UserError
from balcap_jax.evaluation.caparena_run import read_battles
from balcap_jax.evaluation.caption_files import read_captions
from balcap_jax.evaluation.captionqa_data import read_entries, skipped
from balcap_jax.evaluation.dcscore_run import read_facts
from balcap_jax.evaluation.fact_lists import extracted, judged, listed, parsed
from balcap_jax.evaluation.official import official_prompts
from balcap_jax.evaluation.prompts import CAPARENA, CAPTIONQA, DCSCORE
from balcap_jax.evaluation.results import title_of
from balcap_jax.rewards.llm.answer_text import BadAnswer

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
