"""The offline judge as TRL and verl call it."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from captions import CASES

from balcap_jax.errors import UserError
from balcap_jax.rewards import (
    compute_score,
    compute_scores,
    lexical_linguistic,
    lexical_precision,
    lexical_recall,
    lexical_reward,
)
from balcap_jax.rewards.commentary import comments, praises_itself

CASE = CASES[0]
COLUMNS = {
    "prompts": ["Describe."] * 3,
    "completions": [CASE.caption, [{"role": "assistant", "content": CASE.caption}], "A zebra."],
    "references": [list(CASE.references)] * 3,
    # TRL gives these, too, and more with every version.
    "completion_ids": [[1], [1], [2]],
    "trainer_state": None,
}


def test_trl_gets_a_number_per_completion_whether_text_or_chat():
    parts = [f(**COLUMNS) for f in (lexical_precision, lexical_recall, lexical_linguistic)]
    for values in (*parts, lexical_reward(**COLUMNS)):
        assert all(isinstance(value, float) and 0 <= value <= 1 for value in values)
        assert values[0] == values[1]
    assert lexical_reward(**COLUMNS)[0] == pytest.approx(3 / sum(1 / p[0] for p in parts), rel=1e-5)
    assert lexical_reward(**COLUMNS)[2] < lexical_reward(**COLUMNS)[0]


def test_without_references_there_is_no_signal():
    given = {"prompts": ["x"], "completions": ["A dog."]}
    assert lexical_reward(**given) == [None]
    assert lexical_precision(**given, references=[[]]) == [None]
    assert math.isnan(compute_score("photos", "A dog.", [])["score"])


def test_verl_gets_the_score_with_its_parts():
    found = compute_score("photos", CASE.caption, list(CASE.references), {"boxes": ["dog"]})
    assert found.keys() == {"score", "precision", "recall", "linguistic"}
    values = [found[name] for name in ("precision", "recall", "linguistic")]
    assert found["score"] == pytest.approx(3 / sum(1 / value for value in values), rel=1e-5)


def test_importing_the_rewards_is_cheap():
    code = "import sys, balcap_jax.rewards; print({'jax', 'numpy', 'lemminflect'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


REFERENCES = list(CASE.references)


@pytest.mark.parametrize(
    "truth",
    [
        {"target": REFERENCES},
        {"target": np.array(REFERENCES)},
        {"target": np.array(REFERENCES, object), "numbers": [1]},
        {"references": REFERENCES},
        np.array(REFERENCES),
        np.array(REFERENCES, object),
        tuple(REFERENCES),
        [*REFERENCES, None, " "],
    ],
    ids=str,
)
def test_verl_gives_the_truth_in_many_forms(truth):
    wanted = compute_score("photos", CASE.caption, REFERENCES)
    assert wanted["score"] > 0.1
    found = compute_score(
        data_source="photos",
        solution_str=CASE.caption,
        ground_truth=truth,
        extra_info={"index": 3, "boxes": None},
        reward_router_address="http://127.0.0.1:1",
        reward_model_tokenizer=None,
        own_setting=0.5,
    )
    assert found == wanted
    batch = compute_scores(
        data_sources=np.array(["photos"]),
        solution_strs=[CASE.caption],
        ground_truths=np.array([truth], object) if isinstance(truth, dict) else [truth],
        extra_infos=[{}],
        own_setting=0.5,
    )
    assert batch == [wanted]


@pytest.mark.parametrize("truth", [None, [], np.array([]), {"target": []}, float("nan"), ""])
def test_no_truth_is_no_signal(truth):
    assert math.isnan(compute_score("photos", "A dog.", truth)["score"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ground_truth": {"style": "rule"}}, "a dictionary without references"),
        ({"ground_truth": 5}, "ground_truth is 5, which must be a text or a list of texts"),
        ({"ground_truth": [3]}, "which must be a text or a list of texts"),
        ({"ground_truth": {"target": {"a": 1}}}, "which must be a text or a list of texts"),
        (
            {"ground_truth": ["A dog."], "solution_str": 7},
            "solution_str is 7, which must be a text",
        ),
        ({"ground_truth": ["A dog."], "solution_str": None}, "solution_str is None"),
        ({"ground_truth": ["A dog."], "extra_info": [1]}, "extra_info is .1., which must be"),
        ({"ground_truth": ["A dog."], "extra_info": {"boxes": 5}}, "boxes.* is 5, which must be"),
        ({"ground_truth": ["A dog."], "extra_info": {"boxes": [3]}}, "list of labels"),
    ],
)
def test_what_verl_does_not_give_is_refused_and_not_scored(arguments, said):
    with pytest.raises(UserError, match=said):
        compute_score(**{"data_source": "photos", "solution_str": "A dog.", **arguments})


def test_batches_of_other_lengths_are_refused():
    with pytest.raises(UserError, match="have 2, 1 and 2 entries"):
        compute_scores(None, ["A dog."] * 2, [["A dog."]])


def test_columns_may_be_arrays():
    wanted = lexical_reward(**COLUMNS)
    arrays = {
        **COLUMNS,
        "references": np.array([REFERENCES] * 3),
        "boxes": np.array([["dog", "zebra"]] * 3),
    }
    lists = {**COLUMNS, "boxes": [["dog", "zebra"]] * 3}
    assert lexical_reward(**arrays) == lexical_reward(**lists)
    of_arrays = {**COLUMNS, "references": [np.array(REFERENCES)] * 3}
    assert lexical_reward(**of_arrays) == wanted
    for boxes in ([None] * 3, [[]] * 3, [np.array([])] * 3, [{"label": [], "box": []}] * 3):
        assert lexical_reward(**COLUMNS, boxes=boxes) == wanted
    given = [[{"label": "dog", "box": [0, 0, 1, 1]}], [["dog", 0, 0, 1, 1]], {"label": ["dog"]}]
    same = {**COLUMNS, "completions": [CASE.caption] * 3, "boxes": given}
    assert len(set(lexical_reward(**same))) == 1


def test_the_first_column_that_has_references_counts():
    some = {**COLUMNS, "references": [None, float("nan"), REFERENCES]}
    assert lexical_reward(**some)[:2] == [None, None]
    both = {**some, "caption": [REFERENCES[0]] * 3}
    one = {**COLUMNS, "references": [REFERENCES[:1]] * 3}
    assert lexical_reward(**both)[:2] == lexical_reward(**one)[:2]


@pytest.mark.parametrize(
    ("completion", "signal"),
    [
        ([{"role": "assistant", "content": CASE.caption}], True),
        ({"role": "assistant", "content": CASE.caption}, True),
        ([{"role": "assistant", "content": [{"type": "text", "text": CASE.caption}]}], True),
        ([{"role": "assistant", "content": None, "tool_calls": []}], False),
        ([{"role": "assistant", "tool_calls": []}], False),
    ],
)
def test_completions_in_the_forms_of_trl(completion, signal):
    (found,) = lexical_reward(completions=[completion], references=[REFERENCES])
    (wanted,) = lexical_reward(completions=[CASE.caption], references=[REFERENCES])
    assert found == (wanted if signal else None)


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        (5, "completion 0 is 5, which must be a text"),
        (None, "completion 0 is None"),
        ([], "completion 0 is .., which must be"),
        (["A dog."], "which must be a text or a list of messages"),
        ([{"role": "assistant", "content": 5}], "which must be a text or a list of messages"),
        ([{"role": "assistant", "content": [{"type": "text"}]}], "list of messages"),
        ([{"text": "A dog."}], "which must be a text or a list of messages"),
    ],
)
def test_what_trl_does_not_give_is_refused_and_not_scored(completion, said):
    with pytest.raises(UserError, match=said):
        lexical_reward(completions=[completion], references=[REFERENCES])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"references": [["A dog."]] * 2}, 'column "references" is .* one entry for each of the 1'),
        ({"references": "A dog."}, 'column "references" is'),
        ({"references": [5]}, 'row 0 of the column "references" is 5'),
        ({"references": [["A dog."]], "boxes": [5]}, 'row 0 of the column "boxes" is 5'),
        ({"references": [["A dog."]], "boxes": 5}, 'column "boxes" is 5'),
    ],
)
def test_columns_of_no_known_form_are_refused(columns, said):
    with pytest.raises(UserError, match=said):
        lexical_reward(completions=["A dog."], **columns)


# What looks alike ---------------------------------------------------------------------------------

CAFE = "A caf\u00e9 with a white facade stands on a corner."
ALIKE = [
    CAFE.replace("\u00e9", "e\u0301"),
    CAFE.replace(" white", "\u00a0white"),
    CAFE.replace("white", "wh\u00adi\u200bte"),
    "\ufeff" + CAFE,
]


@pytest.mark.parametrize("other", ALIKE, ids=ascii)
def test_captions_that_look_alike_score_alike(other):
    references = [[CAFE, "People sit in front of a caf\u00e9."]]
    wanted = lexical_reward(completions=[CAFE], references=references)
    assert lexical_reward(completions=[other], references=references) == wanted
    split = [[text.replace("\u00e9", "e\u0301") for text in references[0]]]
    assert lexical_reward(completions=[other], references=split) == wanted


def test_commentary_is_found_however_it_is_written():
    assert praises_itself("This cap\u00adtion is accurate.")
    assert comments("The scene\u00a0evokes a sense of calm.")


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda texts: json.dumps(texts),
        lambda texts: json.dumps({"target": texts}),
        lambda texts: {"target": json.dumps(texts)},
        lambda texts: {"ground_truth": json.dumps({"references": texts})}["ground_truth"],
    ],
)
def test_a_ground_truth_that_was_stored_as_json_is_read(wrapped):
    plain = compute_score("photos", CASE.caption, list(CASE.references))
    assert compute_score("photos", CASE.caption, wrapped(list(CASE.references))) == plain


@pytest.mark.parametrize("truth", ['{"label": 3}', "[5]", '{"target": {"a": 1}}'])
def test_json_without_references_is_refused_and_not_scored(truth):
    with pytest.raises(UserError, match="references"):
        compute_score("photos", CASE.caption, truth)


def test_columns_hold_json_and_labels_too():
    plain = lexical_reward(completions=[CASE.caption], references=[list(CASE.references)])
    told = json.dumps(list(CASE.references))
    assert lexical_reward(completions=[CASE.caption], references=[told]) == plain
    infos = '{"boxes": ["dog"]}', {"boxes": '["dog"]'}, {"boxes": ["dog"]}
    found = [compute_score("photos", "A dog.", "A wall.", info) for info in infos]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("completions", ["A dog.", b"A dog.", (c for c in "ab"), {"a": "A dog."}])
def test_completions_that_are_no_list_are_refused(completions):
    with pytest.raises(UserError, match="completions is .*must be a list"):
        lexical_reward(completions=completions, references=["A dog."] * 6)


def test_a_single_text_is_no_batch():
    with pytest.raises(UserError, match="solution_strs is 'abc'"):
        compute_scores(["x"] * 3, "abc", ["A dog."] * 3)
    with pytest.raises(UserError, match=r"the column .references. is \{'a'"):
        lexical_reward(completions=["A dog."], references={"a": ["A dog."]})


def test_a_column_of_a_table_is_read_by_its_order():
    pandas = pytest.importorskip("pandas")
    column = pandas.Series([["A dog."]], index=[4])
    assert lexical_reward(completions=["A dog."], references=column) == lexical_reward(
        completions=["A dog."], references=[["A dog."]]
    )
