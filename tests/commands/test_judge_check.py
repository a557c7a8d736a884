"""`balcap judge-check`: a judge that knows is fit, one that guesses or fails is not."""

import hashlib
import json
import random
import re

import numpy as np
import pytest
from judge_server import JudgeServer, Sent, completion

from balcap_jax.cli.main import main
from balcap_jax.commands import judge_check
from balcap_jax.commands.judge_check import Agreement, JudgeCheck, agreement, conclusion
from balcap_jax.commands.known_captions import known_captions
from balcap_jax.config.sections import REWARDS
from balcap_jax.rewards.llm.prompts import clean, typographic, unit_id
from balcap_jax.rewards.scene.judge import judge

KNOWN = known_captions()
EMPTY_WORDS = {"there", "which", "above", "below", "behind", "inside", "under", "against"}


def sent(caption: str) -> str:
    return typographic(clean(caption))


TRUTH = {
    sent(k.caption): judge(k.caption, k.example.scene, k.example.reference) for k in KNOWN
}  # fmt: skip


def quotes(caption: str) -> list[str]:
    words = dict.fromkeys(re.findall(r"\b[a-z]{5,}\b", caption))
    return [word for word in words if word not in EMPTY_WORDS]


def caption_of(body) -> str:
    parts = body["messages"][1]["content"]
    return json.loads(next(p["text"] for p in parts if p.get("text", "")[:1] == "{"))["caption"]


def answered(body, assertions, covered, scores) -> Sent:
    """Assertions by their truth, units by whether they are covered."""
    answer = {
        "assertions": [
            {"quote": quote, "verified": true, "pointable": True}
            for quote, true in zip(quotes(caption_of(body)), assertions, strict=False)
        ],
        "covered": [unit_id(i) for i, is_covered in enumerate(covered) if is_covered],
        **dict(zip(("clarity", "fluency", "coherency"), scores, strict=True)),
    }
    return Sent(completion(json.dumps(answer), body))


def oracle(body, _) -> Sent:
    verdict = TRUTH[caption_of(body)]
    count = len(quotes(caption_of(body)))
    share = sum(a.counted for a in verdict.assertions) / len(verdict.assertions)
    scores = (verdict.clarity, verdict.fluency, verdict.coherency)
    return answered(
        body, [i < round(share * count) for i in range(count)], verdict.covered,
        [round(10 * score) for score in scores],
    )  # fmt: skip


def guesser(body, _) -> Sent:
    rng = random.Random(caption_of(body))
    units = len(TRUTH[caption_of(body)].covered)
    return answered(
        body, [rng.random() < 0.5 for _ in range(500)], [rng.random() < 0.5 for _ in range(units)],
        [rng.randint(0, 10) for _ in range(3)],
    )  # fmt: skip


def check(server, folder, *more) -> int:
    return main([
        "judge-check", "--judge.model", "m", "--judge.base-url", server.url, "--judge.retries", "0",
        "--judge.cache", str(folder / "c.sqlite"), *more,
    ])  # fmt: skip


def test_a_judge_that_knows_is_fit(tmp_path, capsys):
    with JudgeServer(reply=oracle) as server:
        assert check(server, tmp_path) == 0
        assert server.calls == 60  # the units are given
        said = capsys.readouterr().out
        assert "m is fit to be the judge" in said
        assert "on 60 of 60 captions" in said
        ranked = {row[0]: float(row[1]) for row in map(str.split, said.splitlines())
                  if row[:1] and row[0] in REWARDS}  # fmt: skip
        assert min(ranked.values()) > 0.95
        assert len(ranked) == 3
        assert check(server, tmp_path, "--judge.calls", "joint") == 0
        assert server.calls == 60  # answers are kept
        assert "60 answers from the cache" in capsys.readouterr().out
        assert check(server, tmp_path, "--judge.order", "caption_first") == 0
        assert server.calls == 120  # another question
        content = server.requests[-1]["messages"][1]["content"]
        assert content[-1]["text"].startswith("Reference units")


def test_a_judge_that_guesses_is_unfit(tmp_path, capsys):
    with JudgeServer(reply=guesser) as server:
        assert check(server, tmp_path) == 1
    said = capsys.readouterr().out
    assert "m is unfit to be the judge: in precision it ranks 0." in said
    assert "in recall it ranks" in said
    assert "0.70 is the least and 0.50 is chance" in said


def test_a_judge_that_fails_half_is_told_so(tmp_path, capsys):
    with JudgeServer(reply=oracle, fault=lambda n: "schema" if n % 2 else None) as server:
        assert check(server, tmp_path) == 1
    said = capsys.readouterr().out
    assert "on 30 of 60 captions" in said
    assert (
        "no verdict on 30 of 60 captions (an unusable answer: no field 'assertions' (30))" in said
    )
    assert "ranks" not in said.partition("unfit to be the judge")[2]  # what it judged, it judged


