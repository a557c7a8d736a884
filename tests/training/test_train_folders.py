"""The training loop on small random folders of both families, in bfloat16, and its export."""

import dataclasses
import json

import numpy as np
import pytest
import small_run
import tiny
import tiny_hf
import tiny_llava
from safetensors import safe_open

from balcap_jax.commands.export import export
from balcap_jax.config.commands import ExportConfig
from balcap_jax.config.sections import ModelConfig, OptimConfig
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.training import experience
from balcap_jax.training.saved_policy import saved_policy
from balcap_jax.training.trainer import train

FAMILIES = {
    "qwen2_5_vl": (tiny, tiny_hf, ("visual.",)),
    "llava": (tiny_llava, tiny_llava, ("vision_tower.", "multi_modal_projector.")),
}

pytestmark = pytest.mark.usefixtures("one_device")


def stored(folder):
    """Key -> the bits of each tensor, as whole numbers."""
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return {key: file.get_tensor(key).view(np.uint16) for key in file.keys()}  # noqa: SIM118


def trained(tmp_path, module, processor, *, steps, learning_rate):
    """A random policy's folder in bfloat16, and the run that went on from it."""
    start = tmp_path / "start"
    policy, params = module.policy()
    processor.write_processor(start)
    save_pretrained(start, policy, params, dtype="bfloat16")
    config = dataclasses.replace(
        small_run.small(tmp_path / "runs"),
        steps=steps,
        model=ModelConfig(path=str(start), dtype="bfloat16"),
        optim=OptimConfig(learning_rate=learning_rate, warmup_steps=1),
    )
    return start, train(config)


@pytest.mark.parametrize(
    "family",
    # Of Qwen2.5-VL test_wiring.py trains such a folder, in float32.
    [pytest.param("qwen2_5_vl", marks=pytest.mark.slow), "llava"],
)
def test_a_step_changes_what_is_trained_and_nothing_else(family, tmp_path, capsys, monkeypatch):
    """Also steps far below the rounding of bfloat16, which the trained float32 weights keep."""
    module, processor, frozen = FAMILIES[family]

    # Random policies write nothing that is worth more than the rest.
    def advantages(judged, *_, **_named):
        return np.random.default_rng(0).normal(size=judged.words.shape).astype(np.float32)

    monkeypatch.setattr(experience, "advantages_of", advantages)
    start, run = trained(tmp_path, module, processor, steps=1, learning_rate=2e-2)
    [row] = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert row["grad_norm"] > 0
    assert "shapes of prompts" in " ".join(capsys.readouterr().out.split())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["prompt_shapes"] == sorted(summary["prompt_shapes"])
    assert summary["programs"] > len(summary["prompt_shapes"]) >= 1
    assert summary["skipped_updates"] == 0

    export(ExportConfig(run=run, out=tmp_path / "out"))
    before, after = stored(start), stored(tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert before.keys() == after.keys()
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    assert not [key for key in moved if key.startswith(frozen)]
    decoder = {key for key in before if ".layers." in key and not key.startswith(frozen)}
    assert {key for key in decoder if key.endswith("proj.weight")} <= moved


@pytest.mark.slow
def test_steps_below_the_rounding_of_bfloat16_add_up(tmp_path):
    """Of a weight of 1, bfloat16 keeps no step below 0.004: Adam's first steps of 1e-4 are kept."""
    start, run = trained(tmp_path, tiny, tiny_hf, steps=2, learning_rate=1e-4)
    saved = saved_policy(run)
    params, step = saved.params, saved.step
    assert step == 2

    def scale_of(params):
        return np.asarray(params["language_model"]["layers"]["input_layernorm"]["scale"])

    change = np.abs(scale_of(params) - scale_of(load_pretrained(start)[1]))
    assert scale_of(params).dtype == np.float32
    assert 0 < change.max() < 3e-4
