"""Reward functions of users: called as TRL calls them, and what they may get wrong."""

import asyncio
import functools
import math
import sys

import numpy as np
import pytest
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import (
    Completions,
    RewardFunctionError,
    RewardFunctions,
    TrainerState,
)
from balcap_jax.rewards.function_names import load_function, name_function, name_functions
from balcap_jax.rewards.functions import lexical_reward

STATE = TrainerState(global_step=3, max_steps=10, epoch=0.5)
IMAGE = Image.new("RGB", (8, 8))
PLAIN = Example("a", IMAGE, "Describe it.", "A dog.", columns={"source": "web"})
CHAT = Example(
    "b",
    IMAGE,
    "What is it?",
    "A cat.",
    references=("A cat.", "A black cat."),
    messages=(
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is it?"},
    ),
)


def completions(examples=(PLAIN, CHAT), captions=("A dog runs.", "A cat.")):
    return Completions(list(examples), list(captions), [[5, 6, 7], [8, 9]][: len(captions)])


def rewards(*functions, of=None):
    scorer = RewardFunctions([name_function(function) for function in functions])
    try:
        return scorer(of or completions(), STATE)
    finally:
        scorer.close()


def short(completions, **columns):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [1 / (1 + len(text.split())) for text in texts]


async def later(completions, **columns):
    await asyncio.sleep(0.01)
    return [len(c) for c in completions]


def test_a_function_gets_what_trl_gives():
    seen = {}

    def spy(prompts, completions, completion_ids, **columns):
        seen.update(columns, prompts=prompts, completions=completions, ids=completion_ids)
        return [0, 1]

    found = rewards(spy)
    assert seen["prompts"] == ["Describe it.", [dict(m) for m in CHAT.messages]]
    assert seen["completions"] == ["A dog runs.", [{"role": "assistant", "content": "A cat."}]]
    assert seen["ids"] == [[5, 6, 7], [8, 9]]
    assert seen["reference"] == ["A dog.", "A cat."]
    assert seen["references"] == [["A dog."], ["A cat.", "A black cat."]]
    assert seen["source"] == ["web", None]  # a column that only one row has
    assert seen["image"] == [IMAGE, IMAGE]
    assert seen["trainer_state"].global_step == 3
    assert seen["trainer_state"].max_steps == 10
    np.testing.assert_array_equal(found.rewards, [[0], [1]])
    assert found.rewards.dtype == np.float32


def test_functions_of_every_form_stand_side_by_side():
    class Constant:
        def __call__(self, completions, **columns):
            return np.full(len(completions), 0.25)

    def scaled(completions, by, **columns):
        return [by * len(columns["id"])] * len(completions)

    constant, double = Constant(), functools.partial(scaled, by=2)
    found = rewards(short, later, constant, double)
    # "A dog runs." has 3 words and 11 letters; the chat completion is one message with 2 words
    np.testing.assert_allclose(found.rewards, [[1 / 4, 11, 0.25, 4], [1 / 3, 1, 0.25, 4]])
    names = RewardFunctions([name_function(f) for f in (short, later, constant, double)]).names
    assert names == ("short", "later", "Constant", "scaled")


def test_none_and_nan_are_no_signal_and_other_numbers_are_taken():
    def some(completions, **columns):
        return [None, True]

    def others(completions, **columns):
        return [np.float32(0.5), float("nan")]

    np.testing.assert_array_equal(rewards(some, others).rewards, [[np.nan, 0.5], [1, np.nan]])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([0.1, "good"], r"odd returned 'good' for row 'b', which must be a finite number"),
        ([0.1, [1.0]], r"odd returned \[1.0\] for row 'b'"),
        ([math.inf, 0.1], "odd returned inf for row 'a'"),
        ([1.0], "odd returned 1 rewards for 2 completions"),
        (0.5, "odd returned a float, which must be a list of 2 numbers"),
        ("ab", "odd returned a str"),
        ({"a": 1, "b": 2}, "odd returned a dict"),
        (None, "odd returned None, which must be a list of 2 numbers"),
    ],
)
def test_what_is_no_reward_is_named(answer, said):
    def odd(completions, **columns):
        return answer

    with pytest.raises(RewardFunctionError, match=said):
        rewards(odd)


