"""What a folder says about its weights is obeyed or refused; nothing outside of it is read."""

import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest
import tiny
import tiny_llava
from safetensors.numpy import load_file, save_file

from balcap_jax.errors import UserError
from balcap_jax.models.families import load_config
from balcap_jax.models.hf.weight_files import Stored, check_finite
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.parallel.sharding import make_mesh


@pytest.fixture(params=["qwen", "llava"])
def folder(request, tmp_path):
    make = {"qwen": tiny.policy, "llava": tiny_llava.policy}[request.param]
    save_pretrained(tmp_path / "policy", *make())
    return tmp_path / "policy"


def refusal(folder, call=load_pretrained):
    with pytest.raises(UserError) as error:
        call(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# ---- quantised, adapters, other layouts


@pytest.mark.parametrize(
    "entries",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"load_in_8bit": True}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
)
@pytest.mark.parametrize("section", [None, "text_config", "vision_config"])
def test_quantised_weights(folder, entries, section):
    config = json.loads((folder / "config.json").read_text())
    edit(folder, **(entries if section is None else {section: config[section] | entries}))
    assert "holds quantised weights" in refusal(folder, load_config)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_quantised_weights_by_a_file_beside(folder, name):
    (folder / name).write_text("{}")
    assert f"quantised weights by its {name}" in refusal(folder, load_config)


def test_no_quantisation_is_none(folder):
    edit(folder, quantization_config=None)
    load_pretrained(folder)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn, np.int32])
def test_numbers_that_are_no_weights(folder, dtype):
    def change(tensors):
        name = next(key for key in tensors if key.endswith("layers.1.mlp.up_proj.weight"))
        tensors[name] = np.ones(tensors[name].shape, dtype)

    rewrite(folder, change)
    assert "which is quantised or no weight" in refusal(folder)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_beside_the_base_or_alone(folder, name):
    (folder / name).write_text("{}")
    assert f"holds an adapter ({name})" in refusal(folder)
    (folder / "config.json").unlink()
    said = "has peft_type None" if name == "adapter_config.json" else f"holds an adapter ({name})"
    assert said in refusal(folder, load_config)


@pytest.mark.parametrize("kind", ["llava_llama", "llava_mistral", "llava"])
def test_folders_of_the_original_llava(folder, kind):
    edit(folder, model_type=kind, mm_vision_tower="openai/clip-vit-large-patch14-336")
    assert "take the llava-hf folder" in refusal(folder, load_config)
    edit(folder, model_type=kind, mm_vision_tower=None)
    (folder / "mm_projector.bin").write_bytes(b"")
    assert "take the llava-hf folder" in refusal(folder, load_config)


def test_other_llavas_are_other_models(folder):
    edit(folder, model_type="llava_next")
    assert "model_type 'llava_next' is not supported" in refusal(folder, load_config)


def test_a_tied_model_with_a_head_of_its_own(tmp_path):
    policy, params = tiny_llava.policy(config=tiny_llava.config(tie_word_embeddings=False))
    save_pretrained(tmp_path / "policy", policy, params)
    for name in ("config", "text_config"):
        config = policy.config.to_hf()
        (config if name == "config" else config[name])["tie_word_embeddings"] = True
        (tmp_path / "policy" / "config.json").write_text(json.dumps(config))
        message = refusal(tmp_path / "policy")
        assert "tie_word_embeddings true" in message
        assert "set tie_word_embeddings to false" in message


# ---- weights that are no numbers


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("at", [0, 7, -1])
def test_check_finite_finds_each(value, dtype, at, tmp_path):
    numbers = np.full((3, 5), 3.0e4, dtype)
    numbers.reshape(-1)[1:3] = -6.0e4, 1e-7
    stored = Stored(tmp_path, "some.weight", (3, 5), "F32", 0)
    check_finite(numbers, stored)
    numbers.reshape(-1)[at] = value
    with pytest.raises(UserError, match="a NaN or an infinity in some.weight"):
        check_finite(numbers, stored)


def test_check_finite_over_many_blocks(tmp_path):
    numbers = np.ones(3_000_001, np.float32)
    stored = Stored(tmp_path, "some.weight", numbers.shape, "F32", 0)
    check_finite(numbers, stored)
    numbers[-1] = np.nan
    with pytest.raises(UserError, match="some.weight"):
        check_finite(numbers, stored)


