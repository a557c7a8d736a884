"""Adapters against the real `peft`, both families, in float32; and adapters that are refused."""

import dataclasses
import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tiny_hf
import tiny_llava
import torch_gradient
from safetensors.numpy import load_file, save_file

import balcap_jax
from balcap_jax.errors import UserError
from balcap_jax.models.adapters import adapted_paths, adapter_shapes, init_adapters
from balcap_jax.models.decoder.lora import TRAINED, Lora, adapted_modules, merge_adapters
from balcap_jax.models.families import load_config, make_policy
from balcap_jax.models.hf.adapters import PREFIX, load_adapter, save_adapter
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.selection import overlaid
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.rl.supervised import Lesson, make_supervised_update
from balcap_jax.rl.train_state import init_state

RANK = 3
LORA = Lora(alpha=5.0)
EVERYWHERE = ("decoder", "projector", "tower")
COUNTS = [1, 2, 0]


class Pair:
    """A random model of transformers, and the policy loaded from the folder it saves."""

    def __init__(self, family: str, folder):
        self.family, self.folder = family, folder
        if family == "qwen":
            self.hf = tiny_hf.model(tiny.config(initializer_range=0.1))
        else:
            self.hf = tiny_llava.model(tiny_llava.config(initializer_range=0.1))
        self.hf.save_pretrained(folder)
        self.policy, self.params = load_pretrained(folder)

    def inputs(self) -> dict[str, np.ndarray]:
        if self.family == "qwen":
            return tiny.processor_inputs([tiny.GRIDS[:2], tiny.GRIDS[2:3], ()])
        tokens, mask = tiny.pad(tiny_llava.rows(COUNTS))
        pixels = tiny_llava.images(COUNTS)
        return {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels}

    def with_adapters(self, *, targets=(), lora=LORA, zero=False):
        policy = dataclasses.replace(self.policy, lora=lora)
        shapes = adapter_shapes(policy, adapted_paths(policy, targets), rank=RANK)
        if zero:
            return policy, init_adapters(shapes, jax.random.key(0))
        rng = np.random.default_rng(2)
        drawn = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes)
        return policy, jax.device_put(drawn)

    def ours(self, policy, params):
        inputs = self.inputs()
        return np.asarray(policy.logits(params, **inputs))[inputs["attention_mask"].astype(bool)]

    def theirs(self, model):
        import torch

        inputs = self.inputs()
        with torch.no_grad():
            logits = model(**{name: torch.tensor(x) for name, x in inputs.items()}).logits
        return logits[torch.tensor(inputs["attention_mask"].astype(bool))].numpy()


@pytest.fixture(params=["qwen", "llava"])
def pair(request, tmp_path):
    pytest.importorskip("torch", reason="the test extra has torch")
    return Pair(request.param, tmp_path / "base")