def test_a_function_that_raises_is_named_with_its_row():
    def fragile(completions, id, **columns):  # noqa: A002
        return [1 / (name != "b") for name in id]

    async def fragile_later(completions, id, **columns):  # noqa: A002
        return fragile(completions, id)

    for function in (fragile, fragile_later):
        with pytest.raises(
            RewardFunctionError,
            match=rf"{function.__name__} raised at row 'b' \(caption 'A cat.'\): ZeroDivisionError",
        ):
            rewards(short, function)


def test_a_function_that_raises_for_the_batch_alone_is_named_with_its_rows():
    def crowded(completions, **columns):
        if len(completions) > 1:
            raise RuntimeError("too many at once")
        return [0.0]

    with pytest.raises(RewardFunctionError, match="crowded raised at the rows 'a' to 'b'"):
        rewards(crowded)


def test_async_functions_work_where_a_loop_runs_already():
    async def notebook():
        return rewards(later).rewards

    np.testing.assert_array_equal(asyncio.run(notebook()), [[11], [1]])


def test_functions_note_columns_and_metrics():
    def noting(completions, log_extra, log_metric, **columns):
        log_extra("letters", [np.int64(len(c)) for c in completions])
        log_extra("kinds", [{"a"}, None])
        log_metric("mean_letters", 2.0)
        log_metric("mean_letters", 4.0)
        return [0.0, 0.0]

    found = rewards(noting)
    assert found.extra == {"letters": [11, 1], "kinds": ["{'a'}", None]}
    assert found.metrics == {"mean_letters": 3.0}

    def wrong(completions, log_extra, **columns):
        log_extra("letters", [1])
        return [0.0, 0.0]

    with pytest.raises(RewardFunctionError, match=r"log_extra\('letters'\) has 1 values for 2"):
        rewards(wrong)


def test_no_captions_are_no_call():
    def never(**columns):
        raise AssertionError

    assert rewards(never, of=completions((), ())).rewards.shape == (0, 1)


# ---- names


def test_functions_are_loaded_from_files_and_modules(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def short(completions, **columns):\n    return [7]\n")
    spec = f"{tmp_path / 'mine.py'}:short"
    function = load_function(spec)
    assert (function.name, function.spec) == ("short", spec)
    assert function.call([""]) == [7]
    monkeypatch.syspath_prepend(tmp_path)
    assert load_function("mine:short").call([""]) == [7]
    sys.modules.pop("mine")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("short", "must be FILE.py:NAME or MODULE:NAME"),
        ("mine.py:a b", "must be FILE.py:NAME or MODULE:NAME"),
        ("no.py:short", "there is no file no.py"),
        ("no_such_module_here:short", "cannot be imported .ModuleNotFoundError"),
        ("{folder}/mine.py:shirt", "has no function shirt; did you mean short"),
        ("{folder}/mine.py:number", "has no function number"),
        ("{folder}/broken.py:short", "cannot be imported .ZeroDivisionError"),
        ("in Python:short", "was given to a Trainer in Python"),
    ],
)
def test_specs_that_name_no_function_are_one_sentence(spec, said, tmp_path):
    (tmp_path / "mine.py").write_text("number = 3\ndef short(): pass\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=said) as error:
        load_function(spec.format(folder=tmp_path))
    assert "\n" not in str(error.value)


class Length:
    """A function with settings of its own."""

    def __call__(self, completions, **columns):
        return [float(len(completion)) for completion in completions]


def test_functions_are_told_apart_by_names():
    one = lambda completions, **columns: [1.0]  # noqa: E731
    given = [one, Length(), short, Length(), functools.partial(short, factor=2)]
    assert [f.name for f in name_functions(given)] == [
        "lambda", "Length", "short", "Length_2", "short_2",
    ]  # fmt: skip
    specs = [f.spec for f in name_functions(given)]
    assert len(set(specs)) == 5
    assert specs[3:] == ["in Python:Length_2", "in Python:short_2"]
    assert [f.name for f in name_functions([short, short])] == ["short"] * 2  # a mistake
    assert name_function(lexical_reward).spec == "balcap_jax.rewards.functions:lexical_reward"
    assert name_function(short).spec in (f"{__name__}:short", "in Python:short")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("org/reward-model", "holds 'org/reward-model', and reward models by name are not known"),
        (3, "holds 3, which must be a function"),
        (Length, "must be a function; give a function or an object with __call__"),
        (lambda completions: [1.0], r"lambda takes no argument prompts, .* \*\*columns"),
        (lambda prompts, completions: [1.0], "takes no argument completion_ids"),
    ],
)
def test_what_could_never_be_called_is_refused_before_the_run(given, said):
    with pytest.raises(UserError, match=said) as error:
        name_function(given)
    assert "\n" not in str(error.value)


