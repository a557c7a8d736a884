"""Supervised training from nothing and from a folder."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from balcap_jax.config.commands import SFTConfig
from balcap_jax.config.sections import DataConfig, MeshConfig, ModelConfig, OptimConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.scene_source import SceneSource, export
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.scenes.captions import FaultRates
from balcap_jax.training.sft import batches, corpus_captions, sft

SMALL = SFTConfig(
    steps=6,
    batch_size=2,
    captions_per_image=2,
    max_new_tokens=16,
    log_every=1,
    save_every=4,
    mesh=MeshConfig(data=1, fsdp=2, tensor=4),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=1),
    save_dtype="float32",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return sft(dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("sft")))


def test_learns_from_nothing_and_writes_a_folder(run):
    losses = [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]
    assert len(losses) == 6
    # An untrained policy spreads its probability over 768 tokens: ln 768 = 6.64.
    assert losses[0] == pytest.approx(np.log(768), abs=0.5)
    assert losses[-1] < losses[0] - 1.0
    policy, params = load_pretrained(run / "policy")
    assert sum(x.size for x in jax.tree.leaves(params)) == 2_123_136
    assert policy.config.stop_tokens == Processor.load(run / "policy").stop_tokens


def test_transformers_reads_the_folder(run):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch", reason="torch is in the test extra")
    model, info = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        run / "policy", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours = load_pretrained(run / "policy")[1]["language_model"]["norm"]["scale"]
    theirs = model.state_dict()["model.language_model.norm.weight"]
    np.testing.assert_array_equal(np.asarray(ours), theirs.to(torch.float32).numpy())


def test_goes_on_from_a_folder_on_files(run, tmp_path):
    data = export(tmp_path / "data", split="train", count=5)
    config = dataclasses.replace(
        SMALL,
        out=tmp_path,
        steps=1,
        data=DataConfig(path=str(data), heldout=1),
        model=ModelConfig(path=str(run), train_vision=False),
    )
    after = sft(config)
    loss = read_jsonl(after / "metrics.jsonl")[0]["loss"]
    assert loss < np.log(768) - 0.5  # it did not start anew
    old, new = (load_pretrained(folder / "policy")[1] for folder in (run, after))
    jax.tree.map(np.testing.assert_array_equal, old["visual"], new["visual"])


def test_a_run_is_not_overwritten(run):
    with pytest.raises(UserError, match="already holds a run"):
        sft(dataclasses.replace(SMALL, out=run.parent))


def test_batches_are_a_function_of_seed_and_step():
    processor = Processor.load(policy_folder("base"))
    source = SceneSource("train", 100)

    def drawn(**changes):
        config = dataclasses.replace(SMALL, steps=2, **changes)
        return list(batches(config, source, processor))

    first, again, other = drawn(), drawn(), drawn(seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first[0][1] != other[0][1]).any()
    assert (first[0][1] != first[1][1]).any()


def test_corpus_captions():
    scene = SceneSource("train", 1)[0]
    assert len(set(corpus_captions(scene, "0/0", 8, FaultRates()))) > 4
    photo = Example("1", scene.image, scene.prompt, "A car.")
    assert corpus_captions(photo, "0/0", 2, FaultRates()) == ["A car.", "A car."]


def test_packaged_base_policy():
    folder = policy_folder("base")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10 * 2**20
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen2_5_vl"
    policy, _ = load_pretrained(folder)
    assert len(policy.config.banned_tokens) == 4
