"""`balcap bench step` on a tiny preset: both sides compute the same, and what is reported."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
import tiny_llava

from balcap_jax.bench import floors, step, step_memory
from balcap_jax.bench.floors import Rates, Work
from balcap_jax.bench.step_hf import each_group_times, rows_of, write_inputs
from balcap_jax.bench.step_ours import Ours, plain_checksum
from balcap_jax.bench.step_profile import rollout_parts, update_parts
from balcap_jax.cli import main as cli
from balcap_jax.errors import UserError
from balcap_jax.models.families import make_policy
from balcap_jax.plan.workloads import presets
from balcap_jax.plan.workloads.presets import PRESETS, Preset, preset_of
from balcap_jax.plan.workloads.workload import RandomProcessor, size_of

SIZES = {"dtype": "float32", "batch": 2, "group": 3, "text_tokens": 7, "completion": 4}
TINY = Preset(tiny.CONFIG, image=(24, 16), **SIZES)
TINY_LLAVA = Preset(tiny_llava.CONFIG, image=(8, 8), torch_sequences=4, **SIZES)
FAMILIES = {"qwen2_5_vl": TINY, "llava": TINY_LLAVA}


@pytest.fixture(scope="module", params=FAMILIES)
def ours(request) -> Ours:
    return Ours(FAMILIES[request.param])


@pytest.fixture(scope="module")
def side() -> Ours:
    """For what does not depend on how far it has learned."""
    return Ours(TINY)


# ---- presets


@pytest.mark.parametrize(
    ("name", "parameters", "image_tokens"),
    [
        # embedding 32000 x 512; 8 decoder layers: q and o 512 x 512, k and v 512 x 128, biases 768,
        # mlp 3 x 512 x 1408, norms 1024; norm 512; tower: patches 1176 x 320, 8 blocks: qkv
        # 320 x 960 + 960, proj 320 x 320 + 320, mlp 3 x 320 x 864 + 2 x 864 + 320, norms 640;
        # merger: norm 320, 1280 x 1280 + 1280, 1280 x 512 + 512
        ("cpu-small", 51_559_488, 100),
        ("qwen3b", 3_754_622_976, 1024),
        ("qwen7b", 8_292_166_656, 1024),
        ("llava7b", 7_063_427_072, 576),
    ],
)
def test_presets_have_the_published_sizes(name, parameters, image_tokens):
    preset = preset_of(name)
    shapes = jax.eval_shape(make_policy(preset.config).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    small = dataclasses.replace(preset, batch=1)
    tokens = RandomProcessor(small).hf_arrays["input_ids"]
    assert np.sum(tokens == preset.config.image_token_id) == image_tokens
    assert tokens.shape == (1, image_tokens + preset.text_tokens)


def test_cpu_small_by_hand():
    layer = 2 * 512 * 512 + 2 * 512 * 128 + 768 + 3 * 512 * 1408 + 1024
    block = 320 * 960 + 960 + 320 * 320 + 320 + 3 * 320 * 864 + 2 * 864 + 320 + 640
    merger = 320 + 1280 * 1280 + 1280 + 1280 * 512 + 512
    assert 32000 * 512 + 8 * layer + 512 + 1176 * 320 + 8 * block + merger == 51_559_488


def test_an_unknown_preset_is_one_sentence():
    with pytest.raises(UserError, match="did you mean --preset qwen3b"):
        preset_of("qwen3")
    with pytest.raises(UserError, match="rounds=0"):
        step.run("cpu-small", rounds=0)


# ---- our side


def test_batch_is_as_the_processor_would_give_it(ours):
    preset, batch = ours.preset, ours.batch
    prompts, rows = batch.prompts, ours.processor.hf_arrays["input_ids"]
    joined = np.concatenate([np.asarray(prompts.tokens), np.zeros((2, 1), int)], axis=1)
    joined[:, rows.shape[1] - 1] = prompts.last_token
    np.testing.assert_array_equal(joined[:, : rows.shape[1]], rows)
    assert (np.asarray(prompts.mask).sum(axis=1) == rows.shape[1] - 1).all()
    assert np.asarray(batch.mask).all()
    assert batch.tokens.shape == (preset.batch, preset.group, preset.completion)
    assert not np.isin(batch.tokens, preset.config.banned_tokens).any()


def test_checksums_agree_and_the_update_goes_down():
    side = Ours(TINY)
    plain, fast = plain_checksum(side), side.logprob_checksum()
    assert fast["update_logprob"] == pytest.approx(plain["plain_logprob"], rel=1e-5)
    assert fast["rollout_logprob"] == pytest.approx(plain["plain_logprob"], rel=1e-5)
    assert abs(plain["plain_loss"]) > 1e-3  # the shift of the old logprobs makes it depend on them
    assert side.update() == pytest.approx(plain["plain_loss"], rel=1e-5)
    assert side.update() < plain["plain_loss"]


# ---- limits


def test_floors_by_hand():
    limit = floors.floors(Work(bytes=200, flops=6000), Rates(100.0, 1000.0))
    assert limit == (2.0, 6.0)
    assert limit.share(12.0) == 0.5
    assert max(floors.measured_rates("float32", copy_bytes=2**16, matrix=64)) > 0


def test_work_of_a_decode_step_by_hand(side):
    """Width 32, 2 layers, 4 heads of 8, 2 kv-heads, mlp 48, vocabulary 48."""
    found = floors.decode_work(side)
    matrices = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    layer = matrices + (32 + 16 + 16) + 2 * 32
    prefix = side.batch.prompts.tokens.shape[1]
    real = 6 + 7 - 1  # image tokens and text, the last one apart
    cached = 2 * 2 * 2 * 8 * 4  # keys and values, layers, kv-heads, head size, bytes
    captions = 2 * 3 * 2.5  # on average (4 + 1) / 2 tokens each
    assert found.bytes == 4 * (2 * layer + 48 * 32) + cached * (2 * real + captions)
    per_token = 2 * (2 * matrices + 48 * 32) + 2 * 2 * 2 * 32 * (prefix + 4)
    assert found.flops == 6 * per_token


def test_a_decode_step_in_bfloat16_moves_half_the_bytes(side):
    narrow = Ours(dataclasses.replace(TINY, dtype="bfloat16"))
    assert 2 * floors.decode_work(narrow).bytes == floors.decode_work(side).bytes


def test_work_of_an_update(side):
    found = floors.update_work(side)
    trainable = size_of(side.state.params["language_model"])
    # parameters, two moments and float32 gradients, each moved twice; the counters of Adam
    assert 8 * trainable < found.bytes < 8 * trainable + 100
    assert found.flops > 0


@pytest.mark.slow
def test_parts_add_up(side):
    parts = rollout_parts(side, 10.0, rounds=1)
    assert parts["encode"] + parts["prefill"] + 4 * parts["decode_step"] == pytest.approx(10.0)
    parts = update_parts(side, 10.0, rounds=1)
    assert parts["forward"] + parts["backward"] + parts["optimizer"] == pytest.approx(10.0)


# ---- Hugging Face's side


def test_each_sequence_has_its_own_image():
    arrays = RandomProcessor(TINY).hf_arrays
    inputs = each_group_times(arrays, TINY)
    assert inputs["input_ids"].shape[0] == 6
    for i in range(6):
        own = rows_of(inputs, slice(i, i + 1), TINY)
        np.testing.assert_array_equal(own["input_ids"][0], arrays["input_ids"][i // 3])
        first = i // 3 * 24
        np.testing.assert_array_equal(own["pixel_values"], arrays["pixel_values"][first:][:24])
        assert own["image_grid_thw"].tolist() == [[1, 6, 4]]


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_hugging_face_computes_the_same(name, tmp_path):
    """Two updates, so that gradients, clipping and AdamW agree as well; LLaVA in micro-batches."""
    pytest.importorskip("torch", reason="the test extra has torch")
    from balcap_jax.bench.step_hf import HuggingFace

    ours = Ours(FAMILIES[name])
    write_inputs(ours, tmp_path)
    theirs = HuggingFace(FAMILIES[name], tmp_path)
    theirs.rollout()
    assert theirs.update() == pytest.approx(ours.update(), rel=1e-4)
    assert theirs.update() == pytest.approx(ours.update(), rel=1e-4)
    frozen = [name for name, p in theirs.model.named_parameters() if not p.requires_grad]
    moved = [name for name, p in theirs.model.named_parameters() if p.requires_grad]
    assert all("visual" in n or "vision_tower" in n or "projector" in n for n in frozen)
    assert all("language_model" in n or "lm_head" in n for n in moved)


# ---- the command


@pytest.fixture
def tiny_preset(monkeypatch):
    """`cpu-small` is the tiny preset, and memory is measured in this process."""
    monkeypatch.setitem(PRESETS, "cpu-small", TINY)
    memory = step_memory.Memory(imports_bytes=1, peak_bytes=2)
    monkeypatch.setattr(step, "memory_of", lambda side, preset, folder: memory)
    monkeypatch.setattr(step, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(step, "MATRIX", {"cpu": 64})


@pytest.mark.slow
def test_json_is_one_line(tiny_preset, capsys):
    assert cli.main("bench step --rounds 2 --profile --json".split()) == 0
    [line] = capsys.readouterr().out.splitlines()
    report = json.loads(line)
    assert list(report["sides"]) == ["balcap"]
    rollout = report["sides"]["balcap"]["rollout"]
    assert len(rollout["rounds"]) == 2
    assert rollout["min"] <= rollout["median"] <= rollout["max"]
    assert rollout["tokens_per_second"] == pytest.approx(24 / rollout["median"])
    limits = report["limits"]["update"]
    assert limits["reached"] == pytest.approx(
        max(limits["bytes_floor"], limits["flops_floor"]) / limits["seconds"]
    )
    assert "ratios" not in report
    assert "optimizer" in report["profile"]


@pytest.mark.torch
@pytest.mark.slow  # a whole run of what the tests above look at
def test_table_against_hugging_face(tiny_preset, capsys, monkeypatch):
    pytest.importorskip("torch", reason="the test extra has torch")
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main("bench step --against hf --rounds 1".split()) == 0
    printed = capsys.readouterr().out
    assert "times our rollout" in printed
    assert "hf_loss" in printed


def test_without_torch_it_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("balcap_jax.bench.step_hf.find_spec", lambda name: None)
    assert cli.main("bench step --against hf".split()) == 2
    assert "pip install 'balcap_jax[test]' or drop the flag" in capsys.readouterr().err


def test_memory_of_a_step(monkeypatch, capsys):
    monkeypatch.setitem(presets.PRESETS, "cpu-small", TINY)
    step_memory.measure("balcap", "cpu-small", "")
    found = json.loads(capsys.readouterr().out)
    assert found["peak_bytes"] >= found["imports_bytes"] > 10_000_000


def test_a_step_that_fails_is_one_sentence():
    with pytest.raises(
        UserError, match="balcap cannot run one step .*'no-such' is unknown"
    ) as error:
        step_memory.memory_of("balcap", "no-such", "")
    assert "\n" not in str(error.value)
