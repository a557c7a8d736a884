"""Nonsense in config.json is refused by its name, in both families."""

import dataclasses
import json
import shutil

import pytest
import tiny
import tiny_hf
import tiny_llava

from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.families import load_config
from balcap_jax.models.json_files import DEPTH, read_json
from balcap_jax.models.llava.config import LlavaConfig
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig

NAN = float("nan")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tiny_hf.write_processor(folder / "qwen")
    tiny_llava.write_processor(folder / "llava")
    return folder


@pytest.fixture(params=["qwen", "llava"])
def folder(request, whole, tmp_path):
    return shutil.copytree(whole / request.param, tmp_path / request.param)


def edit(folder, name, value, file="config.json"):
    """Sets one entry, `section.name` or a name of the top level."""
    path = folder / file
    config = json.loads(path.read_text())
    *sections, name = name.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[name] = value
    path.write_text(json.dumps(config))


def refusal(call, folder):
    with pytest.raises(UserError) as error:
        call(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_config.rms_norm_eps", -1),
        ("text_config.rms_norm_eps", 0),
        ("text_config.rms_norm_eps", NAN),
        ("text_config.rms_norm_eps", "1e-6"),
        ("text_config.rope_parameters.rope_theta", -5),
        ("text_config.rope_parameters.rope_theta", NAN),
        ("text_config.rope_parameters.rope_theta", float("inf")),
        ("text_config.rope_parameters.rope_theta", 10**400),
        ("text_config.rope_parameters", [1]),
        ("text_config.hidden_size", 32.0),
        ("text_config.hidden_size", -32),
        ("text_config.hidden_size", 2**40),
        ("text_config.num_attention_heads", False),
        ("text_config.num_key_value_heads", 2.0),
        ("text_config.num_key_value_heads", 0),
        ("text_config.num_hidden_layers", 10**9),
        ("text_config.vocab_size", 48.5),
        ("text_config.max_position_embeddings", -1),
        ("text_config.tie_word_embeddings", "false"),
        ("text_config.initializer_range", NAN),
        ("text_config.eos_token_id", True),
        ("text_config.eos_token_id", 2.0),
        ("text_config.eos_token_id", ["2"]),
        ("tie_word_embeddings", "false"),
        ("tie_word_embeddings", 1),
        ("vision_config.patch_size", 0),
        ("vision_config.patch_size", 4.0),
        ("vision_config.hidden_size", True),
        ("vision_config.intermediate_size", None),
    ],
)
def test_types_and_ranges_of_both_families(folder, name, value):
    edit(folder, name, value)
    message = refusal(load_config, folder)
    assert name.split(".")[-1] in message
    assert "in config.json but must be" in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_config.hidden_act", "tanh", "hidden_act is 'tanh'"),
        ("vision_config.hidden_act", "sin", "hidden_act is 'sin'"),
        ("text_config.num_attention_heads", 3, "must be a positive multiple of"),
        ("text_config.vocab_size", 2, "must be within the vocabulary of 2"),
        ("text_config.pad_token_id", -1, "must be within the vocabulary"),
        ("text_config.eos_token_id", 4800, "must be within the vocabulary"),
    ],
)
def test_entries_that_do_not_fit_each_other(folder, name, value, message):
    if "token_id" in name:  # else the first of the two files is read
        (folder / "generation_config.json").unlink(missing_ok=True)
    edit(folder, name, value)
    assert message in refusal(load_config, folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text_config.rope_parameters.mrope_section", [-2, 3, 3], "mrope_section is"),
        ("text_config.rope_parameters.mrope_section", [1, 1, 1], "must sum to half"),
        ("text_config.rope_parameters.mrope_section", [2, 2], "mrope_section is"),
        ("text_config.rope_parameters.mrope_section", [2.0, 1, 1], "mrope_section is"),
        ("vision_config.fullatt_block_indexes", [7], "must be different blocks"),
        ("vision_config.fullatt_block_indexes", [-1], "fullatt_block_indexes is"),
        ("vision_config.fullatt_block_indexes", [1, 1], "must be different blocks"),
        ("vision_config.fullatt_block_indexes", 1, "fullatt_block_indexes is"),
        ("vision_config.spatial_merge_size", 0, "spatial_merge_size is 0"),
        ("vision_config.tokens_per_second", -2, "tokens_per_second is -2"),
        ("vision_config.rope_parameters", {"rope_theta": 0}, "rope_theta is 0"),
        ("image_token_id", 4.0, "image_token_id is 4.0"),
        ("image_token_id", True, "image_token_id is True"),
        ("video_token_id", -3, "video_token_id is -3"),
        ("image_token_id", tiny.STOP, "cannot both stand for images and end a caption"),
    ],
)
def test_entries_of_qwen(whole, tmp_path, name, value, message):
    folder = shutil.copytree(whole / "qwen", tmp_path / "qwen")
    edit(folder, name, value)
    assert message in refusal(load_config, folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vision_config.layer_norm_eps", -1e-5, "layer_norm_eps is -1e-05"),
        ("vision_config.image_size", 7, "image_size is 7 but must be a positive multiple"),
        ("vision_feature_layer", 99, "vision_feature_layer 99 must name"),
        ("vision_feature_layer", [], "vision_feature_layer is []"),
        ("vision_feature_layer", True, "vision_feature_layer is True"),
        ("multimodal_projector_bias", "false", "multimodal_projector_bias is 'false'"),
        ("projector_hidden_act", "unknown", "projector_hidden_act is 'unknown'"),
        ("text_config.head_dim", 7, "head size is 7"),
        ("text_config.bos_token_id", 480, "bos_token_id 480 must be within"),
        (
            "text_config.rope_parameters",
            {"rope_type": "linear", "factor": -8.0},
            "factor is -8.0",
        ),
        (
            "text_config.rope_parameters",
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0},
            "must be below high_freq_factor",
        ),
        (
            "text_config.rope_parameters",
            {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 32.0},
            "must be below beta_fast",
        ),
    ],
)  # fmt: skip
def test_entries_of_llava(whole, tmp_path, name, value, message):
    folder = shutil.copytree(whole / "llava", tmp_path / "llava")
    edit(folder, name, value)
    assert message in refusal(load_config, folder)


