"""Hugging Face folders in and out, strict both ways."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hf
from safetensors.numpy import load_file, save_file

from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import Stored, load_pretrained, save_pretrained
from balcap_jax.parallel.sharding import make_mesh

UNTIED = tiny.config(tie_word_embeddings=False)


@pytest.fixture
def folder(tmp_path):
    """A folder with the tiny policy, tokenizer and processor."""
    tiny_hf.write_processor(tmp_path / "source")
    policy, params = tiny.policy()
    save_pretrained(tmp_path / "policy", policy, params, source=tmp_path / "source")
    return tmp_path / "policy"


def rewrite(folder, change):
    """Stores the tensors again after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# ---- round trips


@pytest.mark.parametrize("config", [tiny.CONFIG, UNTIED], ids=["tied", "untied"])
def test_round_trip_is_exact(config, tmp_path):
    policy, params = tiny.policy(config=config)
    save_pretrained(tmp_path / "policy", policy, params)
    loaded_policy, loaded = load_pretrained(tmp_path / "policy")
    assert loaded_policy == policy
    tiny.assert_equal_trees(loaded, params)


def test_companions_go_along_and_nothing_is_left_beside(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= names
    assert {path.name for path in folder.parent.iterdir()} == {"source", "policy"}


def test_dtype_of_stored_and_loaded_weights(tmp_path):
    policy, params = tiny.policy()
    save_pretrained(tmp_path / "policy", policy, params, dtype="bfloat16")
    assert json.loads((tmp_path / "policy/config.json").read_text())["dtype"] == "bfloat16"
    loaded_policy, loaded = load_pretrained(tmp_path / "policy", dtype="bfloat16")
    assert loaded_policy.dtype == jnp.bfloat16
    tiny.assert_equal_trees(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    _, wide = load_pretrained(tmp_path / "policy")
    tiny.assert_equal_trees(
        wide, jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    )


def test_saving_again_replaces_the_earlier_policy(folder):
    policy, params = tiny.policy(seed=5)
    save_pretrained(folder, policy, params)
    tiny.assert_equal_trees(load_pretrained(folder)[1], params)


def test_sharded_and_module_named_keys_load(folder):
    _, params = load_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    renamed = {
        (
            f"model.{key}"
            if key.startswith("visual.")
            else key.replace("model.", "model.language_model.", 1)
        ): value
        for key, value in tensors.items()
    }
    names = list(renamed)
    shards = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for shard, keys in shards.items():
        save_file({key: renamed[key] for key in keys}, folder / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tiny.assert_equal_trees(load_pretrained(folder)[1], params)

    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        load_pretrained(folder)


def test_tied_head_stored_twice_is_accepted_only_if_equal(folder):
    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    def change_head(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1

    _, params = load_pretrained(folder)
    rewrite(folder, add_head)
    tiny.assert_equal_trees(load_pretrained(folder)[1], params)
    rewrite(folder, change_head)
    with pytest.raises(UserError, match="unexpected: lm_head.weight"):
        load_pretrained(folder)


def test_published_flat_config_loads_as_the_nested_one(folder):
    policy, _ = load_pretrained(folder)
    nested = json.loads((folder / "config.json").read_text())
    text = nested.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {**text, **nested, "rope_theta": rope["rope_theta"]}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(flat))
    assert load_pretrained(folder)[0] == policy


# ---- refusals


def test_missing_unexpected_and_misshapen_are_all_named(folder):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = np.zeros(3, np.float32)
        tensors["visual.blocks.1.norm1.weight"] = np.zeros(7, np.float32)

    rewrite(folder, spoil)
    with pytest.raises(UserError) as error:
        load_pretrained(folder)
    for part in (
        "1 missing: model.norm.weight (32,)",
        "1 unexpected: model.extra.weight (3,)",
        "visual.blocks.1.norm1.weight (7,), not (16,)",
    ):
        assert part in str(error.value)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "must be a JSON file"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: edit_config(f, model_type="opt"), "'opt' is not supported"),
        (lambda f: edit_config(f, vision_config={"depth": 1}), "config.json lacks 'hidden_size'"),
        (lambda f: edit_config(f, image_token_id=99), "within the vocabulary of 48"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (truncate, "is not a whole safetensors file"),
        (only_pickle, "a pickle"),
    ],
)
def test_damaged_folder_gives_one_sentence(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)


def test_settings_that_change_the_function_are_refused(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    for change in ({"use_sliding_window": True}, {"hidden_act": "gelu"}):
        edit_config(folder, text_config=text | change)
        with pytest.raises(UserError, match=next(iter(change))):
            load_pretrained(folder)
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
    edit_config(folder, text_config=text | {"rope_parameters": rope})
    with pytest.raises(UserError, match="yarn"):
        load_pretrained(folder)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_pretrained(tmp_path / "absent")


def test_a_failed_save_leaves_the_earlier_policy_whole(folder, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    policy, params = tiny.policy(seed=5)
    monkeypatch.setattr("balcap_jax.models.hf.weights.write_tensors", no_space)
    with pytest.raises(UserError, match="No space left on device"):
        save_pretrained(folder, policy, params)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in folder.parent.iterdir()} == {"source", "policy"}


def test_a_sharded_folder_is_not_overwritten(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    policy, params = tiny.policy()
    with pytest.raises(UserError, match="sharded"):
        save_pretrained(folder, policy, params)


# ---- transformers


@pytest.mark.torch
@pytest.mark.parametrize("config", [tiny.CONFIG, UNTIED], ids=["tied", "untied"])
def test_to_transformers_and_back(config, tmp_path):
    """From transformers to us and back again: bit-equal, and no key missing or unexpected."""
    torch = pytest.importorskip("torch", reason="the test extra has torch")
    hf = tiny_hf.model(config)
    hf.save_pretrained(tmp_path / "theirs")
    policy, params = load_pretrained(tmp_path / "theirs")
    assert policy.config.text == config.text
    assert policy.config.vision == config.vision
    save_pretrained(tmp_path / "ours", policy, params)
    again, report = type(hf).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in report), report
    theirs, ours = hf.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    for key in theirs:
        assert torch.equal(theirs[key], ours[key]), key


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_device_reads_its_part(dtype, tmp_path, monkeypatch):
    """Equal to loading on one device, and no tensor is read whole where it is cut."""
    config = tiny.config(tie_word_embeddings=False)
    save_pretrained(tmp_path / "policy", *tiny.policy(config=config), dtype="float32")
    _, whole = load_pretrained(tmp_path / "policy", dtype=dtype)
    read = []

    def recorded(self, index=()):
        out = original(self, index)
        read.append((self.key, out.size / math.prod(self.shape)))
        return out

    original = Stored.read
    monkeypatch.setattr(Stored, "read", recorded)
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    _, params = load_pretrained(tmp_path / "policy", dtype=dtype, mesh=mesh)
    tiny.assert_equal_trees(params, whole)
    shares = [share for key, share in read if key.endswith("q_proj.weight")]
    assert set(shares) == {1 / 8}
