"""`balcap_jax.Trainer`: rows, rewards, judges, loggers and callbacks of the user's own."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from hub_server import HubServer
from small_run import BASE, SMALL

import balcap_jax as bj
from balcap_jax.cli.main import main
from balcap_jax.config.sections import EvaluationConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock
from balcap_jax.training import task_run

SCENES = [SceneSource("train", 8)[i] for i in range(8)]
ROWS = [
    {"id": e.id, "image": e.image, "caption": e.reference, "source": f"s{i}"}
    for i, e in enumerate(SCENES)
]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """What is tested here does not depend on the mesh, and one device compiles fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
        yield


def small(out, **changes):
    return dataclasses.replace(SMALL, out=out, **changes)


def short(completions, **columns):
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [1 / (1 + len(text.split())) for text in texts]


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    """A name on the hub, rows in memory, four rewards, two loggers, early stopping."""
    from huggingface_hub import constants

    pytest.importorskip("wandb", reason="needs the test extra")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    name = "Qwen/Qwen2.5-VL-3B-Instruct"
    with HubServer({name: BASE}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        trainer = bj.Trainer(
            bj.TrainConfig.of(
                {  # what is compiled is as in `SMALL`, for all tests of this file
                    "steps": 2,
                    "rollout.group_size": 3,
                    "optim.learning_rate": 1e-3,
                    "optim.warmup_steps": 1,
                    "out": str(tmp_path / "runs"),
                    "prompts_per_step": 2,
                    "rollout.max_new_tokens": 12,
                    "evaluation.batch_size": 3,
                    "checkpoint.every": 2,
                }
            ),
            model=name,
            train_dataset=ROWS[:6],
            eval_dataset=ROWS[6:],
            reward_funcs=[
                bj.rewards.lexical_precision,
                bj.rewards.lexical_recall,
                bj.rewards.lexical_linguistic,
                short,
            ],
            reward_weights=[1, 1, 1, 0.2],
            loggers=["tensorboard", "wandb"],
            callbacks=[bj.EarlyStopping("heldout/b_capscore", patience=3)],
        )
        trainer.train()
        settings = json.loads((trainer.run / "config.json").read_text())
        assert settings["model"]["revision"] == hub.commit(name)  # a resumed run starts from it
    assert isinstance(trainer.caption(SCENES[0].image, max_new_tokens=8), str)
    trainer.save_pretrained(tmp_path / "my-policy")
    bj.load_pretrained(tmp_path / "my-policy")
    assert list((trainer.run / "tensorboard").glob("events*"))
    assert list(trainer.run.glob("wandb/offline-run-*/*.wandb"))
    rows = read_jsonl(trainer.run / "metrics.jsonl")
    assert all("heldout/b_capscore" in row for row in rows)


class Told(bj.Callback):
    """Notes what it is told."""

    def __init__(self):
        self.calls = []

    def on_start(self, run):
        self.calls.append(("start", run.step))

    def on_step(self, run, step, row):
        self.calls.append(("step", step, row["reward/short/mean"]))

    def on_evaluate(self, run, step, scores):
        self.calls.append(("evaluate", step, scores["heldout/short"]))

    def on_save(self, run, step):
        self.calls.append(("save", step))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three verdict rewards and one function, on rows in memory: (trainer, what was told)."""
    told = Told()
    trainer = bj.Trainer(
        small(tmp_path_factory.mktemp("runs"), evaluation=EvaluationConfig(every=2, batch_size=3)),
        model="base",
        train_dataset=ROWS[:6],
        eval_dataset=ROWS[6:],
        reward_funcs=[
            short,
            bj.rewards.lexical_precision,
            bj.rewards.lexical_recall,
            bj.rewards.lexical_linguistic,
        ],
        reward_weights=[0.2, 1, 1, 1],
        callbacks=[told],
    )
    assert trainer.train() == trainer.run
    return trainer, told


def test_rewards_of_judge_and_functions_are_one_array(trained):
    trainer, _ = trained
    reward = trainer.config.reward
    assert reward.all_names == ("precision", "recall", "linguistic", "short")
    assert reward.all_weights == (1.0, 1.0, 1.0, 0.2)  # each moved with its function
    assert trainer.config.judge.kind == "lexical"
    rows = read_jsonl(trainer.run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for name in reward.all_names:
        assert all(0 < row[f"reward/{name}/mean"] <= 1 for row in rows), name
    # six images, two a step; the learning rate warms up in one step
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3])
    assert [row["learning_rate"] for row in rows] == [pytest.approx(1e-3)] * 4
    samples = read_jsonl(trainer.run / "samples.jsonl")
    assert all(set(row["rewards"]) == set(reward.all_names) for row in samples)
    for row in samples:
        assert row["rewards"]["short"] == pytest.approx(1 / (1 + row["words"]))
    summary = json.loads((trainer.run / "summary.json").read_text())
    assert {"b_capscore", "short"} <= set(summary["before"])
    assert (trainer.run / "captions.html").exists()


def test_callbacks_are_called_in_order(trained):
    _, told = trained
    kinds = [call[:2] for call in told.calls]
    assert kinds == [
        ("start", 0), ("step", 1),
        ("step", 2), ("evaluate", 2), ("save", 2),
        ("step", 3),
        ("step", 4), ("evaluate", 4), ("save", 4), ("save", 4),
    ]  # fmt: skip


def test_the_trained_policy_captions_and_is_written(trained, tmp_path):
    trainer, _ = trained
    text = trainer.caption(SCENES[0].image, max_new_tokens=8)
    assert isinstance(text, str)
    assert trainer.caption([SCENES[0].image] * 3, max_new_tokens=8) == [text] * 3
    trainer.save_pretrained(tmp_path / "policy")
    again = bj.Trainer(small(tmp_path / "runs"), model=tmp_path / "policy")
    assert again.caption(np.asarray(SCENES[0].image), max_new_tokens=8) == text
    with pytest.raises(bj.UserError, match="holds no trained policy yet; call train"):
        again.save_pretrained(tmp_path / "other")
    # Another trainer that would write to the same folder has nothing to do with the run in it.
    stranger = bj.Trainer(trainer.config, model=tmp_path / "no such policy")
    with pytest.raises(bj.UserError, match="no such policy"):
        stranger.caption(SCENES[0].image)
    with pytest.raises(bj.UserError, match="holds no trained policy yet; call train"):
        stranger.save_pretrained(tmp_path / "other")
    with pytest.raises(bj.UserError, match="no.png cannot be captioned .there is no such file"):
        again.caption("no.png")


def test_captions_of_all_that_is_an_image(trained):
    trainer, _ = trained
    image = SCENES[0].image
    file = io.BytesIO()
    image.save(file, "PNG")
    text = trainer.caption(image, max_new_tokens=8)
    given = [file.getvalue(), bytearray(file.getvalue()), {"bytes": file.getvalue(), "path": None}]
    assert trainer.caption(given, max_new_tokens=8) == [text] * 3
    messages = [{"role": "user", "content": "Describe the image."}]
    assert trainer.caption(image, messages, max_new_tokens=8) == text
    assert trainer.caption([]) == []
    for arguments, said in (
        ({"images": 3}, 'has a int as "image", which must be a PIL image'),
        ({"images": image, "temperature": -1.0}, "temperature=-1.0 must be at least 0"),
        ({"images": image, "max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"images": image, "top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"images": image, "prompt": [{"content": "x"}]}, "must be a text or a list of messages"),
    ):
        with pytest.raises(bj.UserError, match=said):
            trainer.caption(**arguments)


def test_a_run_goes_on_in_python_and_the_command_line_says_where(trained, tmp_path, capsys):
    whole, _ = trained
    parts = {
        "train_dataset": ROWS[:6],
        "eval_dataset": ROWS[6:],
        "reward_funcs": [
            short,
            bj.rewards.lexical_precision,
            bj.rewards.lexical_recall,
            bj.rewards.lexical_linguistic,
        ],
        "reward_weights": [0.2, 1, 1, 1],
    }
    config = small(tmp_path, evaluation=EvaluationConfig(every=2, batch_size=3))

    class Killed(bj.Callback):
        def on_step(self, run, step, row):
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bj.Trainer(config, **parts, callbacks=[Killed()]).train()
    assert main(["train", "--resume", str(tmp_path / "balcap")]) == 2
    assert "were given to a Trainer in Python" in capsys.readouterr().err
    trainer = bj.Trainer(resume=tmp_path / "balcap", **parts)
    trainer.train()
    ours, theirs = (
        [without_wall_clock(row) for row in read_jsonl(run / "metrics.jsonl")]
        for run in (trainer.run, whole.run)
    )
    assert ours == theirs
    other = dataclasses.replace(config, rl=dataclasses.replace(config.rl, eps=1e-2))
    with pytest.raises(bj.UserError, match=r"changed rl.eps \(0.0001 -> 0.01\)") as error:
        bj.Trainer(other, resume=trainer.run, **parts)
    assert "--" not in str(error.value)


@pytest.mark.slow
def test_functions_alone_need_no_judge_and_no_references(tmp_path):
    calls = []

    async def source_is_even(completions, source, log_metric, **columns):
        calls.append(len(completions))
        log_metric("even/seen", float(len(completions)))
        return [None if s == "s1" else float(int(s[1:]) % 2 == 0) for s in source]

    class Rows(list):
        """A logger of the user's own."""

        def log(self, step, row):
            self.append((step, row))

    logger = Rows()
    rows = [{name: row[name] for name in ("image", "source")} for row in ROWS]
    stopper = bj.EarlyStopping("heldout/source_is_even", patience=2)
    trainer = bj.Trainer(
        small(tmp_path, steps=9, evaluation=EvaluationConfig(every=1, batch_size=3)),
        train_dataset=rows[:6],
        eval_dataset=rows[6:],
        reward_funcs=source_is_even,
        callbacks=[stopper],
        loggers=[logger],
    )
    run = trainer.train()
    summary = json.loads((run / "summary.json").read_text())
    # s6 is even and s7 is not, whatever the captions: the first evaluation is never beaten
    assert summary["before"]["source_is_even"] == summary["after"]["source_is_even"] == 0.5
    assert "b_capscore" not in summary["before"]
    assert summary["steps"] == 3
    assert "has not improved on 0.5 for 2" in summary["stopped"]
    row = read_jsonl(run / "metrics.jsonl")[0]
    assert row["even/seen"] == 6
    assert not any(name.startswith("reward/precision") for name in row)
    assert [step for step, _ in logger] == [1, 2, 3]
    assert calls[1] == 6  # two images x three captions
    # An early stop is an end: resuming trains no further.
    again = bj.Trainer(
        resume=run, train_dataset=rows[:6], eval_dataset=rows[6:], reward_funcs=source_is_even
    )
    again.train()
    assert json.loads((run / "summary.json").read_text())["steps"] == 3


def test_a_function_that_raises_ends_the_run_saved(tmp_path):
    broken = [True]

    def fragile(completions, trainer_state, id, **columns):  # noqa: A002
        if broken and trainer_state.global_step == 2:
            raise ValueError("no more")
        return short(completions)

    options = {"train_dataset": ROWS[:6], "eval_dataset": ROWS[6:], "reward_funcs": [fragile]}
    trainer = bj.Trainer(small(tmp_path), **options)
    with pytest.raises(bj.UserError, match=r"fragile raised at row 'train-0-\d+'.*no more"):
        trainer.train()
    assert (trainer.run / "checkpoints" / "2").is_dir()
    # What is saved can be used as it is.
    trainer.save_pretrained(tmp_path / "so_far")
    saved = bj.Trainer(small(tmp_path / "other"), model=tmp_path / "so_far")
    sampling = {"max_new_tokens": 8, "temperature": 1.0, "seed": 5}
    captions = trainer.caption([e.image for e in SCENES], **sampling)
    assert captions == saved.caption([e.image for e in SCENES], **sampling)
    before, after = (bj.load_pretrained(f, dtype="float32")[1] for f in (BASE, tmp_path / "so_far"))
    assert _largest_difference(before, after) > 1e-4
    with pytest.raises(bj.UserError, match="has not written its policy yet; finish it with Train"):
        bj.Trainer(small(tmp_path / "third"), model=trainer.run).train()
    broken.clear()
    trainer.train()  # goes on
    assert [row["step"] for row in read_jsonl(trainer.run / "metrics.jsonl")] == [1, 2, 3, 4]


def _largest_difference(one, other):
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_a_judge_of_ones_own(tmp_path):
    class Half(SceneJudge):
        """Half of what the scene judge finds."""

        def __call__(self, examples, captions):
            verdicts = super().__call__(examples, captions)
            return [v._replace(clarity=0.5, fluency=0.5, coherency=0.5) for v in verdicts]

    trainer = bj.Trainer(small(tmp_path, steps=1), judge=Half())
    trainer.train()
    row = read_jsonl(trainer.run / "metrics.jsonl")[0]
    assert row["reward/linguistic/mean"] == 0.5
    assert json.loads((trainer.run / "summary.json").read_text())["judge"]["kind"] == "Half"
    with pytest.raises(bj.UserError, match="was judged by Half, not by scene"):
        bj.Trainer(dataclasses.replace(trainer.config, steps=2), resume=trainer.run).train()


def test_the_command_line_takes_functions(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "def short(completions, **columns):\n"
        "    return [1 / (1 + len(c.split())) for c in completions]\n"
    )
    flags = (
        f"--out {tmp_path} --steps 1 --prompts-per-step 2 --data.heldout 2 "
        "--rollout.group-size 3 --rollout.max-new-tokens 12 --reward.weights 1 1 1 0.5 "
        "--optim.learning-rate 1e-3 --optim.warmup-steps 1 --evaluation.batch-size 3 "
        f"--reward.functions {tmp_path}/mine.py:short"
    )
    assert main(["train", *flags.split()]) == 0
    row = read_jsonl(tmp_path / "balcap" / "metrics.jsonl")[0]
    assert row["reward/short/mean"] > 0
    wrong = flags.replace("mine.py:short", "mine.py:shirt") + " --name other"
    assert main(["train", *wrong.split()]) == 2
    assert "has no function shirt; did you mean short?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"config": {"steps": 2}}, "config is a dict, which must be a TrainConfig"),
        ({"reward_funcs": [short], "reward_weights": [1, 2]}, "has 2 numbers for 1 reward_funcs"),
        ({"reward_funcs": [short, short]}, "names a reward twice"),
        ({"reward_funcs": ["short"]}, "reward_funcs holds 'short', and reward models by name"),
        ({"reward_funcs": "org/model"}, "reward_funcs holds 'org/model', and reward models"),
        ({"loggers": "mlflow"}, "unknown logger 'mlflow'"),
        ({"model": SMALL}, "model is a TrainConfig, which must be a name on the hub, a run or"),
        ({"reward_weights": [1.0]}, "must have one weight for each of the 3 rewards"),
        ({"resume": "nowhere"}, "nowhere is not a run"),
    ],
)
def test_mistakes_are_one_sentence_about_arguments(arguments, said):
    with pytest.raises(bj.UserError, match=said) as error:
        bj.Trainer(**arguments)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)


