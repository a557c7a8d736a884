"""A written policy has all that its source had: entries and files that are not read here too."""

import json
import shutil

import pytest
import tiny
import tiny_hf
import tiny_llava

from balcap_jax.models.hf.weights import load_pretrained, save_pretrained

KEPT = {
    "LICENSE": "a licence",
    "LICENSE-2.0": "another",
    "NOTICE.txt": "a notice",
    "README.md": "a model card",
    "tokenizer.model": "sentencepiece",
    "vocab.json": '{"a": 1}',
    "merges.txt": "a b",
    "special_tokens_map.json": '{"eos_token": "<stop>"}',
    "video_preprocessor_config.json": '{"size": 1}',
    "additional_chat_templates/tool_use.jinja": "{{ messages }}",
    "some_settings.json": '{"mine": [1, 2]}',
}
LEFT = {
    "modeling_mine.py": "raise SystemExit",
    "run.sh": "#!/bin/sh",
    "setup.txt": "#!/bin/sh\nrm -rf /",
    "pytorch_model.bin": "weights",
    "model-00001-of-00002.safetensors": "weights",
    "tf_model.h5": "weights",
    "flax_model.msgpack": "weights",
    "consolidated.pth": "weights",
    "model.gguf": "weights",
    "tokenizer.pkl": "a pickle",
    "pytorch_model.bin.index.json": "{}",
    ".hidden.json": "{}",
    "additional_chat_templates/run.py": "raise SystemExit",
}


@pytest.fixture(params=["qwen", "llava"])
def source(request, tmp_path):
    """A folder as published: more than is read here, some of it as links."""
    folder = tmp_path / "source"
    if request.param == "qwen":
        tiny_hf.write_processor(folder)
        save_pretrained(folder, *tiny.policy())
    else:
        tiny_llava.write_processor(folder)
        save_pretrained(folder, *tiny_llava.policy())
    (folder / "additional_chat_templates").mkdir()
    for name, text in (KEPT | LEFT).items():
        (folder / name).write_text(text)
    return folder


def edit(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_beside_go_along_and_code_and_weights_do_not(source, tmp_path):
    policy, params = load_pretrained(source)
    out = tmp_path / "out"
    save_pretrained(out, policy, params, source=source)
    assert files(out) == files(source) - set(LEFT)
    for name in files(out) - {"config.json", "model.safetensors"}:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    again = tmp_path / "again"  # over an earlier policy too
    shutil.copytree(out, again)
    save_pretrained(again, policy, params, source=source)
    assert files(again) == files(out)
    tiny.assert_equal_trees(load_pretrained(again)[1], params)


def test_links_become_files_and_those_out_of_the_folder_stay_behind(source, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (source / "linked.txt").symlink_to("merges.txt")
    for name in ("README.txt", "additional_chat_templates/b.jinja"):
        (source / name).symlink_to(secret)
    (source / "circle.txt").symlink_to(source / "circle.txt")
    out = tmp_path / "out"
    save_pretrained(out, *load_pretrained(source), source=source)
    assert (out / "linked.txt").read_text() == "a b"
    assert not (out / "linked.txt").is_symlink()
    assert "README.txt" not in files(out)
    assert not any(path.read_bytes() == b"secret" for path in out.rglob("*") if path.is_file())


def test_entries_of_the_config_that_are_not_read(source, tmp_path):
    """The published config with another dtype, and nothing else but what names code."""

    def change(config):
        config["vision_config"]["tokens_per_second"] = 2
        config["text_config"] |= {"bos_token_id": 1, "attention_dropout": 0.5, "torch_dtype": "x"}
        config["text_config"]["use_cache"] = False
        config |= {"torch_dtype": "float16", "transformers_version": "4.41", "mine": {"a": [None]}}
        config["auto_map"] = {"AutoConfig": "modeling_mine.Config"}
        config.pop("dtype")

    edit(source, "config.json", change)
    expected = json.loads((source / "config.json").read_text())
    out = tmp_path / "out"
    save_pretrained(out, *load_pretrained(source), dtype="bfloat16", source=source)
    del expected["auto_map"], expected["torch_dtype"], expected["text_config"]["torch_dtype"]
    expected["text_config"]["dtype"] = expected["dtype"] = "bfloat16"
    assert json.loads((out / "config.json").read_text()) == expected
    # Without a source the entries go along all the same.
    save_pretrained(tmp_path / "alone", *load_pretrained(source), dtype="bfloat16")
    assert json.loads((tmp_path / "alone" / "config.json").read_text()) == expected


def test_names_of_code_in_other_files(source, tmp_path):
    entry = {"AutoTokenizer": ["mine.A", None]}
    edit(source, "tokenizer_config.json", lambda content: content.update(auto_map=entry))
    edit(source, "preprocessor_config.json", lambda content: content.update(auto_map=entry))
    out = tmp_path / "out"
    save_pretrained(out, *load_pretrained(source), source=source)
    for name in ("tokenizer_config.json", "preprocessor_config.json"):
        content = json.loads((source / name).read_text())
        assert json.loads((out / name).read_text()) == {
            key: value for key, value in content.items() if key != "auto_map"
        }


def test_other_entries_of_generation_go_along(source, tmp_path):
    entries = {"temperature": 0.1, "top_k": 1, "transformers_version": "4.41"}
    edit(source, "generation_config.json", lambda content: content.update(entries))
    out = tmp_path / "out"
    save_pretrained(out, *load_pretrained(source), source=source)
    name = "generation_config.json"
    assert (out / name).read_bytes() == (source / name).read_bytes()


def test_a_flat_config_stays_flat_and_changes_only_where_the_policy_does(tmp_path):
    policy, params = tiny.policy()
    save_pretrained(tmp_path / "a", policy, params)
    nested = json.loads((tmp_path / "a" / "config.json").read_text())
    text = nested.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {**text, **nested, "rope_theta": rope["rope_theta"], "attention_dropout": 0.25}
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    flat["vision_config"]["tokens_per_second"] = 2
    (tmp_path / "a" / "config.json").write_text(json.dumps(flat))
    policy, params = load_pretrained(tmp_path / "a")
    save_pretrained(tmp_path / "b", policy, params)
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == flat
    # A head of its own is another model: its entries change, the rest stays.
    untied = tiny.replaced(policy.config, None, None, tie_word_embeddings=False)
    other, params = tiny.policy(config=untied)
    save_pretrained(tmp_path / "c", other, params)
    written = json.loads((tmp_path / "c" / "config.json").read_text())
    assert written["tie_word_embeddings"] is False
    assert written["vision_config"]["tokens_per_second"] == 2
    assert written["text_config"]["attention_dropout"] == 0.25
    assert load_pretrained(tmp_path / "c")[0].config == untied
