"""`balcap bench load` and the folders of random weights that it can make."""

import json

import jax
import jax.numpy as jnp
import pytest
import tiny
import tiny_llava
from safetensors import safe_open

from balcap_jax.bench import load
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.plan.workloads import random_folder


@pytest.mark.parametrize("module", [tiny, tiny_llava], ids=["qwen2_5_vl", "llava"])
def test_a_random_folder_is_a_policy_in_shards(module, tmp_path):
    folder = tmp_path / "random"
    total = random_folder.write_random_folder(folder, module.CONFIG, shard_bytes=20_000)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            assert len(list(file.keys())) == 1 or shard.stat().st_size < 20_000 + 10_000
    policy, params = load_pretrained(folder, dtype="bfloat16")
    leaves = jax.tree.leaves(params)
    assert policy.config.text == module.CONFIG.text
    assert sum(leaf.nbytes for leaf in leaves) == total
    embedding = params["language_model"]["embed_tokens"]["embedding"].astype(jnp.float32)
    assert 0.015 < float(embedding.std()) < 0.025
    with pytest.raises(UserError, match="already exists"):
        random_folder.write_random_folder(folder, module.CONFIG)


def test_the_shape_of_the_real_one():
    shapes = random_folder.stored_shapes(
        random_folder.make_policy(random_folder.config_of("qwen2.5-vl-3b"))
    )
    sizes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16).size for shape in shapes.values()]
    assert sum(sizes) == 3_754_622_976


def test_sides_take_turns(monkeypatch):
    monkeypatch.setattr(load, "_in_process", lambda side, folder: side)
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: True)
    ours, theirs = load.SIDES
    assert load.run("x", rounds=3) == [ours, theirs, theirs, ours, ours, theirs]
    monkeypatch.setattr(load.importlib.util, "find_spec", lambda name: None)
    assert load.run("x", rounds=2) == [ours, ours]
    with pytest.raises(UserError, match="rounds=0"):
        load.run("x", rounds=0)


def test_a_load_in_its_own_process(tmp_path, monkeypatch, capsys):
    total = random_folder.write_random_folder(tmp_path / "random", tiny.CONFIG)
    monkeypatch.setattr(load, "SIDES", ("balcap",))
    load.run_and_print(tmp_path / "random", json=True, rounds=1)
    [row] = json.loads(capsys.readouterr().out)["results"]
    assert row["side"] == "balcap"
    assert row["parameter_bytes"] == total
    assert row["seconds"] > 0
    assert row["peak_bytes"] >= row["before_bytes"] > 10_000_000
    assert row["over_bytes"] == row["peak_bytes"] - total


def test_a_folder_that_does_not_load_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="balcap cannot load .*is not a folder") as error:
        load.run(tmp_path / "absent", rounds=1)
    assert "\n" not in str(error.value)
