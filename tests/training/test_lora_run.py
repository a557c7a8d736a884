"""Runs that train adapters: what they move, keep, write, and start from."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from small_run import BASE, small

from balcap_jax.commands.export import export
from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import ExportConfig, SFTConfig, TrainConfig
from balcap_jax.config.sections import (
    DataConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    RLConfig,
)
from balcap_jax.errors import UserError
from balcap_jax.models.hf.adapters import load_adapter
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.selection import leaf_paths, overlaid
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training.saved_policy import saved_policy
from balcap_jax.training.sft import sft
from balcap_jax.training.trained import adapters_of, load_policy, param_shapes
from balcap_jax.training.trainer import train

ONE = make_mesh(devices=jax.devices()[:1])
WEIGHTS = "adapter_model.safetensors"
LORA = ModelConfig(lora=LoraConfig(rank=4, alpha=64.0))


def settings(out, **changes) -> TrainConfig:
    return small(out, **{"model": LORA, "rl": RLConfig(kl_coef=0.05), **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    """Four steps with a reference policy."""
    return train(settings(tmp_path_factory.mktemp("lora")))


def rows_of(run):
    return read_jsonl(run / "metrics.jsonl")


def test_only_adapters_move_and_the_reference_is_the_base(run):
    rows = rows_of(run)
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    # B is 0 until the first update: policy and reference are the same numbers until then.
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["kl"] > 1e-6
    policy, base = load_pretrained(BASE)
    adapter = load_adapter(run / "adapter", policy)
    assert (adapter.rank, adapter.lora.alpha, adapter.base) == (4, 64.0, str(BASE.resolve()))
    leaves = dict(zip(leaf_paths(adapter.params), jax.tree.leaves(adapter.params), strict=True))
    moved = [np.abs(leaf).max() for path, leaf in leaves.items() if path.endswith("lora_B")]
    assert len(moved) == 7
    assert min(moved) > 0
    policy = dataclasses.replace(policy, lora=adapter.lora)
    save_pretrained(run / "again", policy, overlaid(base, adapter.params), dtype="float32")
    tiny.assert_equal_trees(load_pretrained(run / "policy")[1], load_pretrained(run / "again")[1])


def test_a_checkpoint_holds_adapters_moments_and_counts_alone(run):
    record = json.loads((run / "checkpoints" / "4" / "extra" / "metadata").read_text())
    leaves = record["leaves"]
    arrays = [name for name in leaves if not name.endswith("count") and "/" in name]
    assert len(arrays) == 3 * 14
    assert all(name.rpartition("/")[2] in ("lora_A", "lora_B") for name in arrays)
    assert len(record["extra"]["base"]) == 16


def test_a_resumed_run_is_the_same_to_the_bit(run, tmp_path):
    first = tmp_path / run.name  # as it was after two steps
    shutil.copytree(run, first)
    for written in (first / "checkpoints" / "4", first / "adapter", first / "policy"):
        shutil.rmtree(written)
    train(settings(tmp_path), resume=first)
    straight, resumed = rows_of(run), rows_of(first)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in straight]
    ours, theirs = (load_file(folder / "adapter" / WEIGHTS) for folder in (first, run))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.slow
@pytest.mark.long  # test_other_files.py has the same refusal of whole weights
def test_adapters_are_not_put_on_another_base(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(BASE, base)
    model = dataclasses.replace(LORA, path=str(base))
    first = train(settings(tmp_path, steps=2, model=model))
    policy, params = load_pretrained(base)
    params["language_model"]["norm"]["scale"] += 1e-3
    save_pretrained(base, policy, params)
    with pytest.raises(UserError, match="started from other weights than"):
        train(settings(tmp_path, model=model), resume=first)
    with pytest.raises(UserError, match="started from other weights than"):
        saved_policy(first)


def test_a_run_starts_from_the_adapter_of_another(run, tmp_path):
    start = ModelConfig(lora=LoraConfig(start=str(run)))
    config = settings(tmp_path, model=start, steps=1)
    policy, params = load_policy(config, BASE, ONE)
    assert policy.lora == (64.0, False, 0.0)
    adapter = load_adapter(run / "adapter", policy).params
    for path, leaf in zip(leaf_paths(adapter), jax.tree.leaves(adapter), strict=True):
        found = params
        for name in path.split("/"):
            found = found[name]
        np.testing.assert_array_equal(found, leaf)
    assert adapters_of(start, policy).rank == 4
    second = train(config)
    assert rows_of(second)[0]["kl"] > 1e-6  # the reference is the base, not the start


@pytest.mark.parametrize("checkpoint", ["", "2"])
def test_export(run, checkpoint, tmp_path):
    def out(**options):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        export(ExportConfig(run=run, out=folder, checkpoint=checkpoint, **options))
        return folder

    adapter, merged = out(adapter=True), out(merged=True)
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", WEIGHTS}
    # An adapter's folder is a policy too: its base with the adapter merged.
    both = [load_pretrained(folder)[1] for folder in (adapter, merged, out())]
    for a, b, c in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(b, c)


def test_export_of_an_adapter_that_is_none(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(TrainConfig())))
    with pytest.raises(UserError, match="trained whole weights and has no adapter"):
        export(ExportConfig(run=run, out=tmp_path / "out", adapter=True))
    with pytest.raises(UserError, match="give one of adapter and merged"):
        ExportConfig(run=run, out=tmp_path / "out", adapter=True, merged=True)


def test_the_base_is_kept_in_the_dtype_of_its_matmuls(tmp_path):
    """bfloat16 matrices, everything else float32, and what they compute is the same."""
    model = dataclasses.replace(LORA, dtype="bfloat16")
    policy, params = load_policy(TrainConfig(model=model), BASE, ONE)
    shapes = param_shapes(TrainConfig(model=model), policy)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        narrow = path.rpartition("/")[2] in ("weight", "embedding")
        assert leaf.dtype == ("bfloat16" if narrow else "float32"), path
    whole = load_policy(TrainConfig(model=dataclasses.replace(model, lora=LoraConfig())), BASE, ONE)
    prompts = load_prompts(policy)
    narrow, wide = (np.asarray(p.logits(x, **prompts)) for p, x in ((policy, params), whole))
    np.testing.assert_array_equal(narrow, wide)


def load_prompts(policy):
    tokens = np.arange(6, 18)[None]
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}


@pytest.mark.long
@pytest.mark.slow
def test_supervised_training_of_adapters(tmp_path):
    config = SFTConfig(
        out=tmp_path,
        steps=3,
        batch_size=2,
        captions_per_image=1,
        max_new_tokens=24,
        log_every=1,
        save_dtype="float32",
        model=ModelConfig(lora=LoraConfig(rank=2, dropout=0.1, targets=("decoder", "projector"))),
        data=DataConfig(heldout=2),
        mesh=MeshConfig(data=1, fsdp=2, tensor=4),
        optim=OptimConfig(warmup_steps=1),
    )
    run = sft(config)
    losses = [row["loss"] for row in rows_of(run)]
    assert losses[-1] != losses[0]
    policy, base = load_pretrained(BASE)
    adapter = load_adapter(run / "adapter", policy)
    assert "visual" in adapter.params
    trained = load_pretrained(run / "policy")[1]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), trained, base)
    assert moved["visual"]["merger"]["mlp"]["0"]["weight"]
    assert not any(jax.tree.leaves(moved["visual"]["blocks"]))


# ---- bad input


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": -1}, "model.lora.rank=-1 must be at least 0"),
        ({"alpha": 8.0}, "model.lora.alpha=8.0 has no effect with model.lora.rank=0"),
        ({"targets": ("q_proj",)}, "has no effect with model.lora.rank=0"),
        ({"rank": 4, "dropout": 1.0}, "model.lora.dropout=1.0 must be at least 0 and below 1"),
        ({"rank": 4, "alpha": 0.0}, "model.lora.alpha=0.0 must be above 0"),
        ({"rank": 4, "start": "x"}, "model.lora.rank=4 has no effect with model.lora.start='x'"),
    ],
)
def test_settings_that_mean_nothing(lora, said):
    with pytest.raises(UserError) as error:
        LoraConfig(**lora)
    assert said in str(error.value)


def test_what_adapters_exclude():
    lora = LoraConfig(rank=4)
    with pytest.raises(UserError, match="model.train=.* has no effect with model.lora"):
        ModelConfig(lora=lora, train=("projector",))
    with pytest.raises(UserError, match="train_vision=True has no effect with model.lora"):
        TrainConfig(model=ModelConfig(lora=lora, train_vision=True))
    with pytest.raises(UserError, match="weights of noise"):
        SFTConfig(model=ModelConfig(path="scratch", lora=lora))


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 4, "targets": ("q_porj",)}, "did you mean q_proj?"),
        ({"rank": 10**6}, "model.lora.rank=1000000 is above the width of"),
        ({"start": "nowhere"}, "model.lora.start 'nowhere' is no adapter"),
    ],
)
def test_a_run_that_cannot_begin_says_why_and_leaves_nothing(lora, said, tmp_path):
    with pytest.raises(UserError) as error:
        train(settings(tmp_path, model=ModelConfig(lora=LoraConfig(**lora))))
    assert said in str(error.value)
    assert not list(tmp_path.glob("*/config.json"))


def test_an_adapter_on_top_of_an_adapter(run, tmp_path):
    model = dataclasses.replace(LORA, path=str(run / "adapter"))
    with pytest.raises(UserError, match="is an adapter itself.*--model.lora.start"):
        train(settings(tmp_path, model=model))
