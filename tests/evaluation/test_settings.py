"""Settings of evaluations: what would have no effect is refused, and every one is read."""

import ast
import dataclasses
from pathlib import Path

import pytest

import balcap_jax.evaluation
from balcap_jax.config import evaluation as settings
from balcap_jax.config.base import from_dict
from balcap_jax.config.evaluation import (
    BENCHMARKS,
    BCapScoreConfig,
    CapArenaConfig,
    CaptionQAConfig,
    DCScoreConfig,
    EvalAllConfig,
)
from balcap_jax.errors import UserError

PACKAGE = Path(balcap_jax.evaluation.__file__).parents[1]


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (
            DCScoreConfig,
            {"judge": {"kind": "lexical"}},
            "goes by its own rules, and this benchmark",
        ),
        (
            CaptionQAConfig,
            {"judge": {"kind": "model", "model": "v"}},
            "answers only yes or no, and",
        ),
        (CapArenaConfig, {"judge": {"kind": "auto"}}, "or take `balcap eval bcapscore`"),
        (DCScoreConfig, {"checkpoint": "best", "dtype": "bfloat16"}, "no effect with checkpoint="),
        (DCScoreConfig, {"judge": {"temperature": 0.5}}, "judge.temperature=0.5 has no effect on"),
        (CapArenaConfig, {"judge": {"max_tokens": 9}}, "which says itself how its judge is asked"),
        (CaptionQAConfig, {"judge": {"structured": "none"}}, "leave it at json_schema"),
        (DCScoreConfig, {"matchings": 0}, "must be at least 1"),
        (CaptionQAConfig, {"data": "a", "download": True}, "give one of data and download"),
        (CapArenaConfig, {"captions": "a", "model": "b"}, "leave one of captions and model out"),
        (BCapScoreConfig, {"top_p": 0.0}, "above 0 and at most 1"),
        (EvalAllConfig, {"dcscore": {"model": "a"}}, "write model above the tables"),
        (EvalAllConfig, {"modle": "a"}, "there is no setting modle; did you mean model?"),
        (EvalAllConfig, {"matchigns": 1}, "did you mean dcscore.matchings?"),
    ],
)
def test_bad_settings_are_one_sentence(kind, values, said):
    with pytest.raises(UserError) as error:
        from_dict(kind, values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_official_judges_and_sampling_are_the_defaults():
    assert DCScoreConfig().judge.model == "gpt-4o-2024-05-13"
    assert CaptionQAConfig().judge.model == "Qwen/Qwen2.5-72B-Instruct"
    assert CapArenaConfig().judge.model == "gpt-4o-2024-08-06"
    qa = CaptionQAConfig()
    assert (qa.prompt, qa.temperature, qa.max_new_tokens, qa.top_p) == (
        "Describe this image in detail.", 0.7, 500, 1.0,
    )  # fmt: skip


def test_what_is_said_for_all_reaches_each_benchmark():
    values = {"model": "base", "out": "o", "dcscore": {"facts": "f"}}
    values |= {"caparena": {"data": "d", "captions": "c"}}
    found = from_dict(EvalAllConfig, values).benchmarks()
    assert list(found) == ["dcscore", "caparena"]
    assert found["dcscore"].model == "base"
    assert found["caparena"].model == ""  # its captions are in a file
    assert {str(of.out) for of in found.values()} == {"o"}


def test_every_setting_is_read():
    read = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name == "evaluation.py" and path.parent.name == "config":
            continue
        tree = ast.walk(ast.parse(path.read_text("utf-8")))
        read |= {node.attr for node in tree if isinstance(node, ast.Attribute)}
    # With what captions depend on, which is read by name.
    from balcap_jax.evaluation.captioning import _DEPEND

    read |= set(_DEPEND) | set(BENCHMARKS)
    kinds = [kind for kind in vars(settings).values() if dataclasses.is_dataclass(kind)]
    unread = {
        item.name for kind in kinds for item in dataclasses.fields(kind) if item.name not in read
    }
    assert unread == set()