def put_on(hf, folder):
    """The model with the adapter, by PEFT; nothing missing, nothing beside."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PeftModel.from_pretrained(hf, folder)


def peft_layers(model):
    return {n.removeprefix(PREFIX) for n, m in model.named_modules() if hasattr(m, "lora_A")}


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.ptp(theirs))


# ---- out of here, into PEFT


@pytest.mark.torch
@pytest.mark.parametrize(
    ("targets", "rslora"),
    [((), False), (("q_proj", "down_proj"), True), (EVERYWHERE, False)],
    ids=["decoder", "two-rslora", "everywhere"],
)
def test_peft_computes_what_we_do_with_our_adapter(pair, targets, rslora, tmp_path):
    lora = Lora(alpha=5.0, rslora=rslora)
    policy, adapters = pair.with_adapters(targets=targets, lora=lora)
    params = overlaid(pair.params, adapters)
    save_adapter(tmp_path / "adapter", policy, params, base=str(pair.folder))
    base = pair.theirs(pair.hf)
    model = put_on(pair.hf, tmp_path / "adapter")
    theirs = pair.theirs(model)
    close(pair.ours(policy, params), theirs)
    assert np.abs(theirs - base).max() > 0.1 * np.ptp(base)
    # No layer of the tower has one that was not asked for.
    wanted = sum(
        leaves["lora_A"].shape[0] if leaves["lora_A"].ndim == 3 else 1
        for _, leaves in adapted_modules(adapters)
    )
    layers = peft_layers(model)
    assert len(layers) == wanted
    if targets != EVERYWHERE:
        assert all(".language_model." in layer for layer in layers)
    merged = model.merge_and_unload()
    close(pair.ours(policy, merge_adapters(params, lora)), pair.theirs(merged))


@pytest.mark.torch
def test_an_untrained_adapter_is_the_base_in_peft_too(pair, tmp_path):
    policy, adapters = pair.with_adapters(zero=True)
    save_adapter(tmp_path / "adapter", policy, adapters, base=str(pair.folder))
    base = pair.theirs(pair.hf)
    np.testing.assert_array_equal(pair.theirs(put_on(pair.hf, tmp_path / "adapter")), base)
    params = overlaid(pair.params, adapters)
    np.testing.assert_array_equal(pair.ours(policy, params), pair.ours(policy, pair.params))


def test_what_was_written_is_read_again(pair, tmp_path):
    lora = Lora(alpha=7.5, rslora=True)
    policy, adapters = pair.with_adapters(targets=EVERYWHERE, lora=lora)
    save_adapter(tmp_path / "adapter", policy, adapters, base="owner/name")
    read = load_adapter(tmp_path / "adapter", pair.policy)
    assert (read.rank, read.lora, read.base) == (RANK, lora, "owner/name")
    tiny.assert_equal_trees(read.params, adapters)


# ---- out of PEFT, into here


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [
        # The list that most people write, which hits the tower as well.
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]},
        {"target_modules": r".*language_model.*\.(q_proj|up_proj)", "use_rslora": True},
    ],
    ids=["suffixes", "regex"],
)
def test_an_adapter_of_peft_computes_the_same_here(pair, options, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(pair.hf, LoraConfig(r=RANK, lora_alpha=5, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    adapter = load_adapter(tmp_path / "adapter", pair.policy)
    policy = dataclasses.replace(pair.policy, lora=adapter.lora)
    theirs = pair.theirs(model)
    close(pair.ours(policy, overlaid(pair.params, adapter.params)), theirs)
    # As a policy of its own: base and adapter merged.
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(pair.folder)})
    )
    close(pair.ours(*load_pretrained(tmp_path / "adapter")), theirs)
    assert load_config(tmp_path / "adapter") == pair.policy.config


# ---- gradients


class Gradients:
    """Prompts with completions, a random adapter here, and the same one on torch."""

    def __init__(self, pair, targets, folder):
        self.pair = pair
        self.policy, self.adapters = pair.with_adapters(targets=targets)
        save_adapter(folder, self.policy, self.adapters, base=str(pair.folder))
        self.prompts = tiny.prompts(3) if pair.family == "qwen" else tiny_llava.prompts(COUNTS)
        from peft import PeftModel

        self.model = PeftModel.from_pretrained(pair.hf, folder, is_trainable=True)

    def logits_of(self, b, completion):
        """Of torch: of the completion's tokens behind prompt b alone."""
        import torch

        prompts = self.prompts
        if self.pair.family == "qwen":
            own = np.asarray(prompts.tokens)[b][np.asarray(prompts.mask)[b]]
            row = np.concatenate([own, [np.asarray(prompts.last_token)[b]]])
            real = np.asarray(prompts.images.image_ids)[b] >= 0
            images = {
                "pixel_values": torch.tensor(np.asarray(prompts.images.pixels)[b][real]),
                "image_grid_thw": torch.tensor([(1, *tiny.GRIDS[b])]),
            }
        else:
            row, end = tiny_llava.rows(COUNTS)[b], sum(COUNTS[: b + 1])
            pixels = tiny_llava.images(COUNTS)[end - COUNTS[b] : end]
            images = {"pixel_values": torch.tensor(pixels)} if COUNTS[b] else {}
        tokens = torch.tensor(np.concatenate([row, completion])[None]).long()
        if self.pair.family == "qwen":
            images["mm_token_type_ids"] = (tokens == tiny.IMAGE).int()
        return self.model(input_ids=tokens, **images).logits[0, len(row) - 1 : -1]

    def compare(self, gradient, folder):
        """Ours beside what `backward` has left in torch's: 1e-4 relative, of every adapter."""
        save_adapter(folder, self.policy, gradient, base="")
        ours = load_file(folder / "adapter_model.safetensors")
        compared = 0
        for name, parameter in self.model.named_parameters():
            if "lora_" not in name:
                continue
            mine = ours.pop(name.replace(".default", ""))
            if parameter.grad is None:  # above the layer of the tower that is read
                assert not mine.any(), name
                continue
            theirs = parameter.grad.numpy()
            error = np.linalg.norm(mine - theirs) / max(np.linalg.norm(theirs), 1e-6)
            assert error < 1e-4, f"{name}: {error:.1e}"
            compared += bool(theirs.any())
        assert not ours
        assert compared >= 28


