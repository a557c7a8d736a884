"""Questions in the form of CapRL-QA-75K: what is read, and what is refused in one sentence."""

import json

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.rivals.qa_questions import (
    Question,
    QuestionFile,
    questions_of,
    read_question,
    read_questions,
    to_row,
)

DOG = Question("What colour is the dog?", ("Brown", "White", "Black"), 2)
DOG_ROW = {
    "question": "What colour is the dog?",
    "choices": ["A) Brown", "B) White", "C) Black"],
    "answer": "C",
}


@pytest.mark.parametrize(
    "row",
    [
        DOG_ROW,
        DOG_ROW | {"answer": "C) Black"},
        DOG_ROW | {"choices": ["A. Brown", "B. White", "C. Black"]},
        DOG_ROW | {"choices": ["Brown", "White", "Black"]},
        # The options in the text, as the first rows of CapRL had them, with the one that its code
        # takes away again.
        {
            "question": "What colour is the dog?\n   - A) Brown\n   - B) White\n   - C) Black\n"
            "   - E) Can not answer based on the caption",
            "answer": "C",
        },
    ],
    ids=["as published", "answer with its text", "points", "bare", "in the text"],
)
def test_the_forms_of_a_question(row):
    assert read_question(row, where="x") == DOG


def test_letters_may_skip_one():
    row = DOG_ROW | {"choices": ["A) Brown", "C) White", "D) Black"], "answer": "D"}
    assert read_question(row, where="x") == DOG


def test_a_row_goes_out_and_comes_back():
    row = to_row("7", (DOG,))
    assert row["reward_model"]["ground_truth"] == [DOG_ROW]
    assert read_questions(row, where="x") == (DOG,)
    assert read_questions({"caption": "A dog."}, where="x") is None


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([], "has 0 questions, and a caption can only be rewarded by some"),
        ([DOG_ROW | {"answer": ""}], "'What colour is the dog?' without a right answer; give its"),
        ([{"question": "Q?", "choices": ["a", "b"]}], "'Q?' without a right answer"),
        (
            [DOG_ROW | {"answer": "D"}],
            "the answer 'D', beyond its options A, B, C; give the letter",
        ),
        ([DOG_ROW | {"choices": ["A) Brown"]}], "with 1 choices, which must have 2 to 8"),
        ([DOG_ROW | {"choices": list("abcdefghi")}], "with 9 choices, which must have 2 to 8"),
        ([{"choices": ["a", "b"], "answer": "A"}], "which must be an object with a text"),
        ("Q?", 'has the question "Q?", which must be an object'),
        ({"question": "Q?"}, "which must be a list of objects"),
    ],
)
def test_what_is_no_question_is_one_sentence(listed, said):
    with pytest.raises(UserError) as error:
        read_questions({"reward_model": {"ground_truth": listed}}, where="row 3")
    assert str(error.value).startswith("row 3 has ")
    assert said in str(error.value)
    assert str(error.value).count("; ") == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_of_questions(tmp_path, kind):
    path = tmp_path / f"questions.{kind}"
    rows = [to_row("a", (DOG,)) | {"image": {"bytes": None}}, to_row("b", (DOG, DOG))]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    file = QuestionFile(path)
    assert (file.get("a"), file.get("b"), file.get("c")) == ((DOG,), (DOG, DOG), None)
    example = Example("a", Image.new("RGB", (9, 9)), "p", "r")
    assert questions_of(example, file) == (DOG,)
    # The file comes before the column of the data.
    other = to_row("a", (DOG._replace(correct=0),))
    assert questions_of(example._replace(columns=other), file) == (DOG,)
    assert questions_of(example._replace(columns=other), None) == (DOG._replace(correct=0),)
    assert questions_of(example, None) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}\n", 'row 1 has no "id" or no "reward_model"'),
        ("[1]\n", "line 1 is no JSON object"),
        (json.dumps(to_row("a", (DOG,))) + "\n" + json.dumps(to_row("a", (DOG,))), "a second time"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, text, said):
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        QuestionFile(path)
    with pytest.raises(UserError, match="cannot be read.*check --reward.qa.file"):
        QuestionFile(tmp_path / "missing.jsonl")
    (tmp_path / "bad.parquet").write_text(text)
    with pytest.raises(UserError, match="cannot be read as parquet"):
        QuestionFile(tmp_path / "bad.parquet")
