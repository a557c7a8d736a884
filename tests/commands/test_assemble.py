"""`balcap assemble`: what it writes is what transformers computes with the same parts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hf
import tiny_parts

import balcap_jax
from balcap_jax.commands.assemble import assemble, described
from balcap_jax.config.commands import AssembleConfig
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained

torch = pytest.importorskip("torch", reason="the test extra has torch")
pytestmark = pytest.mark.torch

TOWERS = {
    "clip": tiny_parts.write_clip,
    "whole clip": lambda folder: tiny_parts.write_clip(folder, whole=True),
    "dinov2": tiny_parts.write_dinov2,
    "dinov2 with a classifier": lambda folder: tiny_parts.write_dinov2(folder, classifier=True),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of parts, each written once: `parts("tower", "clip")`."""
    folder, written = tmp_path_factory.mktemp("parts"), {}
    makers = {"tower": TOWERS, "decoder": dict.fromkeys(("llama", "mistral", "qwen2"))}

    def part(kind, name):
        if name not in written:
            path = folder / name.replace(" ", "_")
            make = makers[kind][name]
            tied = {"tie_word_embeddings": True} if name == "mistral" else {}
            written[name] = make(path) if make else tiny_parts.write_decoder(path, name, **tied)
        return str(written[name])

    return part


def with_own(parts, **folders):
    """`parts` with some folders in the place of theirs: `with_own(parts, tower=path)`."""
    return lambda kind, name: str(folders[kind]) if kind in folders else parts(kind, name)


def make(parts, tmp_path, tower="clip", decoder="llama", **settings):
    config = AssembleConfig(
        out=tmp_path / "out",
        tower=parts("tower", tower),
        decoder=parts("decoder", decoder),
        **settings,
    )
    return config.out, assemble(config)


def inputs_of(config, count=2, seed=0):
    """Token rows with an image each, as the processor would make them."""
    rng = np.random.default_rng(seed)
    image = [config.image_token_id] * config.image_tokens
    rows = [
        np.concatenate([[1], rng.integers(4, 14, 2), image, rng.integers(4, 14, 3 + i)])
        for i in range(count)
    ]
    tokens, mask = tiny.pad(rows, "right")
    size = config.vision.image_size
    pixels = rng.normal(size=(count, 3, size, size)).astype(np.float32)
    return {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels}


@pytest.mark.parametrize(
    ("tower", "decoder", "settings"),
    [
        ("clip", "llama", {}),
        ("whole clip", "mistral", {"vision_feature_select_strategy": "full"}),
        ("dinov2", "qwen2", {"vision_feature_layer": -1}),
        ("dinov2 with a classifier", "llama", {"vision_feature_select_strategy": "full"}),
    ],
)
def test_logits_are_those_of_transformers_and_parts_are_kept(
    tower, decoder, settings, parts, tmp_path
):
    import transformers

    out, _ = make(parts, tmp_path, tower, decoder, **settings)
    hf, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        out, output_loading_info=True
    )
    assert not any(report[kind] for kind in report), report
    policy, params = load_pretrained(out)
    inputs = inputs_of(policy.config)
    with torch.no_grad():
        theirs = hf(**{k: torch.tensor(v) for k, v in inputs.items()}).logits.numpy()
    ours, mask = np.asarray(policy.logits(params, **inputs)), inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-4 * np.ptp(theirs))
    # The decoder alone computes what it computed before: text without an image.
    alone = transformers.AutoModelForCausalLM.from_pretrained(parts("decoder", decoder))
    words = torch.tensor([[1, 5, 8, 9, 4]])
    with torch.no_grad():
        before = alone(words).logits
        after = hf(input_ids=words).logits[..., : before.shape[-1]]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    # And so does the tower.
    kind = transformers.Dinov2Model if "dinov2" in tower else transformers.CLIPVisionModel
    tower_alone = kind.from_pretrained(parts("tower", tower))
    pixels = torch.tensor(inputs["pixel_values"])
    with torch.no_grad():
        one = tower_alone(pixels, output_hidden_states=True).hidden_states[-2]
        other = hf.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(other, one, rtol=0, atol=1e-6)