@pytest.fixture
def gradients(pair, request, tmp_path):
    return Gradients(pair, request.param, tmp_path / "adapter")


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("gradients", [EVERYWHERE], indirect=True, ids=["everywhere"])
def test_gradients_of_the_policy_loss_are_those_of_peft(gradients, pair, tmp_path):
    """-mean(advantage * logprob) of a shared prompt, by every adapter: below 1e-4 relative."""
    policy, prompts = gradients.policy, gradients.prompts
    completions, advantages = torch_gradient.random_completions(policy, 3, first=8)

    def loss(adapters):
        whole = overlaid(pair.params, adapters)
        features = policy.encode_images(whole, prompts.images)
        logprobs, _ = balcap_jax.models.logprobs.completion_logprobs(
            policy, whole, prompts, features, completions,
            banned_tokens=policy.config.banned_tokens,
        )  # fmt: skip
        return -jnp.mean(jnp.asarray(advantages)[..., None] * logprobs)

    value, gradient = jax.jit(jax.value_and_grad(loss))(gradients.adapters)
    reference = torch_gradient.torch_loss(
        gradients.logits_of, completions, advantages, policy.config.banned_tokens
    )
    reference.backward()
    assert value == pytest.approx(reference.item(), rel=1e-5)
    gradients.compare(gradient, tmp_path / "gradient")


def kept_gradient():
    """An optimizer that keeps the gradient it is given as its state, and moves nothing."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, *_: (jax.tree.map(jnp.zeros_like, gradient), gradient),
    )


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("gradients", [EVERYWHERE], indirect=True, ids=["everywhere"])
def test_gradients_of_the_supervised_loss_are_those_of_peft(gradients, pair, tmp_path):
    """Cross entropy over the learned tokens, as an update of three micro-batches sums it, the
    answers behind a shared prompt: below 1e-4 relative.
    """
    import torch

    policy = gradients.policy
    tokens, _ = torch_gradient.random_completions(policy, 3, first=8)
    mask = np.ones(tokens.shape, bool)
    mask[0, 0, 1:3] = False  # a question between two answers
    mask[1, 1, 2:] = False  # a shorter one
    mask[2, 1] = False  # no second answer
    mesh = make_mesh(devices=jax.devices()[:1])
    params = overlaid(pair.params, gradients.adapters)
    state = init_state(mesh, params, kept_gradient(), trained=TRAINED)
    update = make_supervised_update(policy, kept_gradient(), mesh, micro_batches=3, trained=TRAINED)
    state, metrics = update(state, shard_batch(mesh, Lesson(gradients.prompts, tokens, mask)))

    total = 0.0
    for b, g in zip(*np.nonzero(mask.any(axis=2)), strict=True):
        learned = torch.tensor(mask[b, g])
        total = total + torch.nn.functional.cross_entropy(
            gradients.logits_of(b, tokens[b, g])[learned],
            torch.tensor(tokens[b, g]).long()[learned],
            reduction="sum",
        )
    reference = total / mask.sum()
    reference.backward()
    assert metrics["tokens"] == mask.sum()
    assert metrics["loss"] == pytest.approx(reference.item(), rel=1e-5)
    gradients.compare(state.opt_state, tmp_path / "gradient")


# ---- names


# As vLLM documents them: `hf_to_vllm_mapper` of qwen2_5_vl.py and llava.py.
VLLM = {
    "qwen": {
        "model.language_model.": "language_model.model.",
        "model.visual.": "visual.",
        "lm_head.": "language_model.lm_head.",
    },
    "llava": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    },
}
# Of vLLM's decoder; q, k, v and gate, up are packed, and adapters are named by what is packed.
VLLM_LAYER = re.compile(
    r"language_model\.model\.layers\.\d+\."
    r"(self_attn\.(q_proj|k_proj|v_proj|o_proj)|mlp\.(gate_proj|up_proj|down_proj))"
)


@pytest.mark.parametrize("family", ["qwen", "llava"])
def test_vllm_has_a_layer_for_each_name(family, tmp_path):
    """Names without one are skipped there without a word."""
    policy = make_policy(tiny.CONFIG if family == "qwen" else tiny_llava.CONFIG)
    policy = dataclasses.replace(policy, lora=Lora(alpha=4.0))
    shapes = adapter_shapes(policy, adapted_paths(policy, ()), rank=2)
    save_adapter(
        tmp_path, policy, jax.tree.map(lambda x: jnp.ones(x.shape), shapes), base="owner/name"
    )
    keys = load_file(tmp_path / "adapter_model.safetensors")
    layers = policy.config.text.num_hidden_layers
    assert len(keys) == 7 * layers * 2
    mapped = set()
    for key in keys:
        name = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", key).group(1)
        prefix = next(p for p in VLLM[family] if name.startswith(p))
        mapped.add(VLLM[family][prefix] + name.removeprefix(prefix))
    assert len(mapped) == 7 * layers
    assert all(VLLM_LAYER.fullmatch(name) for name in mapped)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    # Older vLLM takes a regular expression whose last group names what it has layers for.
    last = re.search(r"\((.*?)\)\$?$", config["target_modules"]).group(1).split("|")
    assert set(last) == set("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
    assert (config["modules_to_save"], config["use_dora"], config["bias"]) == (None, False, "none")


# ---- refused


@pytest.fixture
def written(tmp_path):
    """A policy, the folder of an adapter for it, and the policy's own."""
    policy = dataclasses.replace(make_policy(tiny.CONFIG), lora=Lora(alpha=4.0))
    save_pretrained(tmp_path / "base", policy, tiny.random_params(policy))
    shapes = adapter_shapes(policy, adapted_paths(policy, ()), rank=2)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), shapes)
    save_adapter(tmp_path / "adapter", policy, ones, base=str(tmp_path / "base"))
    return policy, tmp_path / "adapter"


