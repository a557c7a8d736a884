"""The judge on the run's own devices: what it asks, and that it is what a plain forward says."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import tiny_llava
from PIL import Image
from small_run import BASE

from balcap_jax.config.commands import ScoreConfig
from balcap_jax.config.judge import JudgeConfig, RecaptionConfig, UnitsConfig
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.prompts.questions import QuestionEncoder
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.captions import precision
from balcap_jax.rewards.judges import make_judge
from balcap_jax.rewards.model.judge import ModelJudge
from balcap_jax.rewards.model.scorer import StatementScorer
from balcap_jax.rewards.model.statements import statements
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.rewards.verdicts import MeteredJudge

SOURCE = SceneSource("train", 3, seed=4)
EXAMPLES = [SOURCE[i] for i in range(3)]
TEXTS = [
    ["red circle", "A blue star is in the top left corner", "two green rings"],
    ["red circle"],
    ["black heart", "a", "white diamond above red cross", "large pink ring", "purple star"],
]


@pytest.fixture(scope="module")
def loaded():
    policy, params = load_pretrained(BASE)
    return policy, params, Processor.load(BASE)


def scorer_of(loaded, *, devices=1, images=8):
    policy, params, processor = loaded
    mesh = make_mesh(devices=jax.devices()[:devices])
    return StatementScorer(policy, params, processor, mesh, images=images)


@pytest.fixture(scope="module")
def scorer(loaded):
    return scorer_of(loaded)


@partial(jax.jit, static_argnums=0)
def plain_forward(policy, params, images, tokens, positions, mask):
    features = policy.encode_images(params, images)
    return policy.token_logits(params, tokens, positions, mask, features)


def alone(loaded, example: Example, text: str) -> float:
    """log P(yes) - log P(no) by the plain forward of the whole prompt."""
    policy, params, processor = loaded
    questions = QuestionEncoder(processor)
    row = questions.row(example._replace(prompt="True of the image, yes or no?"))
    ids = questions.ids(text)
    tokens = np.concatenate([row.tokens, ids]).astype(np.int32)
    further = row.positions[:, -1:] + 1 + np.arange(len(ids))
    positions = np.concatenate([row.positions, further], axis=1)
    end = len(tokens)
    beyond = -end % 32  # nothing, so that all statements are one program
    logits = plain_forward(
        policy, params, jax.tree.map(lambda x: np.asarray(x)[None], row.images),
        np.pad(tokens, (0, beyond))[None], np.pad(positions, ((0, 0), (0, beyond)))[None],
        (np.arange(end + beyond) < end)[None],
    )[0, end - 1]  # fmt: skip
    logprobs = jax.nn.log_softmax(logits)
    yes, no = (jax.nn.logsumexp(logprobs[np.array(ids)]) for ids in questions.answers)
    return float(yes - no)


def test_statements_that_share_an_image_are_as_each_asked_alone(loaded, scorer):
    rows = [scorer.row(example) for example in EXAMPLES]
    found = scorer(rows, TEXTS)
    for b, g in ((0, 1), (1, 0), (2, 2)):
        assert found[b][g] == pytest.approx(alone(loaded, EXAMPLES[b], TEXTS[b][g]), abs=1e-5)
    assert found[0][0] != pytest.approx(found[1][0], abs=1e-3)  # it looks at the image


def test_what_is_asked_at_the_same_time_changes_nothing(loaded, scorer):
    rows = [scorer.row(example) for example in EXAMPLES]
    together = scorer(rows, TEXTS)
    backwards = scorer(rows[::-1], [texts[::-1] for texts in TEXTS[::-1]])
    single = scorer_of(loaded, images=1)(rows, TEXTS)
    for b, of_image in enumerate(together):
        np.testing.assert_allclose(of_image, backwards[2 - b][::-1], atol=1e-5)
        np.testing.assert_allclose(of_image, single[b], atol=1e-5)


def test_eight_devices_are_one(loaded, scorer):
    rows = [scorer.row(example) for example in EXAMPLES]
    eight = scorer_of(loaded, devices=8)(rows, TEXTS)
    for one, other in zip(scorer(rows, TEXTS), eight, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_images_without_statements_are_not_asked(scorer):
    before = scorer.forwards
    found = scorer([scorer.row(EXAMPLES[0])], [[]])
    assert [len(of_image) for of_image in found] == [0]
    assert scorer([], []) == []
    assert scorer.forwards == before


def test_few_tokens_follow_a_statement(loaded, tmp_path):
    tiny_llava.write_processor(tmp_path)
    for processor in (loaded[2], Processor.load(tmp_path)):
        assert len(QuestionEncoder(processor).after) <= 6


# ---- verdicts


CAPTIONS = [
    "A red circle is above a blue star. A red circle is there.",
    "A blue star.",
    "",
    "Lovely.",
]


def test_precision_by_hand_and_each_statement_asked_once(scorer):
    judge = ModelJudge(scorer, SceneJudge(), name="base")
    judge.calibration = judge.calibration._replace(alpha=0.5, beta=0.1)
    examples = [EXAMPLES[0]] * 3 + [EXAMPLES[1]]
    verdicts = judge(examples, CAPTIONS)
    asked = [[s.text for s in statements(caption)] for caption in CAPTIONS]
    spent = judge.lap()
    assert spent["statements"] == sum(map(len, asked))
    assert spent["questions"] == len({*asked[0], *asked[1]}) + len(asked[3])
    assert spent["failures"] == 0
    with_image = scorer([scorer.row(EXAMPLES[0])], [asked[0]])[0]
    blank = scorer.without_image(asked[0])
    np.testing.assert_allclose(blank, scorer([scorer.blank], [asked[0]])[0], atol=1e-4)
    p = 1 / (1 + np.exp(-(with_image - 0.5 * blank + 0.1)))
    w = 1 - 1 / (1 + np.exp(-blank))
    pointable = np.array([s.pointable for s in statements(CAPTIONS[0])])
    assert precision(verdicts[0]) == pytest.approx(np.sum(w * p * pointable) / w.sum(), rel=1e-4)
    assert precision(verdicts[2]) == 0.0  # an empty caption says nothing
    # The others are the judge's that the data have without it.
    exact = SceneJudge()(examples, CAPTIONS)
    for found, known in zip(verdicts, exact, strict=True):
        assert found._replace(assertions=known.assertions) == known
    # Without an image each is asked once for all steps, also of a resumed run.
    other = ModelJudge(scorer, SceneJudge(), name="base")
    other.restore(json.loads(json.dumps(judge.state())))
    before = scorer.forwards
    assert other(examples, CAPTIONS) == verdicts
    assert scorer.forwards - before == spent["calls"] == other.lap()["calls"]
    assert isinstance(judge, MeteredJudge)


def test_no_captions_have_no_verdicts(scorer):
    assert ModelJudge(scorer, SceneJudge(), name="base")([], []) == []


def test_an_image_that_is_refused_and_a_judge_without_signal_are_no_signal(scorer, monkeypatch):
    judge = ModelJudge(scorer, SceneJudge(), name="base")
    thin = EXAMPLES[1]._replace(image=Image.new("RGB", (2000, 1)))
    unknown = EXAMPLES[2]._replace(scene=None)
    found = judge([EXAMPLES[0], thin, unknown], ["A red circle."] * 3)
    assert found[0] is not None
    assert found[1:] == [None, None]
    assert "makes no prompt" in judge.last_failures
    assert judge.lap()["failures"] == 2


def test_the_fit_is_on_one_edit_negatives_and_a_blind_judge_is_refused(scorer):
    judge = ModelJudge(scorer, SceneJudge(), name="base")
    found = judge.calibrate(EXAMPLES)
    assert found == judge.calibration
    assert found.images == 3
    assert found.statements >= 12
    judge.calibration = found._replace(auc=0.69)
    with pytest.raises(UserError) as error:
        judge.check()
    assert "with AUC 0.69" in str(error.value)
    judge.calibration = found._replace(auc=float("nan"))
    with pytest.raises(UserError):
        judge.check()
    judge.calibration = found._replace(auc=0.70)
    judge.check()


def test_data_without_anything_to_change_cannot_be_measured(scorer):
    judge = ModelJudge(scorer, SceneJudge(), name="base")
    wordless = EXAMPLES[0]._replace(scene=None, reference="Wow.")
    with pytest.raises(UserError) as error:
        judge.calibrate([wordless])
    assert "cannot be measured" in str(error.value)


# ---- folders that are no judge


def judged_by(folder, **changes):
    config = JudgeConfig(kind="model", model=str(folder), **changes)
    return make_judge(config, data="scenes", example=EXAMPLES[0])


def broken(tmp_path, change) -> str:
    folder = tmp_path / "judge"
    shutil.copytree(BASE, folder)
    change(folder)
    return str(folder)


def another_family(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_letters(folder):
    """A tokenizer that writes all words of yes and no with one token."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = None
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": ".+"}, "content": "a"}
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (another_family, "gpt2"),
        (no_tokenizer, "tokenizer.json"),
        (no_letters, "no token that 'yes' alone begins with"),
    ],
)
def test_a_folder_that_is_no_judge_is_one_sentence(change, said, tmp_path):
    folder = broken(tmp_path, change)
    with pytest.raises(UserError) as error:
        judged_by(folder)
    sentence = str(error.value)
    assert sentence.startswith(f"judge.model={folder!r}")
    assert said in sentence
    assert "\n" not in sentence