@pytest.mark.parametrize("value", [True, 2.0, "2", [2, None], 2**40, {"a": 1}])
def test_stop_tokens_of_the_generation_config(folder, value):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert "in generation_config.json but must be" in refusal(load_config, folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_std", [0, 0, 0]),
        ("image_std", [0.5, 0.5, float("nan")]),
        ("image_std", [0.5, 0.5]),
        ("image_mean", ["a", 0.5, 0.5]),
        ("image_mean", [1e30, 0, 0]),
        ("rescale_factor", -1),
        ("do_normalize", "false"),
        ("resample", 17),
        ("size", {"shortest_edge": 10**9, "longest_edge": 10**9}),
        ("size", {"shortest_edge": 0, "longest_edge": -4}),
        ("size", 0),
    ],
)
def test_entries_of_the_image_processor(folder, name, value):
    edit(folder, name, value, "preprocessor_config.json")
    assert "no usable preprocessor_config.json" in refusal(Processor.load, folder)


# ---- JSON itself


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than"),
        ('{"a":' * 900 + "1" + "}" * 900, "nested deeper than"),
        ('{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1), "nested deeper than"),
        ('{"a": 1, "b": 2, "a": 3}', 'it has "a" twice'),
        ('{"b": {"a": 1, "a": 1}}', 'it has "a" twice'),
        ('{"a": ' + "9" * 5000 + "}", "must be a JSON file"),
        ("\ufeff{}", "must be a JSON file"),
    ],
    ids=["lists", "900 deep", "a level too deep", "twice", "twice within", "digits", "mark"],
)
def test_hostile_json_is_a_sentence(folder, text, message):
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        sentence = refusal(Processor.load, folder)
        assert message in sentence
        assert name in sentence
        (folder / name).write_text(before)
    assert Processor.load(folder)


def test_json_as_deep_as_allowed_and_a_huge_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text('{"a":' * (DEPTH - 1) + "{}" + "}" * (DEPTH - 1))
    assert read_json(path)
    monkeypatch.setattr("balcap_jax.models.json_files.BYTES", 8)
    assert "larger than" in refusal(read_json, path)


# ---- what is published still loads


def test_the_published_config_is_no_part_of_a_policy():
    """Policies with equal sizes share their compiled programs."""
    for kind, config in ((Qwen2_5_VLConfig, tiny.CONFIG), (LlavaConfig, tiny_llava.CONFIG)):
        read = kind.from_hf(config.to_hf() | {"note": 1}, config.to_hf_generation())
        assert read == config
        assert hash(read) == hash(config)
        assert read.to_hf()["note"] == 1
        other = dataclasses.replace(read, initializer_range=0.5)
        assert other.to_hf()["note"] == 1
        assert kind.from_hf(other.to_hf(), config.to_hf_generation()) == other
