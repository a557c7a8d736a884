"""`balcap bench step --lora` on a tiny preset: memory is the compiler's, the sides are three; and
whole steps beside those of TRL.
"""

import json

import pytest
import tiny

from balcap_jax.bench import step_lora
from balcap_jax.cli import main as cli
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.plan.workloads import presets
from balcap_jax.plan.workloads.presets import Preset
from balcap_jax.plan.workloads.word_folder import photos_of, write_word_folder

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


@pytest.mark.long
@pytest.mark.slow
def test_adapters_hold_less_than_whole_weights(monkeypatch):
    monkeypatch.setattr(step_lora, "RANK", 1)
    report = step_lora.run("tiny", rounds=1)
    sizes = report["bytes"]
    # Whole weights have two moments and a gradient each, adapters of rank 1 hardly any.
    assert sizes["lora"]["arguments"] < 0.6 * sizes["full"]["arguments"]
    assert report["ratios"]["bytes"] == sizes["lora"]["total"] / sizes["full"]["total"]
    assert all(s > 0 for side in report["seconds"].values() for s in side.values())
    assert set(report["seconds"]) == {"full", "lora"}


@pytest.mark.long
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


@pytest.mark.torch
@pytest.mark.long
@pytest.mark.slow  # TRL takes long to import
def test_whole_steps_beside_those_of_trl(capsys):
    pytest.importorskip("trl", reason="the test extra has trl")
    arguments = ["bench", "step", "--preset", "tiny", "--lora", "--against", "trl", "--rounds", "2"]
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {side: len(rounds) for side, rounds in report["rounds"].items()} == {
        "trl": 2, "balcap": 2,
    }  # fmt: skip
    assert all(seconds > 0 for rounds in report["rounds"].values() for seconds in rounds)
    ratio = report["seconds"]["trl"] / report["seconds"]["balcap"]
    assert report["ratio"] == pytest.approx(ratio)
    assert {"trl", "peft", "torch", "jax"} < set(report["versions"])


def test_trl_is_compared_with_adapters_alone(capsys):
    assert cli.main(["bench", "step", "--against", "trl"]) == 2
    assert "compares whole steps of adapters; add --lora" in capsys.readouterr().err


def test_prompts_of_words_have_the_presets_sizes(tmp_path):
    """The folder that both sides read: so many text and image tokens as the preset says."""
    write_word_folder(tmp_path / "policy", TINY)
    processor = Processor.load(tmp_path / "policy")
    for image, prompt in photos_of(TINY, 2):
        row = processor.row(Example("0", image, prompt, ""))
        shown = int((row.tokens == TINY.config.image_token_id).sum())
        assert shown == image_tokens(TINY)
        assert len(row.tokens) - shown == TINY.text_tokens


def image_tokens(preset):
    vision = preset.config.vision
    height, width = preset.image
    return height * width // (vision.patch_size * vision.spatial_merge_size) ** 2
