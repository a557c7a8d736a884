"""rubric, claims and claim_diff by models at an endpoint: values by hand, and through faults."""

import hashlib
import json
import math

import numpy as np
import pytest
from judge_server import JudgeServer, outage, schedule
from PIL import Image

from balcap_jax.config.base import from_dict, merged
from balcap_jax.config.reward import RewardConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import Completions, RewardFunctionError, TrainerState
from balcap_jax.rewards.rivals.claim_diff_questions import CHECK, COMPARE, HOLISTIC
from balcap_jax.rewards.rivals.claim_questions import SPLIT, VERIFY
from balcap_jax.rewards.rivals.rivals import make_rivals
from balcap_jax.rewards.rivals.rubric_questions import JUDGE

STATE = TrainerState(global_step=3, max_steps=10, epoch=0.0)
IMAGES, GROUP = 3, 4
EXAMPLES = [
    Example(str(i), Image.new("RGB", (32 + i, 32)), "Describe.", f"Car {i} is blue. It rains.")
    for i in range(IMAGES)
]
PAIRS = [
    (example, f"A car is red. Number {g} is here. Picture {example.id} shows it.")
    for example in EXAMPLES
    for g in range(GROUP)
]
COMPLETIONS = Completions(
    [example for example, _ in PAIRS], [caption for _, caption in PAIRS], [[1, 2]] * len(PAIRS)
)
TWO = Completions(*(column[:2] for column in COMPLETIONS))
CRITERIA = [("Says the car is red.", 3), ("Names rain.", 2), ("Says where it stands.", 1)]
JUDGES = ("one", "two", "three")


def number(*texts):
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8], "big")


def marked(*texts):
    return number(*texts) % 3 > 0


def differences(a, b):
    """(is A wrong, is B wrong) of each difference between two captions."""
    return [
        (number(a, b, str(i)) % 2 > 0, number(b, a, str(i)) % 3 > 1)
        for i in range(1 + number(a, b) % 4)
    ]


