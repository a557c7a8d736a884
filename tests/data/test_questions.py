"""Questions about an image: in files and in memory, as tokens, and in their turn."""

import dataclasses
import json

import pytest
import tiny_hf
import tiny_llava
from PIL import Image

from balcap_jax.commands.scenes import write_scenes
from balcap_jax.config.commands import ScenesConfig
from balcap_jax.config.sections import QUESTION_PROMPT
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.examples import Turn
from balcap_jax.data.lessons import answers_of
from balcap_jax.data.memory_rows import MemoryRows
from balcap_jax.data.prompts.answers import AnswerEncoder
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.prompts.questions import QuestionEncoder
from balcap_jax.data.rows import BadRowError
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import policy_folder

TURNS = (Turn("a red car", "yes"), Turn("a blue car", "no"), Turn("a dog", "no"))
ASKED = [turn._asdict() for turn in TURNS]
CHAT_ML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in "
    "message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def base():
    return dataclasses.replace(Processor.load(policy_folder("base")), chat_template=CHAT_ML)


@pytest.fixture
def llava(tmp_path):
    tiny_llava.write_processor(tmp_path)
    return Processor.load(tmp_path)


def example():
    found = tiny_hf.example("asked", (56, 56), prompt=QUESTION_PROMPT)
    return found._replace(questions=TURNS)


@pytest.mark.parametrize("family", ["base", "llava"])
def test_prefix_and_question_are_the_whole_prompt(family, request):
    processor = request.getfixturevalue(family)
    questions = QuestionEncoder(processor)
    row, question = questions.row(example()), questions.ids("a blue car")
    asked = example()._replace(prompt=f"{QUESTION_PROMPT}\na blue car", questions=())
    whole = processor.row(asked).tokens
    if family == "llava":  # a token per word, wherever the text is cut
        assert [*row.tokens, *question] == list(whole)
        return
    decode = processor.tokenizer.decode
    assert decode([*row.tokens, *question]) == decode(whole)
    assert decode(row.tokens).endswith(f"{QUESTION_PROMPT}\n")


def test_only_answers_are_learned(base):
    texts = AnswerEncoder(base, length=64).texts(example(), ["yes", "no", "no"])
    for text, turn in zip(texts, TURNS, strict=True):
        learned = [i for i, learns in zip(text.ids, text.learned, strict=True) if learns]
        assert learned[-1] == base.stop_tokens[0]
        assert base.tokenizer.decode(learned[:-1]) == turn.answer
        assert text.learned == sorted(text.learned)  # the answer is the end


def test_tokens_of_yes_and_no_are_found_and_apart(base, llava):
    yes, no = QuestionEncoder(base).answers
    assert yes
    assert no
    assert not set(yes) & set(no)
    assert base.tokenizer("yes", add_special_tokens=False)["input_ids"][0] in yes
    with pytest.raises(UserError) as error:  # one that knows ten words
        _ = QuestionEncoder(llava).answers
    assert "no token that 'yes' alone begins with" in str(error.value)


def test_a_template_that_hides_the_question_is_one_sentence(base):
    silent = dataclasses.replace(base, chat_template="<|vision_start|><|image_pad|><|vision_end|>")
    with pytest.raises(UserError) as error:
        _ = QuestionEncoder(silent).after
    assert "takes no question" in str(error.value)


def test_questions_come_in_their_turn():
    seen = [answers_of(example(), visit=visit, count=2) for visit in range(3)]
    assert [[q.question for q in found.example.questions] for found in seen] == [
        ["a red car", "a blue car"],
        ["a dog", "a red car"],
        ["a blue car", "a dog"],
    ]
    assert [found.answers for found in seen] == [["yes", "no"], ["no", "yes"], ["no", "no"]]
    assert answers_of(example()).answers == ["yes", "no", "no"]


def test_rows_with_questions_in_files_and_in_memory(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    values = {"image": "1.png", "questions": ASKED}
    (tmp_path / "a.jsonl").write_text(json.dumps(values) + "\n")
    row = CaptionRows(tmp_path / "a.jsonl", conversations=True)[0]
    assert (row.questions, row.prompt, row.reference) == (TURNS, QUESTION_PROMPT, "")
    values = {"image": Image.new("RGB", (8, 8)), "questions": ASKED, "prompt": "True?"}
    row = MemoryRows([values], name="rows", conversations=True)[0]
    assert (row.questions, row.prompt) == (TURNS, "True?")
    # As `datasets` keeps a list of objects.
    columns = {name: [getattr(turn, name) for turn in TURNS] for name in ("question", "answer")}
    row = MemoryRows([values | {"questions": columns}], name="rows", conversations=True)[0]
    assert row.questions == TURNS


@pytest.mark.parametrize(
    "questions",
    [
        [],
        "a red car",
        [{"question": "a red car"}],
        [{"question": "a red car", "answer": ""}],
        [{"question": "", "answer": "yes"}],
        [{"question": "<image>", "answer": "yes"}],
        [["a red car", "yes"]],
        {"question": ["a", "b"], "answer": ["yes"]},
        [{"question": 1, "answer": "yes"}],
    ],
)
def test_bad_questions_are_one_sentence(questions):
    values = {"image": Image.new("RGB", (8, 8)), "questions": questions}
    with pytest.raises(BadRowError) as error:
        MemoryRows([values], name="rows", conversations=True)[0]
    assert "rows, row 0" in str(error.value)


def test_scenes_are_written_with_questions(tmp_path):
    config = ScenesConfig(out=tmp_path, count=3, questions=6, clusters=1, split="heldout")
    rows = CaptionRows(write_scenes(config), conversations=True)
    assert len(rows) == 3
    for row in rows:
        assert [q.answer for q in row.questions].count("yes") == 3
        assert len(row.questions) == 6
        assert len({(t.row, t.col) for t in row.scene.things}) == 1  # one cluster
        assert row.image.is_file()


def test_settings_of_scenes_are_checked(tmp_path):
    for values in ({"questions": 1}, {"questions": -1}, {"clusters": 10}, {"clusters": -1}):
        with pytest.raises(UserError):
            ScenesConfig(out=tmp_path, **values)
