"""Supervised training: from nothing and from a folder, on rows, with everything that runs have."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image
from traces import names_in, steps_in

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.files import load_run
from balcap_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
)
from balcap_jax.data.lessons import Answers
from balcap_jax.data.prompts.answers import AnswerEncoder
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.scene_source import SceneSource, export
from balcap_jax.data.supervised import prepared
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.runs.trace import traces_in
from balcap_jax.training import utilisation
from balcap_jax.training.callbacks import Callback, EarlyStopping
from balcap_jax.training.saved_policy import saved_policy
from balcap_jax.training.sft import sft
from balcap_jax.training.trainer import Trainer

SMALL = SFTConfig(
    steps=6,
    batch_size=2,
    captions_per_image=2,
    max_new_tokens=16,
    log_every=1,
    sample_every=3,
    data=DataConfig(heldout=3),
    checkpoint=CheckpointConfig(every=2),
    evaluation=EvaluationConfig(every=3, batch_size=2, temperature=0.0),
    mesh=MeshConfig(data=1, fsdp=2, tensor=4),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=1),
    save_dtype="float32",
)
ROW = {"prompt": "What is this?", "captions": ["a red square .", "red all over ."]}


def rows(count: int = 8) -> list[dict]:
    return [
        {**ROW, "id": str(i), "image": Image.new("RGB", (56, 56), (200, 30, i))}
        for i in range(count)
    ]


def of_rows(tmp_path, **changes) -> SFTConfig:
    """From the packaged policy, on one device."""
    values = {
        "out": tmp_path,
        "steps": 4,
        "model": ModelConfig(train_vision=False),
        "data": DataConfig(path="memory", heldout=2),
        "mesh": MeshConfig(data=1),
        "optim": OptimConfig(learning_rate=1e-3, warmup_steps=1),
        "sample_every": 0,
        "evaluation": EvaluationConfig(every=2, batch_size=2, temperature=0.0),
    }
    return dataclasses.replace(SMALL, **{**values, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_device):
    return sft(dataclasses.replace(SMALL, out=tmp_path_factory.mktemp("sft"), profile=(6,)))


def test_learns_from_nothing_and_writes_a_folder(run):
    found = read_jsonl(run / "metrics.jsonl")
    losses = [row["loss"] for row in found]
    assert len(losses) == 6
    # An untrained policy spreads its probability over 768 tokens: ln 768 = 6.64.
    assert losses[0] == pytest.approx(np.log(768), abs=0.5)
    assert losses[-1] < losses[0] - 1.0
    policy, params = load_pretrained(run / "policy")
    assert sum(x.size for x in jax.tree.leaves(params)) == 2_123_136
    assert policy.config.stop_tokens == Processor.load(run / "policy").stop_tokens


def test_rows_of_a_machine_of_unknown_rate_have_times_and_no_utilisation(run):
    for row in read_jsonl(run / "metrics.jsonl"):
        assert 0 < row["seconds/data"] + row["seconds/update"] <= row["seconds/step"]
        assert row["peak_memory_mb"] > 0
        assert not [name for name in row if name.startswith(("mfu/", "device_memory_mb"))]


def test_the_last_step_is_traced(run):
    [trace] = traces_in(run / "profile")
    assert {"PjitFunction(update)", "data", "update"} <= names_in(trace)
    assert steps_in(trace) == {6}


def test_validation_falls_and_is_logged_with_samples(run):
    found = {row["step"]: row for row in read_jsonl(run / "metrics.jsonl")}
    summary = json.loads((run / "summary.json").read_text())
    before, after = summary["before"]["loss"], summary["after"]["loss"]
    assert before == pytest.approx(np.log(768), abs=0.5)
    assert after == pytest.approx(found[6]["heldout/loss"], rel=1e-6)
    assert after < found[3]["heldout/loss"] < before
    assert [step for step, row in found.items() if "heldout/loss" in row] == [3, 6]
    samples = read_jsonl(run / "samples.jsonl")
    assert [row["step"] for row in samples] == [3] * 3 + [6] * 3
    assert {row["id"] for row in samples} == {f"heldout-0-{i:06d}" for i in range(3)}
    assert {"caption", "reference"} <= set(samples[0])
    assert (run / "curves.png").exists()


@pytest.mark.long
@pytest.mark.slow
def test_a_tower_that_has_learned_to_see_is_saved_before_the_first_step(tmp_path, one_device):
    config = dataclasses.replace(
        SMALL, out=tmp_path, steps=1, vision_steps=2, vision_batch_size=2, sample_every=0,
        evaluation=EvaluationConfig(batch_size=2),
    )  # fmt: skip
    taught = sft(config)
    found = saved_policy(taught, "0")
    assert found.step == 0
    plain = sft(dataclasses.replace(config, name="plain", vision_steps=0))
    assert not (plain / "checkpoints" / "0").exists()
    other = saved_policy(plain, "1")

    def tower(saved):
        return jax.tree.leaves(saved.params["visual"]["blocks"])

    moved = [float(np.abs(a - b).max()) for a, b in zip(tower(found), tower(other), strict=True)]
    assert max(moved) > 1e-4
    losses = [json.loads((r / "summary.json").read_text())["before"] for r in (taught, plain)]
    assert losses[0] != losses[1]  # what is evaluated is the taught one


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


def test_a_checkpoint_of_a_new_policy_has_its_files(run):
    found = saved_policy(run, "4")
    assert found.step == 4
    assert Processor.load(found.source).stop_tokens == found.policy.config.stop_tokens
    assert sum(x.size for x in jax.tree.leaves(found.params)) == 2_123_136


def test_goes_on_from_a_folder_on_files(run, tmp_path, monkeypatch):
    monkeypatch.setattr(utilisation, "peak_flops", lambda devices: 1e12)
    data = export(tmp_path / "data", split="train", count=5)
    config = dataclasses.replace(
        SMALL,
        out=tmp_path,
        steps=1,
        sample_every=0,
        data=DataConfig(path=str(data), heldout=1),
        model=ModelConfig(path=str(run), train_vision=False),
    )
    after = sft(config)
    [row] = read_jsonl(after / "metrics.jsonl")
    assert row["loss"] < np.log(768) - 0.5  # it did not start anew
    old, new = (load_pretrained(folder / "policy")[1] for folder in (run, after))
    flops = row["mfu/update"] * row["seconds/update"] * 1e12
    assert flops == pytest.approx(row["mfu/step"] * row["seconds/step"] * 1e12)
    # A matmul's weight is multiplied with each token once forward and twice backward.
    matrices = sum(x.size for x in jax.tree.leaves(new["language_model"]["layers"]) if x.ndim > 2)
    assert flops > 6 * matrices * row["tokens"]
    jax.tree.map(np.testing.assert_array_equal, old["visual"], new["visual"])


def test_a_run_is_not_overwritten_nor_resumed_by_the_other_command(run):
    with pytest.raises(UserError, match="already holds a run"):
        sft(dataclasses.replace(SMALL, out=run.parent))
    with pytest.raises(UserError, match="balcap sft --resume"):
        load_run(run)
    assert load_run(run, SFTConfig).batch_size == 2
    with pytest.raises(UserError, match="must be a SFTConfig"):
        Trainer(TrainConfig(), task="sft")


class Halt(Callback):
    """Fails once at a step, as a crash would."""

    def __init__(self, step: int):
        self.at = step

    def on_step(self, run, step, row):
        if step == self.at:
            raise UserError("halted")


@pytest.mark.parametrize(
    "lora", [LoraConfig(), LoraConfig(rank=2, dropout=0.1)], ids=["whole", "adapters"]
)
@pytest.mark.slow
def test_a_run_that_failed_goes_on_to_the_same_bits(lora, tmp_path, one_device):
    model = ModelConfig(path=str(policy_folder("base")), lora=lora)
    config = of_rows(tmp_path, model=model)
    straight = Trainer(config, train_dataset=rows()).train()
    halted = Trainer(
        dataclasses.replace(config, name="halted"), train_dataset=rows(), callbacks=[Halt(3)]
    )
    with pytest.raises(UserError, match="halted"):
        halted.train()
    Trainer(resume=tmp_path / "halted", task="sft", train_dataset=rows()).train()
    one, two = (
        [without_wall_clock(row) for row in read_jsonl(tmp_path / name / "metrics.jsonl")]
        for name in ("sft", "halted")
    )
    assert one == two
    first, second = (load_pretrained(tmp_path / n / "policy")[1] for n in ("sft", "halted"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert straight == tmp_path / "sft"
    changed = [{**row, "captions": ["another"]} for row in rows()]
    with pytest.raises(UserError, match="texts of training rows"):
        Trainer(resume=tmp_path / "halted", train_dataset=changed).train()


@pytest.mark.slow
def test_early_stop_by_held_out_loss_and_the_best_checkpoint(tmp_path, one_device):
    """With a rate of nothing the loss never improves on that of the first evaluation."""
    config = of_rows(
        tmp_path,
        steps=20,
        optim=OptimConfig(learning_rate=1e-12),
        model=ModelConfig(path="base"),
    )
    stop = EarlyStopping("heldout/loss", patience=2, min_delta=1e-3, mode="min")
    run = Trainer(config, train_dataset=rows(), callbacks=[stop]).train()
    assert len(read_jsonl(run / "metrics.jsonl")) == 6
    assert (
        "heldout/loss has not improved" in json.loads((run / "summary.json").read_text())["stopped"]
    )


def test_only_the_projector_learns(tmp_path, one_device):
    config = of_rows(tmp_path, steps=1, model=ModelConfig(path="base", train=("projector",)))
    run = Trainer(config, train_dataset=rows()).train()
    before, after = load_pretrained(policy_folder("base"))[1], load_pretrained(run / "policy")[1]
    jax.tree.map(np.testing.assert_array_equal, before["language_model"], after["language_model"])
    merger = [jax.tree.leaves(params["visual"]["merger"]) for params in (before, after)]
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*merger, strict=True))
    left = [
        {name: tree for name, tree in params["visual"].items() if name != "merger"}
        for params in (before, after)
    ]
    jax.tree.map(np.testing.assert_array_equal, *left)


def conversation_rows() -> list[dict]:
    image = Image.new("RGB", (56, 56), (200, 30, 30))
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat is it?"},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "Red."},
    ]
    two = [
        {"role": "user", "content": "<image> and <image>: the same?"},
        {"role": "assistant", "content": "Yes."},
    ]
    return [
        {"id": "talk", "image": image, "messages": talk},
        {"id": "two", "images": [image, image], "messages": two},
        {"id": "caption", "image": image, "caption": "a red square ."},
        {"id": "held", "image": image, "messages": talk},
        {"id": "held2", "images": [image, image], "messages": two},
    ]


@pytest.mark.slow
def test_conversations_and_several_images_are_learned(tmp_path, one_device):
    config = of_rows(
        tmp_path,
        steps=8,
        batch_size=3,
        model=ModelConfig(path="base"),
        evaluation=EvaluationConfig(every=8, batch_size=2, temperature=0.0),
        max_new_tokens=48,
    )
    run = Trainer(
        config,
        train_dataset=conversation_rows()[:3],
        eval_dataset=[{**row, "id": "e" + row["id"]} for row in conversation_rows()[3:]],
    ).train()
    found = read_jsonl(run / "metrics.jsonl")
    assert found[-1]["loss"] < found[0]["loss"] - 1
    assert found[-1]["tokens"] == found[0]["tokens"]  # all three, in whatever order


def test_an_answer_beyond_the_last_position_is_one_sentence():
    processor = Processor.load(policy_folder("base"))
    text = dataclasses.replace(processor.config.text, max_position_embeddings=60)
    short = dataclasses.replace(processor, config=dataclasses.replace(processor.config, text=text))
    example = SceneSource("train", 1)[0]
    with pytest.raises(UserError, match="positions with its answer, and the policy has max_pos"):
        prepared(Answers(example, [example.reference]), short, AnswerEncoder(short, length=64))


def test_bad_settings_and_rows_are_one_sentence(tmp_path, one_device):
    with pytest.raises(UserError, match="reads no reward_funcs"):
        Trainer(of_rows(tmp_path), train_dataset=rows(), reward_funcs=lambda **_: [0.0])
    with pytest.raises(UserError, match="task='dpo' is unknown"):
        Trainer(task="dpo")
    with pytest.raises(UserError, match="must be a multiple of micro_batches=3"):
        dataclasses.replace(SMALL, micro_batches=3)
    config = of_rows(
        tmp_path,
        model=ModelConfig(path="base"),
        data=DataConfig(path="memory", heldout=2, max_bad_images=0),
    )
    rates = dataclasses.replace(
        config,
        model=ModelConfig(path="base", train=("projector",)),
        optim=OptimConfig(rates=("tower=1e-3",)),
    )
    with pytest.raises(UserError, match="a rate for 'tower', which is not trained"):
        Trainer(rates, train_dataset=rows()).train()
    empty = {"id": "empty", "image": Image.new("RGB", (56, 56))}
    with pytest.raises(UserError, match="train_dataset, row 8 has no caption, .* no answer to le"):
        Trainer(config, train_dataset=[*rows(), empty]).train()
    special = {**ROW, "id": "special", "image": empty["image"], "captions": ["a <|im_end|> b"]}
    with pytest.raises(UserError, match=r"row 8 has .* holds <\|im_end\|>, a special token"):
        Trainer(config, train_dataset=[*rows(), special]).train()


def test_packaged_base_policy():
    folder = policy_folder("base")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10 * 2**20
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qwen2_5_vl"
    policy, _ = load_pretrained(folder)
    assert len(policy.config.banned_tokens) == 4


@pytest.mark.slow
@pytest.mark.long
def test_questions_are_learned_and_their_area_is_told(tmp_path, one_device):
    asked = [{"question": "red", "answer": "yes"}, {"question": "blue", "answer": "no"}]
    data = [
        {"id": str(i), "image": Image.new("RGB", (56, 56), (200, 30, i)), "questions": asked}
        for i in range(6)
    ]
    config = of_rows(tmp_path, optim=OptimConfig(learning_rate=5e-3, warmup_steps=1), steps=8)
    config = dataclasses.replace(config, evaluation=EvaluationConfig(every=8, batch_size=2))
    run = Trainer(config, task="sft", train_dataset=data).train()
    row = read_jsonl(run / "metrics.jsonl")[-1]
    assert row["heldout/auc"] == 1.0  # words alone tell them apart
    before, after = (
        json.loads((run / "summary.json").read_text())[when] for when in ("before", "after")
    )
    assert after["loss"] < before["loss"]
    # Two questions of two images; "yes", "no" and the stop token of each.
    tokens = sum(len(tokens_of(word)) + 1 for word in ("yes", "no"))
    assert after["tokens"] == 2 * tokens


def tokens_of(word: str) -> list[int]:
    tokenizer = Processor.load(policy_folder("base")).tokenizer
    return tokenizer(word, add_special_tokens=False)["input_ids"]
