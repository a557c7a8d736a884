"""Conversations of several turns and images: from LLaVA's files, messages and rows in memory."""

import json
from collections import Counter

import pytest
from images import red

from balcap_jax.config.sections import PROMPT, DataConfig
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.examples import Example, Turn
from balcap_jax.data.lessons import RowLessons, SceneLessons, answers_of, corpus_captions
from balcap_jax.data.llava_files import LlavaRows
from balcap_jax.data.loading import Draw
from balcap_jax.data.memory_rows import MemoryRows
from balcap_jax.data.order import step_places
from balcap_jax.data.rows import BadRowError
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.data.sources import open_sources
from balcap_jax.errors import UserError
from balcap_jax.scenes.captions import FaultRates


def said(*words, system=None):
    turns = [{"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(words)]
    return [{"from": "system", "value": system}, *turns] if system else turns


def llava(folder, *rows, **options):
    path = folder / "talk.json"
    path.write_text(json.dumps([{"id": "7", "image": "red.png", **row} for row in rows]))
    return LlavaRows(path, images=folder, conversations=True, **options)


def user(*parts):
    return {"role": "user", "content": list(parts)}


def text(words):
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}


def test_all_turns_of_llava_are_read(tmp_path):
    red(tmp_path)
    rows = llava(
        tmp_path,
        {"conversations": said("<image>\nWhat?", " A dog. ", "Sure?", "Yes.")},
        {"conversations": said("What?\n<image>", "A dog.", system="Be brief.")},
        {
            "image": ["red.png", "red.png"],
            "conversations": said("<image> or\n<image>?", "The first."),
        },
        {"conversations": said("<image>", "A dog.", "And now?")},
    )
    plain, system, several, unanswered = rows
    assert (plain.prompt, plain.messages, plain.reference) == ("What?", (), "A dog.")
    assert plain.turns == (Turn("Sure?", "Yes."),)
    assert system.messages == (
        {"role": "system", "content": [text("Be brief.")]},
        user(text("What?"), IMAGE),
    )
    assert several.messages == (user(IMAGE, text("or"), IMAGE, text("?")),)
    assert (several.image, several.more_images) == (tmp_path / "red.png", (tmp_path / "red.png",))
    assert (unanswered.prompt, unanswered.turns) == (PROMPT, ())


def test_rows_of_no_use_are_counted_by_reason(tmp_path):
    red(tmp_path)
    rows = llava(
        tmp_path,
        {"conversations": said("<image>\nWhat?", "A dog.")},
        {"conversations": said("<image>\nWhat?", " ")},
        {"conversations": said("<image>\nWhat?", "A dog.", "Sure?", "")},
        {"conversations": said("<image>\nWhat?", "A dog.", "<image>\nAnd this?", "A cat.")},
        {"conversations": said("<image>\nWhat?", "A <image> dog.")},
        {"conversations": said("<image>\nWhat?", "A dog.<|im_end|>")},
        {"conversations": said("<image>\nWhat?", "A dog.", "[INST]", "A cat.")},
        {"conversations": said("What?", "A dog.")},
        {"conversations": said("<image> <image>", "A dog.")},
        {"conversations": [{"from": "gpt", "value": "A dog."}, *said("<image>", "A")]},
        {"conversations": [*said("<image>", "A"), {"from": "system", "value": "Be brief."}]},
        {"conversations": [{"from": "tool", "value": "A dog."}]},
    )
    assert len(rows) == 1
    assert rows.skipped == Counter(
        {
            "without an answer": 2,
            "with an image after the first answer": 1,
            "with an image in an answer or the system turn": 1,
            "with a special token in an answer": 1,
            "with a special token in a question": 1,
            "without <image> before or after the words of the first question": 1,
            "with another number of image tags than images": 1,
            "that begin with an answer": 1,
            "with a system turn after the first turn": 1,
            "with a turn of another speaker than human or user, gpt or assistant, and system": 1,
        }
    )


MESSAGES = [
    {"role": "user", "content": [IMAGE, text("What?")]},
    {"role": "assistant", "content": "A dog."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": [text("Yes.")]},
]


def test_messages_of_files_and_of_rows_in_memory_are_alike(tmp_path):
    red(tmp_path)
    path = tmp_path / "talk.jsonl"
    rows = [
        {"id": "a", "image": "red.png", "messages": MESSAGES},
        {"id": "b", "images": ["red.png"], "messages": MESSAGES[:2]},
        {"id": "c", "image": "red.png", "caption": "A wall.", "captions": ["Red."]},
        {"id": "d", "image": "red.png", "caption": "A wall."},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(path), heldout=1, heldout_path=str(path))
    train, _ = open_sources(data, seed=0, conversations=True)
    memory = MemoryRows(
        [{**row, "image": tmp_path / "red.png", "images": None} for row in rows],
        name="rows",
        conversations=True,
    )
    for place in range(4):
        one, other = train.row(place), memory[place]
        assert one._replace(columns={}) == other._replace(columns={})
    assert train[0].turns == (Turn("Sure?", "Yes."),)
    assert train[2].references == ("A wall.", "Red.")
    with pytest.raises(UserError, match='no "caption"'):  # rewards have no use for answers
        open_sources(DataConfig(path=str(path), heldout=1, max_bad_images=0), seed=0)


def test_rows_of_llava_and_of_trl_are_conversations_as_well(tmp_path):
    """The same question and answer however it is written, in memory and in a file."""
    red(tmp_path)
    question = {"role": "user", "content": "What is it?"}
    answer = {"role": "assistant", "content": "A wall."}
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A wall."},
    ]
    forms = [
        {"messages": [question, answer]},
        {"conversations": turns},
        {"prompt": "What is it?", "completion": "A wall."},
        {"prompt": [question], "completion": [answer]},
    ]
    given = [{"image": "red.png", **form} for form in forms]
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    file = CaptionRows(path, conversations=True)
    memory = MemoryRows(
        [{**row, "image": tmp_path / "red.png"} for row in given], name="rows", conversations=True
    )
    for place in range(len(forms)):
        for row in (file[place], memory[place]):
            assert (row.prompt, row.reference, row.turns) == ("What is it?", "A wall.", ())
    both = [{"image": "a.png", "caption": "A dog.", "completion": "A cat."}]
    assert MemoryRows(both, name="rows", conversations=True)[0].reference == "A dog."
    bare = MemoryRows([{"image": "a.png", "completion": "A cat."}], name="r", conversations=True)
    assert (bare[0].prompt, bare[0].reference) == (PROMPT, "A cat.")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": "What?"}, '"messages": "What\\?", which must be a list'),
        ({"messages": MESSAGES[:1]}, "rows without an answer"),
        ({"messages": MESSAGES, "image": None}, 'no "image"'),
        ({"messages": MESSAGES, "images": ["a", "b"], "image": None}, "2 images where its"),
        ({"image": "a.png"}, "there is no answer to learn"),
        ({"conversations": [{"from": "human", "value": "Hm?"}]}, 'answer in "conversations"'),
        ({"conversations": "What?"}, "whose turns must be like"),
        ({"completion": 3}, "which must be a list"),
        ({"completion": [{"role": "user", "content": "Hm?"}]}, "rows without an answer"),
    ],
)
def test_bad_rows_are_named(row, fault):
    rows = MemoryRows([{"image": "a.png", **row}], name="rows", conversations=True)
    with pytest.raises(BadRowError, match=f"rows, row 0 .*{fault}"):
        rows[0]