def test_a_judge_that_is_not_there_is_a_mistake(tmp_path, capsys):
    with JudgeServer(fault=lambda _: "401") as server:
        assert check(server, tmp_path) == 2
    said = capsys.readouterr().err
    assert "gave no verdict on any of 60 captions: HTTP 401" in said
    assert "BALCAP_JUDGE_KEY" in said
    assert main(["judge-check"]) == 2
    assert "set --judge.model" in capsys.readouterr().err
    assert main(["judge-check", "--judge.kind", "lexical", "--judge.model", "m"]) == 2


IMAGES = ["a", "a", "a", "b", "b", "b"]
RIGHT = np.array([0.0, 0.5, 1.0, 0.2, 0.25, 0.9])


def test_agreement_is_by_pairs_of_one_image():
    same = agreement("recall", RIGHT, RIGHT, IMAGES)
    assert same == Agreement("recall", 1.0, 5, pytest.approx(1.0), 0.0, 0.0)  # .2, .25: too near
    mild = agreement("recall", RIGHT / 2 + 0.5, RIGHT, IMAGES)
    assert (mild.ranked, mild.fit) == (1.0, True)
    assert mild.error == mild.off == pytest.approx((1 - RIGHT).mean() / 2)
    turned = agreement("recall", 1 - RIGHT, RIGHT, IMAGES)
    assert (turned.ranked, turned.fit) == (0.0, False)
    # Knows which image has the better captions, and nothing of the captions.
    constant = agreement("recall", np.array([0.1] * 3 + [0.3] * 3), RIGHT, IMAGES)
    assert (constant.ranked, constant.fit) == (0.5, False)
    assert np.isnan(agreement("recall", np.full(6, 0.5), RIGHT, IMAGES).pearson)


def test_what_has_no_verdict_is_left_out():
    judged = RIGHT.copy()
    judged[[0, 4]] = np.nan
    found = agreement("recall", judged, RIGHT, IMAGES)
    assert (found.ranked, found.pairs, found.error) == (1.0, 2, 0.0)
    nothing = agreement("recall", np.full(6, np.nan), RIGHT, IMAGES)
    assert not nothing.fit


@pytest.mark.parametrize(("answered", "fit"), [(60, True), (54, True), (53, False)])
def test_nine_of_ten_captions_must_have_a_verdict(answered, fit):
    good = Agreement("recall", 0.7, 90, 0.9, 0.0, 0.1)
    found = JudgeCheck(60, answered, "timeout", (good,), {})
    assert (not found.faults) == fit
    assert ("is fit" in conclusion(found, model="m")) == fit
    bad = found._replace(agreements=(good, good._replace(reward="linguistic", ranked=0.69)))
    assert "in linguistic it ranks 0.69 of the pairs right" in conclusion(bad, model="m")


def test_the_known_captions_are_fixed_and_apart():
    assert len(KNOWN) == len(TRUTH) == 60
    assert known_captions()[7].caption == KNOWN[7].caption
    texts = json.dumps([[k.example.id, k.caption, k.example.units] for k in KNOWN])
    # Another set would give other figures of the same judge.
    assert hashlib.sha256(texts.encode()).hexdigest()[:16] == "fec2a4bcb7305e9b"
    truth = np.array([k.rewards for k in KNOWN])
    images = [k.example.id for k in KNOWN]
    for k, reward in enumerate(REWARDS):
        assert agreement(reward, truth[:, k], truth[:, k], images).pairs >= 70, reward
    by_kind = {kind: truth[[k.kind == kind for k in KNOWN]].mean(axis=0) for kind in
               dict.fromkeys(k.kind for k in KNOWN)}  # fmt: skip
    assert by_kind["true"].min() > 0.9
    assert by_kind["short"][1] < 0.5 < by_kind["short"][0]
    assert by_kind["mistaken"][0] < 0.85
    assert by_kind["of another image"][0] < 0.4
    assert by_kind["fragments"][2] < 0.5


@pytest.mark.slow
def test_a_policy_folder_is_measured_and_its_area_comes_first(monkeypatch, capsys):
    monkeypatch.setattr(judge_check, "FITTED_ON", 4)
    command = ["judge-check", "--judge.kind", "model", "--judge.model", "base"]
    assert main([*command, "--judge.dtype", "float32"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("judge base: AUC within images 0.")
    assert "statements of 4 images" in out
    assert "on one-edit negatives its AUC within images is 0." in out  # why it is unfit
    assert "questions asked for" in out
    assert "recall" not in out  # the exact judge's, so there is nothing to measure