def test_greedy_tokens_are_those_of_transformers_with_its_own_processor(parts, tmp_path):
    """Prompt, pixels and 12 tokens; the placeholder, which is never sampled, suppressed there."""
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    out, _ = make(parts, tmp_path, "dinov2", "llama")
    processor = Processor.load(out)
    config = processor.config
    example = tiny_hf.example("a", (13, 9))
    row = processor.row(example)
    # <s> by the decoder's own template; the image before the words; the answer begins.
    words = processor.tokenizer.decode(row.tokens).split()
    assert (
        words == "<s> user : <image> <image> <image> <image> describe the image assistant :".split()
    )
    hf = LlavaForConditionalGeneration.from_pretrained(out)
    tokens = AutoTokenizer.from_pretrained(out)("a <image> red").input_ids
    assert tokens == [10, config.image_token_id, 11]
    pixels = processor.image_processor(images=[example.image], return_tensors="np")["pixel_values"]
    inputs = {"input_ids": row.tokens[None].astype(np.int64), "pixel_values": pixels}
    policy, params = load_pretrained(out)
    ours = balcap_jax.generate(policy, params, inputs, max_new_tokens=12, stop_tokens=())
    hf.generation_config.eos_token_id = None
    theirs = hf.generate(
        **{k: torch.tensor(v) for k, v in inputs.items()},
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[config.image_token_id],
    )
    np.testing.assert_array_equal(ours, theirs[:, inputs["input_ids"].shape[1] :].numpy())
    assert len(set(ours.flatten())) > 2


@pytest.mark.parametrize(("tower", "decoder"), [("clip", "llama"), ("dinov2", "mistral")])
def test_saved_again_it_is_equal_bit_for_bit(tower, decoder, parts, tmp_path):
    out, _ = make(parts, tmp_path, tower, decoder)
    policy, params = load_pretrained(out)
    save_pretrained(tmp_path / "again", policy, params, source=out)
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name


def test_the_placeholder_is_the_mean_of_the_words_in_embedding_and_head(parts, tmp_path):
    from transformers import AutoModelForCausalLM

    out, made = make(parts, tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(parts("decoder", "llama"))
    policy, params = load_pretrained(out)
    assert policy.config.vocab_size == 15  # 14 words and the placeholder
    assert policy.config.image_token_id == 14
    for ours, theirs in (
        (params["language_model"]["embed_tokens"]["embedding"], alone.model.embed_tokens.weight),
        (params["lm_head"]["weight"], alone.lm_head.weight),
    ):
        before = theirs.detach().numpy()
        np.testing.assert_array_equal(ours[:14], before)
        np.testing.assert_allclose(ours[14], before.mean(axis=0), atol=1e-6)
    said = described(made)
    assert "token 14, new to the tokenizer" in said
    assert "mean of the others" in said


def test_rows_that_the_decoder_has_to_spare_are_used(parts, tmp_path):
    """Embeddings are often longer than the tokenizer: the placeholder takes the next row."""
    decoder = tiny_parts.write_decoder(tmp_path / "spare", vocab_size=20)
    out, _ = make(with_own(parts, decoder=decoder), tmp_path)
    policy, params = load_pretrained(out)
    assert (policy.config.vocab_size, policy.config.image_token_id) == (20, 14)
    table = np.asarray(params["language_model"]["embed_tokens"]["embedding"])
    np.testing.assert_allclose(table[14], table[:14].mean(axis=0), atol=1e-6)  # not of the spare


def test_the_projector_is_seeded_and_can_be_taken_from_another_folder(parts, tmp_path):
    first, _ = make(parts, tmp_path / "a", seed=1)
    second, _ = make(parts, tmp_path / "b", seed=1)
    third, _ = make(parts, tmp_path / "c", seed=2)
    taken, _ = make(parts, tmp_path / "d", projector=str(third))
    weights = [
        (folder / "model.safetensors").read_bytes() for folder in (first, second, third, taken)
    ]
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    assert weights[2] == weights[3]
    _, params = load_pretrained(first)
    one = np.asarray(params["multi_modal_projector"]["linear_1"]["weight"])
    assert one.shape == (32, 16)
    assert 0.2 < np.abs(one).max() <= 0.25  # 1 / sqrt(16)
    assert not np.asarray(params["multi_modal_projector"]["linear_1"]["bias"]).any()


def test_another_image_size_is_what_transformers_makes_of_it(parts, tmp_path):
    """Dinov2Model resizes its positions for a larger image: so is the table that is written."""
    from transformers import Dinov2Model

    out, _ = make(parts, tmp_path, "dinov2", image_size=20)
    policy, params = load_pretrained(out)
    assert policy.config.image_tokens == 25
    processor = Processor.load(out)
    assert processor.row(tiny_hf.example("a", (64, 48))).images.pixels.shape == (25, 48)
    pixels = np.random.default_rng(0).normal(size=(1, 3, 20, 20)).astype(np.float32)
    tower = Dinov2Model.from_pretrained(parts("tower", "dinov2"))
    with torch.no_grad():
        theirs = tower(torch.tensor(pixels), output_hidden_states=True).hidden_states[-2][:, 1:]
    patches = np.stack([image.pixels for image in policy.layout.cut({"pixel_values": pixels})])
    ours = policy._hidden_states(params["vision_tower"], jnp.asarray(patches))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_decoder_without_a_template_gets_the_turns_of_llava(parts, tmp_path):
    decoder = tiny_parts.write_decoder(tmp_path / "base", template=None)
    out, _ = make(with_own(parts, decoder=decoder), tmp_path)
    processor = Processor.load(out)
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a red ."}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "USER: <image>\na red . ASSISTANT:"


def test_types_licences_and_the_towers_own_processor_go_along(parts, tmp_path):
    tower = tiny_parts.write_dinov2(tmp_path / "tower")
    own = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 99},
        "crop_size": {"height": 9, "width": 9},
        "image_mean": [0.1, 0.2, 0.3],
    }
    (tower / "preprocessor_config.json").write_text(json.dumps(own))
    (tower / "LICENSE").write_text("terms of the tower")
    out, made = make(with_own(parts, tower=tower), tmp_path, dtype="bfloat16")
    written = json.loads((out / "preprocessor_config.json").read_text())
    assert written["size"] == {"shortest_edge": 8}
    assert written["crop_size"] == {"height": 8, "width": 8}
    assert written["image_mean"] == [0.1, 0.2, 0.3]
    assert (out / "LICENSE-tower").read_text() == "terms of the tower"
    assert made.dtype == "bfloat16"
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    policy, params = load_pretrained(out)
    save_pretrained(tmp_path / "again", policy, params, dtype="bfloat16", source=out)
    again = tmp_path / "again" / "model.safetensors"
    assert again.read_bytes() == (out / "model.safetensors").read_bytes()


