"""`balcap bench step --lora` on a tiny preset: memory is the compiler's, the sides are three."""

import json

import pytest
import tiny

from balcap_jax.bench import step_lora
from balcap_jax.cli import main as cli
from balcap_jax.plan.workloads import presets
from balcap_jax.plan.workloads.presets import Preset

TINY = Preset(
    tiny.config(text={"num_hidden_layers": 8}),
    dtype="float32",
    batch=2,
    group=2,
    image=(24, 16),
    text_tokens=7,
    completion=4,
    remat="full",
)


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)


def test_adapters_hold_less_than_whole_weights(monkeypatch):
    monkeypatch.setattr(step_lora, "RANK", 1)
    report = step_lora.run("tiny", rounds=1)
    sizes = report["bytes"]
    # Whole weights have two moments and a gradient each, adapters of rank 1 hardly any.
    assert sizes["lora"]["arguments"] < 0.6 * sizes["full"]["arguments"]
    assert report["ratios"]["bytes"] == sizes["lora"]["total"] / sizes["full"]["total"]
    assert all(s > 0 for side in report["seconds"].values() for s in side.values())
    assert set(report["seconds"]) == {"full", "lora"}


@pytest.mark.slow
@pytest.mark.torch
def test_beside_peft(capsys):
    pytest.importorskip("peft", reason="the test extra has peft")
    assert (
        cli.main(
            ["bench", "step", "--preset", "tiny", "--lora", "--against", "hf", "--rounds", "1",
             "--json"]
        )
        == 0
    )  # fmt: skip
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(report["seconds"]) == {"full", "lora", "peft"}
    ratio = report["seconds"]["peft"]["update"] / report["seconds"]["lora"]["update"]
    assert report["ratios"]["peft_update"] == pytest.approx(ratio)