def test_mistakes_in_data_and_callbacks_leave_no_folder(tmp_path):
    for options, said in (
        ({"train_dataset": [{"image": ROWS[0]["image"]}] * 5}, "set data.heldout below 5"),
        ({"callbacks": [object()]}, "must be a balcap_jax.Callback"),
        ({"model": tmp_path / "none"}, "none' is not a folder"),
    ):
        config = dataclasses.replace(SMALL, out=tmp_path / "runs")
        if "train_dataset" in options:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, heldout=9))
        with pytest.raises(bj.UserError, match=said):
            bj.Trainer(config, **options).train()
        assert not (tmp_path / "runs" / "balcap").exists(), said


def test_one_stands_for_a_list_of_one(tmp_path):
    class Silent(bj.Callback):
        """Does nothing."""

    class Own:
        """A logger of the user's own."""

        def log(self, step, row):
            """Takes nothing."""

    one = bj.Trainer(SMALL, callbacks=Silent, loggers="tensorboard")
    assert [type(c) for c in one._seams.callbacks] == [Silent]
    assert one.config.loggers == ("tensorboard",)
    stopper = bj.EarlyStopping("heldout/b_capscore")
    other = bj.Trainer(
        SMALL, train_dataset=ROWS, eval_dataset=tmp_path / "held.jsonl", callbacks=stopper,
        loggers=Own(),
    )  # fmt: skip
    assert other._seams.callbacks == (stopper,)
    assert [type(logger) for logger in other._seams.loggers] == [Own]
    assert other.config.evaluation.every == 1
    assert other.config.data.heldout_path == str(tmp_path / "held.jsonl")
    assert other._seams.eval_rows is None


def test_early_stopping_by_hand():
    class Run:
        config, step, reason = SMALL, 0, None

        def stop(self, reason):
            self.reason = reason

    def stopped_at(values, **options):
        run, stopping = Run(), bj.EarlyStopping("loss", **options)
        for step, value in enumerate(values):
            stopping.restore(json.loads(json.dumps(stopping.state())))  # as after a resume
            stopping.on_step(run, step, {"loss": value})
            if run.reason:
                return step
        return None

    assert stopped_at([1, 2, 1, 1], patience=2) == 3
    assert stopped_at([1, 2, 1, 3, 1], patience=2) is None
    assert stopped_at([3, 2, 1, 2, 2], patience=2, mode="min") == 4
    assert stopped_at([1, 1.05, 1.08, 1.2], patience=2, min_delta=0.1) == 2
    assert stopped_at([float("nan")] * 3, patience=2) == 1
    with pytest.raises(bj.UserError, match="finds no such number at step 0, known are a"):
        bj.EarlyStopping("loss").on_step(Run(), 0, {"a": 1})
    with pytest.raises(bj.UserError, match="patience of at least 1"):
        bj.EarlyStopping("loss", patience=0)