@pytest.mark.parametrize("mesh", [None, (1, 4, 2)], ids=["one device", "eight"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_nan_anywhere_in_the_weights(folder, mesh, dtype):
    def change(tensors):
        name = next(key for key in tensors if key.endswith("layers.1.self_attn.o_proj.weight"))
        tensors[name] = tensors[name].copy()
        tensors[name][-1, -1] = np.nan

    rewrite(folder, change)
    axes = None if mesh is None else make_mesh(data=mesh[0], fsdp=mesh[1], tensor=mesh[2])
    message = refusal(folder, lambda path: load_pretrained(path, dtype=dtype, mesh=axes))
    assert "layers.1.self_attn.o_proj.weight" in message


def test_an_overflow_on_the_way_to_bfloat16(folder):
    def change(tensors):
        name = next(key for key in tensors if key.endswith("layers.0.mlp.up_proj.weight"))
        tensors[name] = np.full(tensors[name].shape, np.finfo(np.float32).max)

    rewrite(folder, change)
    load_pretrained(folder)
    assert "infinity" in refusal(folder, lambda path: load_pretrained(path, dtype="bfloat16"))


# ---- which files


def shard(folder, name="b.safetensors"):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({key: tensors[key] for key in names[::2]}, folder / "a.safetensors")
    save_file({key: tensors[key] for key in names[1::2]}, folder / "b.safetensors")
    index = {key: ("a.safetensors", name)[i % 2] for i, key in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize(
    "name",
    ["../b.safetensors", "x/../../b.safetensors", "/b.safetensors", "b.bin", "", None, 3, ["b"],
     "..\\b.safetensors", "C:b.safetensors", "b\x00.safetensors", "b\n.safetensors"],
)  # fmt: skip
def test_an_index_names_files_of_its_folder_only(folder, name):
    shard(folder, name)
    shutil.copy(folder / "b.safetensors", folder.parent / "b.safetensors")
    assert "a shard must be a .safetensors file in its folder" in refusal(folder)


@pytest.mark.parametrize("value", [None, [], "a", 3, [["a", "b"]]])
def test_a_weight_map_of_another_type(folder, value):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
    assert "has as weight_map" in refusal(folder)


def test_a_shard_that_is_a_link_out_of_the_folder(folder):
    shard(folder)
    outside = folder.parent / "outside.safetensors"
    (folder / "b.safetensors").rename(outside)
    (folder / "b.safetensors").symlink_to(outside)
    assert "a link out of the folder" in refusal(folder)


def test_shards_in_a_folder_and_links_within(folder):
    _, params = load_pretrained(folder)
    shard(folder, "more/b.safetensors")
    (folder / "more").mkdir()
    (folder / "more" / "b.safetensors").symlink_to(folder / "b.safetensors")
    tiny.assert_equal_trees(load_pretrained(folder)[1], params)


@pytest.mark.parametrize("shared", [False, True])
def test_a_snapshot_of_the_hub_is_links_to_blobs(folder, tmp_path, shared):
    _, params = load_pretrained(folder)
    shard(folder)
    repository = tmp_path / "hub" / "models--tiny--captioner"
    snapshot = repository / "snapshots" / "0123"
    blobs = (repository.parent if shared else repository) / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(folder.iterdir()):
        path.rename(blobs / str(i))
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / str(i), snapshot))
    tiny.assert_equal_trees(load_pretrained(snapshot)[1], params)


def test_the_single_file_counts_before_shards(folder):
    """As transformers chooses; the shards are older ones."""
    whole = (folder / "model.safetensors").read_bytes()
    _, params = load_pretrained(folder)
    rewrite(folder, lambda tensors: tensors.update({k: v + 1 for k, v in tensors.items()}))
    shard(folder)
    (folder / "model.safetensors").write_bytes(whole)
    tiny.assert_equal_trees(load_pretrained(folder)[1], params)


@pytest.mark.torch
def test_the_single_file_is_the_choice_of_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="the test extra has torch")
    from transformers import LlavaForConditionalGeneration

    folder = tmp_path / "policy"
    save_pretrained(folder, *tiny_llava.policy())
    test_the_single_file_counts_before_shards(folder)
    _, params = load_pretrained(folder)
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    theirs = model.get_input_embeddings().weight.detach()
    ours = params["language_model"]["embed_tokens"]["embedding"]
    assert torch.equal(theirs, torch.tensor(np.asarray(ours)))