def user_text(body):
    content = body["messages"][1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def answer(body):
    """What the server says, by the content of the request alone."""
    system, text = body["messages"][0]["content"], user_text(body)
    if system == SPLIT.instructions:
        sentences = json.loads(text)["caption"].split(". ")
        return json.dumps({"units": [sentence.rstrip(".") for sentence in sentences]})
    if system in (VERIFY.instructions, JUDGE.instructions):
        listing, _, rest = text.partition("\n")
        items = json.loads(listing.partition(": ")[2])
        context = (
            (body["model"],) if system == VERIFY.instructions else (json.loads(rest)["caption"],)
        )
        return json.dumps({
            "marks": [
                {"id": item["id"], "met": int(marked(*context, list(item.values())[1]))}
                for item in items
            ]
        })  # fmt: skip
    told = json.loads(text)
    found = differences(told["caption_a"], told["caption_b"])
    if system == HOLISTIC.instructions:
        return f"SCORE: {number(text) % 11}\nRATIONALE: so it seems"
    if system == CHECK.instructions:
        return "\n".join(
            f"[DIFFERENCE {n}]\nTYPE: {'missing_fact' if b else 'contradiction'}\nCONTENT: x\n"
            f"VERIFICATION: {'missing' if b else 'false' if a else 'verified'}"
            for n, (a, b) in enumerate(found, start=1)
        )
    assert system == COMPARE.instructions
    blocks = [
        f"[DIFFERENCE {n}]\nASPECT: x\nCAPTION_A_CLAIM: y\nCAPTION_B_CLAIM: z\n"
        "JUDGMENT: both_wrong\n"
        f"CAPTION_A_ERROR:\nERROR_TYPE: {'x_omission' if a else 'NONE'}\nERROR_DETAIL: w\n"
        f"CAPTION_B_ERROR:\nERROR_TYPE: {'x_omission' if b else 'NONE'}\nERROR_DETAIL: w"
        for n, (a, b) in enumerate(found, start=1)
    ]
    return "\n\n".join([*blocks, "[OVERALL_WINNER]\nTie"])


def expected():
    """The rewards of rubric, claims and claim_diff, [n, 4]."""
    rows = []
    for example, caption in PAIRS:
        rubric = sum(w for text, w in CRITERIA if marked(caption, text)) / 6
        units = [sentence.rstrip(".") for sentence in caption.split(". ")]
        correct = [sum(marked(judge, unit) for judge in JUDGES) >= 2 for unit in units]
        pairs = differences(caption, example.reference)
        a, b = (sum(column) for column in zip(*pairs, strict=True))
        rows.append((rubric, np.mean(correct), sum(correct), 0.5 - 0.5 * (a - b) / len(pairs)))
    return np.array(rows, np.float32)


@pytest.fixture
def rubrics(tmp_path):
    path = tmp_path / "rubrics.jsonl"
    listed = [{"text": text, "severity": w} for text, w in CRITERIA]
    path.write_text("".join(json.dumps({"id": e.id, "criteria": listed}) + "\n" for e in EXAMPLES))
    return path


def settings(server, rubrics, **changes):
    given = {
        "names": [], "rivals": ["rubric", "claims", "claim_diff"],
        "rubric.file": str(rubrics), "claims.judges": list(JUDGES),
        "judge.kind": "llm", "judge.model": "m", "judge.base_url": server.url,
        "judge.cache": str(rubrics.parent / "cache.sqlite"), "judge.timeout": 60.0,
        "judge.backoff": 0.002, "judge.retries": 20, "judge.concurrency": 16,
    } | changes  # fmt: skip
    return from_dict(RewardConfig, {k: v for k, v in given.items() if v is not None})


def scored(config, completions=COMPLETIONS):
    rivals = make_rivals(config, seed=0, data=None, example=EXAMPLES[0])
    try:
        return rivals(completions, STATE).rewards, rivals
    finally:
        rivals.close()


def test_rewards_are_those_computed_by_hand(rubrics):
    truth = expected()
    assert len(np.unique(truth[:, 0])) > 2
    assert len(np.unique(truth[:, 3])) > 2
    with JudgeServer(answer=answer) as server:
        rewards, rivals = scored(settings(server, rubrics))
        # Of each caption: rubric, splitting and comparison, and every judge of its units.
        assert server.calls == len(PAIRS) * (1 + 1 + 1 + len(JUDGES))
        plain = [r for r in server.requests if r["messages"][0]["content"] == COMPARE.instructions]
        assert "response_format" not in plain[0]  # the answer is no JSON
        blind = [r for r in server.requests if r["messages"][0]["content"] == JUDGE.instructions]
        assert all(isinstance(r["messages"][1]["content"], str) for r in blind)  # text alone
        again, _ = scored(settings(server, rubrics))
        assert server.calls == len(PAIRS) * (1 + 1 + 1 + len(JUDGES))  # all from the cache
    np.testing.assert_allclose(rewards, truth, atol=1e-6)
    np.testing.assert_array_equal(again, rewards)
    assert rivals.names == ("rubric", "claims_precision", "claims_recall", "claim_diff")


def test_faults_change_nothing(rubrics):
    with JudgeServer(answer=answer, fault=schedule) as server:
        rewards, _ = scored(settings(server, rubrics))
        assert server.faults["500"] > 2
        assert server.faults["schema"] > 1
        assert server.faults["half"] > 1
    np.testing.assert_allclose(rewards, expected(), atol=1e-6)


def test_a_failed_judge_is_no_signal_and_a_zero_only_if_asked_for(rubrics):
    changes = {"judge.retries": 1, "judge.concurrency": 1}
    with JudgeServer(answer=answer, fault=outage(after=40)) as server:
        rewards, rivals = scored(settings(server, rubrics, **changes))
        assert rivals.last_failures
        lost = np.isnan(rewards)
        assert 0 < lost.sum() < lost.size
        np.testing.assert_allclose(rewards[~lost], expected()[~lost], atol=1e-6)
        np.testing.assert_array_equal(lost[:, 1], lost[:, 2])  # one question, both rewards
        (rubrics.parent / "cache.sqlite").unlink()
        server.fault = outage(after=0)
        zero, _ = scored(settings(server, rubrics, failure="zero", **changes))
    np.testing.assert_array_equal(zero, np.zeros_like(zero))


@pytest.mark.parametrize(
    "said",
    [
        '{"marks": []}',
        '{"marks": [{"id": "m01", "met": 1}]}',
        json.dumps({"marks": [{"id": f"m{i:02d}", "met": 1} for i in range(1, 9)]}),
        "[DIFFERENCE 1]\nJUDGMENT: A\n[OVERALL_WINNER]\nA",
        "SCORE: 12",
        "{}",
        "",
    ],
)
def test_an_answer_that_does_not_fit_is_no_number(rubrics, said):
    with JudgeServer(answer=lambda _: said) as server:
        config = settings(server, rubrics, **{"judge.retries": 1})
        assert np.isnan(scored(config, TWO)[0]).all()
        alone = {"rivals": ["claim_diff"], "rubric.file": "", "claims.judges": []}
        for mode in ("hall_vs_miss", "holistic"):
            config = settings(server, rubrics, **alone, **{"claim_diff.mode": mode})
            config = merged(config, {"judge.retries": 0})
            assert np.isnan(scored(config, TWO)[0]).all()


def test_one_judge_of_several_that_fails_is_no_signal(rubrics):
    def without_two(body):
        return "no" if body["model"] == "two" else answer(body)

    changes = {"rivals": ["claims"], "rubric.file": "", "judge.retries": 1}
    with JudgeServer(answer=without_two) as server:
        assert np.isnan(scored(settings(server, rubrics, **changes))[0]).all()


@pytest.mark.parametrize("mode", ["hall_vs_miss", "holistic", "a_only"])
def test_other_modes_of_claim_diff(rubrics, mode):
    changes = {"rivals": ["claim_diff"], "rubric.file": "", "claims.judges": []}
    with JudgeServer(answer=answer) as server:
        rewards, _ = scored(settings(server, rubrics, **changes, **{"claim_diff.mode": mode}))
        texts = {
            json.loads(user_text(body))["caption_a"]: user_text(body) for body in server.requests
        }
    for (example, caption), (reward,) in zip(PAIRS, rewards, strict=True):
        found = differences(caption, example.reference)
        by_hand = {
            "a_only": 1 - sum(a for a, _ in found) / 10,
            "hall_vs_miss": 1 - sum(a or b for a, b in found) / len(found),
            "holistic": number(texts[caption]) % 11 / 10,
        }
        assert reward == pytest.approx(by_hand[mode], abs=1e-6)


def test_empty_captions_and_empty_rubrics(rubrics):
    rubrics.write_text(json.dumps({"id": "0", "criteria": []}) + "\n")
    with JudgeServer(answer=answer) as server:
        config = settings(server, rubrics, rivals=["rubric", "claims"])
        rewards, rivals = scored(config, Completions([EXAMPLES[0]], [" \u200b"], [[1]]))
        assert server.calls == 0  # no criteria to judge, no units to verify
    assert math.isnan(rewards[0, 0])
    assert list(rewards[0, 1:]) == [0, 0]
    assert rivals.last_failures == ""


def test_an_image_without_rubric_is_one_sentence(rubrics):
    first, *rest = rubrics.read_text().splitlines(keepends=True)
    rubrics.write_text(first)
    with JudgeServer(answer=answer) as server:
        rivals = make_rivals(settings(server, rubrics), seed=0, data=None, example=EXAMPLES[0])
        with pytest.raises(RewardFunctionError, match="The reward rubric: .* no rubric of .* '1'"):
            rivals(COMPLETIONS, STATE)
        rivals.close()
        assert server.calls == 0
        with pytest.raises(UserError, match="no rubric of the image '2'"):
            make_rivals(settings(server, rubrics), seed=0, data=None, example=EXAMPLES[2])
        for file, said in (("none.jsonl", "none.jsonl"), ("", "no file")):
            config = settings(server, rubrics, **{"rubric.file": file})
            with pytest.raises(UserError, match=f"finds no rubrics .*{said}"):
                make_rivals(config, seed=0, data=None, example=EXAMPLES[0])


def test_settings_of_scenes_are_refused_beside_a_file(rubrics):
    with JudgeServer(answer=answer) as server:
        config = settings(server, rubrics, **{"rubric.scene": "all"})
        with pytest.raises(UserError, match="judges by rubrics in a file"):
            make_rivals(config, seed=0, data=None, example=EXAMPLES[0])


def test_rubrics_beside_the_data_are_found(rubrics):
    data = rubrics.parent / "data.jsonl"
    rubrics.rename(f"{data}.rubrics.jsonl")
    with JudgeServer(answer=answer) as server:
        config = settings(
            server, rubrics, rivals=["rubric"], **{"rubric.file": "", "claims.judges": []}
        )
        rivals = make_rivals(config, seed=0, data=str(data), example=EXAMPLES[0])
        np.testing.assert_allclose(rivals(COMPLETIONS, STATE).rewards, expected()[:, :1], atol=1e-6)
        rivals.close()