# ---- the same functions in TRL's own trainer


def conversational(completions, **columns):
    assert all(isinstance(c, list) for c in completions)
    return [float(len(c[0]["content"])) for c in completions]


def stateful(prompts, completions, completion_ids, trainer_state, log_extra, log_metric, **columns):
    log_extra("first", [str(c)[:1] for c in completions])
    log_metric("calls", 1.0)
    done = trainer_state.global_step / trainer_state.max_steps
    return [
        None if source == "none" else done + len(ids)
        for ids, source in zip(completion_ids, columns["source"], strict=True)
    ]


@pytest.mark.torch
@pytest.mark.parametrize("chat", [False, True], ids=["texts", "messages"])
def test_the_same_functions_give_the_same_numbers_in_trl(chat, tmp_path):
    """TRL trains a step on a tiny text model; its completions are scored here again."""
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from small_run import BASE
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=1, **sizes
        )
    )
    text = "Describe the image."
    prompt = [{"role": "user", "content": text}] if chat else text
    rows = [{"prompt": prompt, "source": source} for source in ("web", "none")]
    calls = []

    def recorded(function):
        @functools.wraps(function)
        def call(**arguments):
            state = arguments["trainer_state"]  # goes on with the steps
            calls.append(arguments | {"step": state.global_step, "steps": state.max_steps})
            return function(**arguments)

        return call

    functions = [short, stateful, *([conversational] if chat else [])]
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=[*(recorded(f) for f in functions), later],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path), report_to=[], use_cpu=True, max_steps=1, num_generations=2,
            per_device_train_batch_size=4, max_completion_length=6, save_strategy="no",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    theirs = []
    calculate = trainer._calculate_rewards

    def kept(*arguments):
        theirs.append(calculate(*arguments))
        return theirs[-1]

    trainer._calculate_rewards = kept
    trainer.train()
    given = calls[0]
    ours = Completions(
        examples=[
            Example(
                str(i), IMAGE, text, "", messages=tuple(prompt) if chat else (),
                columns={"source": source},
            )
            for i, source in enumerate(given["source"])
        ],
        captions=[c[0]["content"] if chat else c for c in given["completions"]],
        ids=given["completion_ids"],
    )  # fmt: skip
    seen = {}

    def spy(**arguments):
        seen.update(arguments)
        return [0.0] * len(arguments["completions"])

    scorer = RewardFunctions([name_function(f) for f in (*functions, later, spy)])
    state = TrainerState(given["step"], given["steps"], epoch=0.0)
    found = scorer(ours, state)
    scorer.close()
    np.testing.assert_allclose(found.rewards[:, :-1], theirs[0].numpy(), rtol=1e-6)
    assert np.isnan(found.rewards).any()  # TRL, too, has None there
    for name in ("prompts", "completions", "completion_ids", "source"):
        assert seen[name] == given[name], name
    assert found.metrics == {"calls": 1.0}