# ---- bad input


def refused(match, parts, tmp_path, **settings):
    with pytest.raises(UserError, match=match) as error:
        make(parts, tmp_path, **settings)
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_out_that_exists_is_not_overwritten(parts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="already exists and is not an empty folder"):
        make(parts, tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_text_model_as_tower_and_a_tower_as_decoder(parts, tmp_path):
    text, vision = parts("decoder", "llama"), parts("tower", "clip")
    refused(
        "type 'llama', which is no vision tower.*'clip' or 'dinov2'",
        with_own(parts, tower=text),
        tmp_path,
    )
    refused(
        "'clip_vision_model', which is no decoder of Llama",
        with_own(parts, decoder=vision),
        tmp_path,
    )


def test_a_projector_of_other_widths_or_other_features(parts, tmp_path):
    out, _ = make(parts, tmp_path / "small")
    wide = tiny_parts.write_decoder(tmp_path / "wide", hidden_size=64)
    refused(
        "leads from width 16 to 32.*16 and the decoder 64",
        with_own(parts, decoder=wide),
        tmp_path,
        projector=str(out),
    )
    refused(
        "vision_feature_layer=-2 and not for -1",
        parts,
        tmp_path,
        projector=str(out),
        vision_feature_layer=-1,
    )
    refused("holds no LLaVA|is not supported", parts, tmp_path, projector=parts("decoder", "llama"))
    refused("must be a folder with config.json", parts, tmp_path, projector="mlp3x")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"vision_feature_layer": 9}, "vision_feature_layer 9 must name hidden states.*3 layers"),
        ({"image_size": 10}, "--image-size 10: image_size is 10 but must be a positive multiple"),
    ],
)
def test_settings_that_do_not_fit_the_parts(settings, match, parts, tmp_path):
    refused(match, parts, tmp_path, **settings)


def test_weights_that_are_not_those_of_the_config(parts, tmp_path):
    decoder = tiny_parts.write_decoder(tmp_path / "decoder")
    tiny_parts.change_config(decoder, intermediate_size=40)
    refused(
        "do not fit its config.json.*of another shape", with_own(parts, decoder=decoder), tmp_path
    )
    tower = tiny_parts.write_dinov2(tmp_path / "tower")
    tiny_parts.change_config(tower, num_hidden_layers=4)
    refused("missing: vision_tower.encoder.layer.3", with_own(parts, tower=tower), tmp_path)
    tiny_parts.change_config(tower, use_swiglu_ffn=True)
    refused("use_swiglu_ffn is True", with_own(parts, tower=tower), tmp_path)


def test_a_template_that_makes_no_prompt(parts, tmp_path):
    decoder = tiny_parts.write_decoder(tmp_path / "decoder", template="{{ 'hello' }}")
    refused("makes no prompt of an image and a text", with_own(parts, decoder=decoder), tmp_path)


def test_parts_must_be_named():
    with pytest.raises(UserError, match="tower='' is missing"):
        AssembleConfig.of({"out": "x", "decoder": "y"})
