"""Damaged folders of both families: one sentence each, whatever is wrong with them."""

import json
import shutil

import pytest
import tiny
import tiny_hf
import tiny_llava
from safetensors.numpy import load_file, save_file

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.families import load_config
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained

FAMILIES = {
    "llava": (tiny_llava.policy, tiny_llava.write_processor),
    "qwen2_5_vl": (tiny.policy, tiny_hf.write_processor),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One good folder of each family."""
    folder = tmp_path_factory.mktemp("whole")
    for family, (make, write_processor) in FAMILIES.items():
        write_processor(folder / family)
        save_pretrained(folder / family, *make())
    return folder


@pytest.fixture(params=FAMILIES)
def folder(request, whole, tmp_path):
    return shutil.copytree(whole / request.param, tmp_path / "policy")


def refusal(call, folder):
    with pytest.raises(UserError) as error:
        call(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def shard(folder):
    """The weights in two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, folder / name)
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_shard(folder):
    shard(folder)
    (folder / "b.safetensors").unlink()


def truncated_shard(folder):
    shard(folder)
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def wrong_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("layers.1.self_attn.q_proj.weight"))
    tensors[name] = tensors[name][:-1]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing_shard, "names 2 files of which ['b.safetensors'] are missing"),
        (truncated_shard, "b.safetensors is not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a whole safetensors file"),
        # What a clone without Git LFS leaves in place of the weights.
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com"),
            "is not a whole safetensors file",
        ),
        (wrong_shape, "q_proj.weight (31, 32), not (32, 32)"),
    ],
)
def test_damaged_weights(folder, spoil, message):
    spoil(folder)
    assert message in refusal(load_pretrained, folder)


def edit(folder, name, value):
    """Sets one entry of config.json, `section.name` or a name of the top level."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    *section, name = name.split(".")
    (config[section[0]] if section else config)[name] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_type", "opt", "model_type 'opt' is not supported"),
        ("model_type", ["llava"], "is not supported"),
        ("text_config", "text", "text_config is 'text'"),
        ("text_config.hidden_size", None, "text_config.hidden_size is None"),
        ("text_config.hidden_size", "64", "text_config.hidden_size is '64'"),
        ("text_config.num_hidden_layers", 0, "text_config.num_hidden_layers is 0"),
        ("text_config.num_attention_heads", True, "num_attention_heads is True"),
        ("text_config.rms_norm_eps", None, "text_config.rms_norm_eps is None"),
        ("vision_config", [1], "vision_config is [1]"),
        ("vision_config.hidden_size", "16", "vision_config.hidden_size is '16'"),
    ],
)
def test_bad_entries_of_the_config(folder, name, value, message):
    edit(folder, name, value)
    assert message in refusal(load_config, folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image_token_index", 99, "must be within the vocabulary of 48"),
        ("text_config.model_type", "phi", "text_config.model_type is 'phi'"),
        ("vision_config.model_type", "siglip", "vision_config.model_type is 'siglip'"),
        ("vision_feature_layer", "last", "vision_feature_layer is 'last'"),
        ("text_config.rope_parameters", {"rope_type": "llama3"}, "lacks 'factor'"),
    ],
)
def test_bad_entries_of_a_llava(whole, tmp_path, name, value, message):
    folder = shutil.copytree(whole / "llava", tmp_path / "policy")
    edit(folder, name, value)
    assert message in refusal(load_config, folder)


def test_a_config_without_its_sizes_does_not_fit_the_weights(whole, tmp_path):
    """What a LLaVA's config.json leaves out is as in transformers, so the shapes tell."""
    folder = shutil.copytree(whole / "llava", tmp_path / "policy")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["text_config"]["intermediate_size"]
    path.write_text(json.dumps(config))
    assert "(48, 32), not (11008, 32)" in refusal(load_pretrained, folder)


@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (lambda path: path.unlink(), "tokenizer.json", "has no usable tokenizer.json"),
        (lambda path: path.write_text("{"), "tokenizer.json", "tokenizer.json must be a JSON file"),
        (
            lambda path: path.unlink(),
            "preprocessor_config.json",
            "has no usable preprocessor_config.json",
        ),
        (
            lambda path: path.write_text("{"),
            "preprocessor_config.json",
            "preprocessor_config.json must be a JSON file",
        ),
    ],
)
def test_damaged_processor(folder, spoil, name, message):
    spoil(folder / name)
    assert message in refusal(Processor.load, folder)