def test_a_folder_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(UserError) as error:
        judged_by(tmp_path / "nothing")
    assert "is not a folder" in str(error.value)
    with pytest.raises(UserError) as error:
        JudgeConfig(kind="model")
    assert "judge.model" in str(error.value)
    with pytest.raises(UserError) as error:
        JudgeConfig(kind="lexical", own_policy=True)
    assert "has no effect" in str(error.value)


def test_each_of_several_hosts_judges_on_its_own_devices(monkeypatch):
    """A program over the devices of all hosts would wait for captions that others do not have."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[2:4])
    judge = judged_by("base")
    assert judge._scorer._mesh.devices.flatten().tolist() == jax.devices()[2:4]
    assert dict(judge._scorer._mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 1}


def test_commands_that_cannot_use_it_refuse_it():
    model = {"judge.kind": "model", "judge.model": "base"}
    for kind, values in (
        (ScoreConfig, {"input": "a.jsonl", "output": "b.jsonl"}),
        (UnitsConfig, {"data": "a.jsonl"}),
        (RecaptionConfig, {"data": "a.jsonl", "out": "b.jsonl"}),
    ):
        with pytest.raises(UserError) as error:
            kind.of(values | model)
        assert "judge.kind" in str(error.value)


def test_weights_are_kept_in_bfloat16_by_default():
    judge = judged_by("base")
    leaves = jax.tree.leaves(judge._scorer._params)
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}
    [verdict] = judge([EXAMPLES[0]], ["A red circle."])
    assert 0.0 <= precision(verdict) <= 1.0
    assert dataclasses.replace(JudgeConfig(), kind="auto").dtype == "bfloat16"