def refusal(policy, folder):
    with pytest.raises(UserError) as error:
        load_adapter(folder, policy)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"use_dora": True}, "use_dora=True, which is more than LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"r": 0}, "r=0"),
        ({"r": "8"}, "r='8'"),
        ({"lora_alpha": None}, "lora_alpha=None"),
        ({"r": 3}, "lora_A of language_model/layers/mlp/down_proj, layer 0, is 2 x 48 and must be"),
    ],
)
def test_a_config_that_cannot_be_obeyed(written, entries, said):
    policy, folder = written
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    assert said in refusal(policy, folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, k: t.update({k: np.full_like(t[k], np.nan)}), "has a NaN or an infinity in"),
        (lambda t, k: t.pop(k), "is missing and must be"),
        (lambda t, k: t.update({k: t[k][:, :-1]}), "is 2 x 31 and must be 2 x 32"),
        (lambda t, k: t.update({k.replace("0", "9"): t[k]}), "1 weights that this policy has no"),
        (lambda t, k: t.update({f"{PREFIX}lm_head.lora_A.weight": t[k]}), "embedding or the head"),
        (lambda t, k: t.update({f"{PREFIX}x.lora_embedding_A": t[k]}), "embedding or the head"),
        (lambda t, k: t.clear(), "no weights that this policy has a layer for"),
    ],
    ids=["nan", "missing", "shape", "name", "head", "embedding", "empty"],
)
def test_weights_that_do_not_fit(written, change, said):
    policy, folder = written
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors, f"{PREFIX}model.language_model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, folder / "adapter_model.safetensors")
    assert said in refusal(policy, folder)


def test_an_adapter_for_another_base_names_it(written):
    policy, folder = written
    deeper = make_policy(tiny.config(text={"num_hidden_layers": 3}))
    assert "layer 2, is missing" in refusal(deeper, folder)
    assert str(folder.parent / "base") in refusal(deeper, folder)
    wider = make_policy(tiny.config(text={"hidden_size": 64, "attention_head_dim": 8}))
    assert "lora_B of language_model/layers/mlp/down_proj, layer 0, is 32 x 2" in refusal(
        wider, folder
    )


def test_a_pickle_and_a_base_that_is_gone(written):
    policy, folder = written
    config = folder / "adapter_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"base_model_name_or_path": "/not/here"}))
    with pytest.raises(UserError, match=r"'/not/here', which is neither .* --model.lora.start"):
        load_pretrained(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin, which can run any code" in refusal(policy, folder)
    config.unlink()
    assert "has no adapter_config.json" in refusal(policy, folder)
