"""Names of other frameworks lead to our settings, and no suggestion is worse than a wrong one."""

import dataclasses
from pathlib import Path

import pytest

from balcap_jax.config import foreign_names
from balcap_jax.config.base import names_of
from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.names import advice, did_you_mean, nearest

KNOWN = set(names_of(TrainConfig))


@pytest.mark.parametrize("row", foreign_names.SETTINGS, ids=lambda row: row.ours)
def test_every_name_leads_to_a_setting_there_is(row):
    assert row.ours in KNOWN
    assert row.names()
    for name in row.names():
        assert advice(name, KNOWN).startswith(f", which is {row.ours} here"), name
        assert name not in KNOWN  # it would never be asked for


@pytest.mark.parametrize("row", foreign_names.ABSENT, ids=lambda row: row.names()[0])
def test_every_other_name_has_a_sentence(row):
    for name in row.names():
        assert advice(name, KNOWN) == f": {row.ours}."
    # Settings that a sentence speaks of are there.
    for word in row.ours.replace(",", " ").split():
        if "." in word:
            assert word in KNOWN


def test_no_name_is_in_two_rows():
    rows = (*foreign_names.SETTINGS, *foreign_names.ABSENT)
    names = [name for row in rows for name in set(row.names())]
    assert len(names) == len(set(names))
    assert set(foreign_names.NOTES) <= {row.ours for row in foreign_names.SETTINGS}


@pytest.mark.torch
def test_the_names_of_trl_are_those_of_trl():
    trl = pytest.importorskip("trl", reason="needs the test extra")
    theirs = {
        field.name
        for kind in (trl.GRPOConfig, trl.ModelConfig, trl.ScriptArguments)
        for field in dataclasses.fields(kind)
    }
    rows = (*foreign_names.SETTINGS, *foreign_names.ABSENT)
    ours = {name for row in rows for name in row.trl.split()}
    assert ours - theirs == set()
    assert len(ours) > 50


@pytest.mark.torch
def test_the_page_on_switching_gives_trl_settings_it_takes(tmp_path):
    trl = pytest.importorskip("trl", reason="needs the test extra")
    page = (Path(__file__).parents[2] / "docs" / "switching.md").read_text(encoding="utf-8")
    code = page.partition("args=GRPOConfig(")[2].partition("\n    ),")[0]
    theirs = eval(f"dict({code})")  # noqa: S307 - our own page
    args = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **theirs)
    assert (args.max_steps, args.multi_objective_aggregation) == (200, "normalize_then_sum")


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("group_size", "; did you mean rollout.group_size?"),
        ("gropu_size", "; did you mean rollout.group_size?"),
        ("kl-coef", "; did you mean rl.kl_coef?"),
        ("every", "; did you mean audit.every or checkpoint.every or evaluation.every?"),
        ("rollout.n", ", which is rollout.group_size here."),
        ("ppo_epochs", ", which is rl.updates_per_rollout here."),
        ("vllm_enable_sleep_mode", ": captions are sampled by the policy in place, without vLLM or"
         " SGLang."),
        ("lora_rank", ", which is model.lora.rank here."),
        ("load_in_4bit", ": base weights are kept in bfloat16, quantised ones (QLoRA) are not there"
         " yet."),
        ("sede", "; did you mean seed?"),
        ("colour", "."),
        ("zeta", "."),
    ],
)  # fmt: skip
def test_advice(name, rest):
    assert advice(name, KNOWN) == rest


def test_advice_is_only_of_settings_of_the_command():
    assert "kl_coef" not in advice("beta", names_of(SFTConfig))
    assert advice("max_steps", names_of(SFTConfig)) == ", which is steps here."
    assert advice("temperature", {"judge.temperature"}) == "; did you mean judge.temperature?"


def test_nearest_has_a_threshold():
    assert nearest("gropu_size", ["seed", "group_size", "steps"]) == "group_size"
    assert nearest("beta", ["mesh.data", "data", "optim.b2"]) is None
    assert (
        did_you_mean("trian", ["train", "sft"], "`balcap {}`") == "; did you mean `balcap train`?"
    )
    assert did_you_mean("xyz", ["train", "sft"]) == "."
