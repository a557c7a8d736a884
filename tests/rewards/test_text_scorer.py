"""A policy's decoder as a language model: its logprobs of texts without an image."""

import jax
import numpy as np
import pytest
from small_run import BASE

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.judges import make_judge, resolve_kind
from balcap_jax.rewards.model.fluency import FluentJudge, worst_window
from balcap_jax.rewards.model.text_scorer import TextScorer

REFERENCES = [SceneSource("train", 8)[i].reference for i in range(8)]


@pytest.fixture(scope="module")
def scorer():
    mesh = make_mesh(devices=jax.devices()[:1])
    return TextScorer.load(BASE, mesh=mesh, dtype="float32", prompt=PROMPT)


def test_logprobs_are_those_of_the_plain_forward(scorer):
    policy, params = load_pretrained(BASE)
    processor = Processor.load(BASE)
    texts = [REFERENCES[0], "a red", REFERENCES[1]]
    found = scorer(texts)
    prompt = list(processor.text_row(PROMPT).tokens)
    assert processor.config.image_token_id not in prompt
    for text, logprobs in zip(texts, found, strict=True):
        answer = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = np.array([[*prompt, *answer]])
        logits = policy.logits(params, input_ids=ids, attention_mask=np.ones_like(ids))
        plain = jax.nn.log_softmax(logits[0, len(prompt) - 1 : -1])
        expected = np.take_along_axis(np.asarray(plain), np.array(answer)[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(logprobs, expected, rtol=1e-4, atol=1e-4)


def test_a_text_has_the_same_logprobs_whatever_is_asked_beside_it(scorer):
    alone = scorer([REFERENCES[2]])[0]
    many = scorer([*REFERENCES * 5, "", "a circle"])
    assert len(many) == 42
    assert many[40].size == 0
    np.testing.assert_allclose(many[2], alone, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(many[34], alone, rtol=1e-5, atol=1e-5)


def test_several_devices_find_what_one_finds(scorer):
    mesh = make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
    spread = TextScorer.load(BASE, mesh=mesh, dtype="float32", prompt=PROMPT)
    for one, other in zip(scorer(REFERENCES), spread(REFERENCES), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)


def test_a_longer_text_than_the_policy_has_positions_is_cut(scorer, monkeypatch):
    whole = scorer([REFERENCES[0]])[0]
    monkeypatch.setattr(scorer, "_most", len(scorer._row.tokens) + 5)
    np.testing.assert_allclose(scorer([REFERENCES[0]])[0], whole[:5], rtol=1e-5, atol=1e-5)


def test_it_hears_a_sentence_whose_words_are_out_of_order(scorer):
    words = [text.split() for text in REFERENCES]
    shuffled = [" ".join(np.random.default_rng(i).permutation(w)) for i, w in enumerate(words)]
    right, wrong = ([worst_window(x) for x in scorer(texts)] for texts in (REFERENCES, shuffled))
    assert np.mean(right) > np.mean(wrong) + 2  # nats per token


def photo(references=("A dog runs.",)):
    scene = SceneSource("train", 1)[0]
    return Example("photo", scene.image, PROMPT, references[0], references=references)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "lexical", "fluency": "policy"}, "`balcap train` alone"),
        ({"kind": "llm", "model": "m", "fluency": "policy"}, "no effect with judge.kind='llm'"),
        ({"kind": "scene", "fluency": "policy"}, "no effect with judge.kind='scene'"),
        ({"kind": "lexical", "dtype": "float32"}, "judge.fluency='rules'"),
        ({"kind": "lexical", "fluency": " "}, "must be rules, policy"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, sentence):
    with pytest.raises(UserError) as error:
        make_judge(JudgeConfig(**settings), data=None)
    assert sentence in str(error.value)


def test_a_folder_that_is_none_is_named_with_its_setting(tmp_path):
    with pytest.raises(UserError) as error:
        make_judge(
            JudgeConfig(kind="lexical", fluency=str(tmp_path / "none")),
            data=None, example=photo(), policy=BASE,
        )  # fmt: skip
    assert str(error.value).startswith("judge.fluency=")


def test_scenes_have_the_exact_judge_of_language(scorer):
    with pytest.raises(UserError, match="judge.kind='scene'"):
        resolve_kind(JudgeConfig(fluency="policy"), SceneSource("train", 1)[0])
    with pytest.raises(UserError, match="judge.kind='scene'"):
        make_judge(
            JudgeConfig(kind="model", model=str(BASE), fluency="policy"),
            data="scenes", example=SceneSource("train", 1)[0], policy=BASE,
        )  # fmt: skip


def test_too_few_references_are_refused_before_the_first_step():
    judge = make_judge(
        JudgeConfig(kind="lexical", fluency="policy"), data=None, example=photo(), policy=BASE
    )
    assert isinstance(judge, FluentJudge)
    with pytest.raises(UserError, match="needs 20 references"):
        judge.fit([photo()])