def example(*references):
    return Example("1", SceneSource("train", 1)[0].image, PROMPT, references[0], None, references)


def test_every_reference_has_its_turn():
    five = example("a", "b", "c", "d", "e")
    assert [answers_of(five, visit=v, count=2).answers for v in range(5)] == [
        ["a", "b"], ["c", "d"], ["e", "a"], ["b", "c"], ["d", "e"],
    ]  # fmt: skip
    assert answers_of(example("a", "b"), visit=3, count=8).answers == ["b", "a"][::-1]  # each once
    one = Example("1", five.image, PROMPT, "only")
    assert answers_of(one, visit=2, count=3).answers == ["only"]


def test_lessons_are_a_function_of_the_draw():
    scenes = SceneSource("train", 100)
    lessons = SceneLessons(scenes, seed=0, count=8, easy_steps=3)
    draw = Draw(place=5, visit=0, step=4)
    assert lessons.at(draw).answers == lessons.at(draw).answers
    assert len(set(lessons.at(draw).answers)) > 4  # with the faults of the corpus
    assert lessons.at(draw).answers != lessons.at(draw._replace(step=5)).answers
    assert lessons.at(draw).example.scene == scenes[5].scene
    assert lessons.at(draw._replace(step=2)).example.scene != scenes[5].scene  # an easy one
    assert len(corpus_captions(scenes[0], "0/0", 8, FaultRates())) == 8

    source = [example("a", "b", "c"), example("d")]
    assert RowLessons(source, count=1).at(Draw(0, 4, 9)).answers == ["b"]


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return step_places(6, step=epoch, count=6, seed=seed)

    assert order(0, 1) == order(0, 1)
    assert sorted(order(0, 1)) == list(range(6))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
