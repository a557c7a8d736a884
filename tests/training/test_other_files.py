"""Files that a run reads beside its data, and what a resumed run makes of changed ones."""

import functools

import pytest
from small_run import BASE, small

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.rivals import QAConfig, RewardJudgeConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.errors import UserError
from balcap_jax.rewards.function_names import RewardFunction, name_function
from balcap_jax.rewards.llm.stored_units import units_path
from balcap_jax.rewards.rivals.rubric_files import rubrics_path
from balcap_jax.runs import contents
from balcap_jax.training import other_files as other_files_
from balcap_jax.training.adapter_run import check_base
from balcap_jax.training.fingerprint import differences
from balcap_jax.training.other_files import code_of, other_files


@pytest.fixture
def policy(tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    for name in ("tokenizer.json", "preprocessor_config.json", "README.md"):
        (folder / name).write_text(f'{{"name": "{name}"}}')
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("change", ["edit", "remove", "add"])
def test_a_changed_processor_is_a_difference(policy, tmp_path, name, change):
    config = small(tmp_path)
    before = other_files(config, policy)
    (policy / "README.md").write_text("read by people alone")
    assert not differences(before, other_files(config, policy))
    if change == "edit":
        (policy / name).write_text((policy / name).read_text().replace("name", "eman"))
    elif change == "remove":
        (policy / name).unlink()
    else:
        (policy / "chat_template.jinja").write_text("{{ messages }}")
    assert differences(before, other_files(config, policy)) == [other_files_.PROCESSOR]


@pytest.mark.parametrize("pieces", [64, 2])
def test_a_judge_with_other_weights_is_a_difference(policy, tmp_path, monkeypatch, pieces):
    monkeypatch.setattr(contents, "PIECE", 16)
    monkeypatch.setattr(other_files_, "_PIECES", pieces)
    config = small(tmp_path, judge=JudgeConfig(kind="model", model=str(policy)))
    before = other_files(config, BASE)
    (policy / "model.safetensors").write_bytes(bytes(99) + b"\1")
    assert differences(before, other_files(config, BASE)) == ["files of judge.model"]


def test_other_reference_units_are_a_difference(policy, tmp_path):
    data = tmp_path / "data.jsonl"
    judge = JudgeConfig(kind="llm", model="m")
    config = small(tmp_path, judge=judge, data=DataConfig(path=str(data)))
    before = other_files(config, policy)
    units_path(data).write_text("{}\n")
    assert differences(before, other_files(config, policy)) == ["reference units beside data.path"]
    plain = small(tmp_path, data=DataConfig(path=str(data)))  # this judge does not read them
    assert not differences(before, other_files(plain, policy))


def test_other_questions_are_a_difference(policy, tmp_path):
    file = tmp_path / "questions [1].jsonl"
    file.write_text("{}\n")
    reward = RewardConfig(rivals=("qa_utility",), weights=(1,) * 4, qa=QAConfig(file=str(file)))
    config = small(tmp_path, reward=reward)
    before = other_files(config, policy)
    assert not differences(before, other_files(config, policy))
    file.write_text("{ }\n")
    assert differences(before, other_files(config, policy)) == ["files of reward.qa.file"]


def test_other_rubrics_beside_the_data_are_a_difference(policy, tmp_path):
    data = tmp_path / "data.jsonl"
    judge = RewardJudgeConfig(kind="llm", model="m")
    reward = RewardConfig(rivals=("rubric",), weights=(1,) * 4, judge=judge)
    config = small(tmp_path, reward=reward, data=DataConfig(path=str(data)))
    before = other_files(config, policy)
    rubrics_path(data).write_text("{}\n")
    assert differences(before, other_files(config, policy)) == ["files of reward.rubric.file"]


def test_the_code_of_functions_is_noted(tmp_path):
    def function_of(body):
        path = tmp_path / "rewards.py"
        path.write_text(f"def short(completions, **columns):\n    return {body}\n")
        scope = {}
        exec(compile(path.read_text(), str(path), "exec"), scope)
        return scope["short"]

    class Scorer:
        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

    first = code_of([name_function(function_of("[1.0]"))])
    assert code_of([name_function(function_of("[1.0]"))]) == first
    assert code_of([name_function(functools.partial(function_of("[1.0]"), x=1))]) == first
    assert code_of([name_function(function_of("[2.5]"))]) != first
    assert len(code_of([name_function(Scorer())])) == 1
    assert code_of([RewardFunction("len", "builtins:len", len)]) == {}  # there is none to read


def test_the_weights_of_a_reference_policy_are_compared(tmp_path):
    check_base({"base": "a"}, "a", run=tmp_path, path="base")
    check_base({"base": ""}, "a", run=tmp_path, path="base")  # of an older balcap_jax
    check_base({}, "a", run=tmp_path, path="base")
    with pytest.raises(UserError, match="started from other weights than model.path 'base'"):
        check_base({"base": "b"}, "a", run=tmp_path, path="base")
