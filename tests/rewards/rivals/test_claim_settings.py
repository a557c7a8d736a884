"""Settings of rubric, claims and claim_diff, and the three on scenes without an endpoint."""

import numpy as np
import pytest

from balcap_jax.config.base import from_dict
from balcap_jax.config.reward import RewardConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import Completions, TrainerState
from balcap_jax.rewards.rivals.claim_diff_modes import comparison_reward
from balcap_jax.rewards.rivals.rivals import make_rivals, resolve_reward_judge
from balcap_jax.rewards.rivals.scene_differences import scene_comparison
from balcap_jax.rewards.rivals.scene_rubrics import starting_caption

STATE = TrainerState(global_step=0, max_steps=1, epoch=0.0)


def settings(*rivals, **changes):
    return from_dict(RewardConfig, {"names": [], "rivals": list(rivals)} | changes)


@pytest.mark.parametrize(
    ("rivals", "changes", "said"),
    [
        (["claim_diff"], {"claim_diff.mode": "normalised"}, "claim_diff.mode"),
        (["claim_diff"], {"claim_diff.severity": "3"}, "claim_diff.severity"),
        (
            ["claim_diff"],
            {"claim_diff.mode": "judgment_based", "claim_diff.severity": "judge"},
            "counts no errors",
        ),
        (["claims"], {"claims.judges": ["a", "a"]}, "names a model twice"),
        (["claims"], {"claims.judges": [""]}, "an empty name"),
        (["claims"], {"claims.vote": "most"}, "claims.vote"),
        (["claims"], {"claim_diff.mode": "a_only"}, "no effect without claim_diff"),
        (["rubric"], {"claims.vote": "mean"}, "no effect without claims"),
        (["claims"], {"rubric.file": "a.jsonl"}, "no effect without rubric"),
        (["rubrics"], {}, "did you mean rubric"),
    ],
)
def test_bad_settings_are_one_sentence(rivals, changes, said):
    with pytest.raises(UserError, match=said) as error:
        settings(*rivals, **changes)
    assert "\n" not in str(error.value)


def made(config, examples):
    config = resolve_reward_judge(config, examples[0])
    return make_rivals(config, seed=0, data="scenes", example=examples[0])


def test_scenes_need_no_endpoint():
    examples = [SceneSource("train", 12)[i] for i in range(12)]
    start = [starting_caption(example.scene) for example in examples]
    best = [example.reference for example in examples]
    rivals = made(settings("rubric", "claims", "claim_diff"), examples)
    assert not rivals.metered
    found = [rivals(Completions(examples, texts, [[1]] * 12), STATE) for texts in (start, best)]
    low, high = (scores.rewards for scores in found)
    for i, example in enumerate(examples):  # what the samples tell of a perfect caption
        count = len(example_units(example))
        assert found[1].extra["claims_correct"][i] == f"{count} of {count}"
        assert set(found[1].extra["rubric_marks"][i]) <= {"1"}
        assert set(found[0].extra["rubric_marks"][i]) <= {"0"}
        nothing = "0 wrong, reference 0 wrong, 0 differences"
        assert found[1].extra["claim_diff_counts"][i] == nothing
    names = dict(zip(rivals.names, range(4), strict=True))
    assert np.isnan(low[:, names["rubric"]]).sum() <= 2  # of a start that fails nothing
    assert np.nanmax(low[:, names["rubric"]]) == 0  # criteria are what it fails
    assert np.nanmin(high[:, names["rubric"]]) == 1
    assert (high[:, names["claims_precision"]] == 1).all()
    assert low[:, names["claims_precision"]].mean() < 1
    assert (high[:, names["claims_recall"]] == [len(example_units(e)) for e in examples]).all()
    assert (high[:, names["claim_diff"]] == 0.5).all()
    assert low[:, names["claim_diff"]].mean() < 0.4


def example_units(example):
    from balcap_jax.rewards.scene.judge import SceneJudge

    return SceneJudge().reference_units(example)


def test_modes_and_factors_reach_scenes():
    example = SceneSource("train", 1)[0]
    caption = f"{starting_caption(example.scene)} Possibly red or blue or green."
    completions = Completions([example], [caption], [[1]])
    found = scene_comparison(caption, example.reference, example.scene)
    for mode in ("normalized_a_only", "raw_diff"):
        for severity in ("off", "judge"):
            config = settings(
                "claim_diff", **{"claim_diff.mode": mode, "claim_diff.severity": severity}
            )
            (value,) = made(config, [example])(completions, STATE).rewards[0]
            assert value == pytest.approx(comparison_reward(found, mode, severity=severity))
    plain, hedged = (
        made(settings("claim_diff", **{"claim_diff.ambiguity": on}), [example])(
            completions, STATE
        ).rewards[0, 0]
        for on in (False, True)
    )
    # 3 hedges; one in 90 words costs nothing
    assert hedged == pytest.approx(plain * np.exp(-0.1 * (3 - len(caption.split()) / 90)), rel=1e-5)
    every = made(settings("rubric", **{"rubric.scene": "all"}), [example])
    some = made(settings("rubric"), [example])
    values = [rivals(completions, STATE).rewards[0, 0] for rivals in (every, some)]
    assert values[0] > values[1]


def test_what_scenes_have_not_is_one_sentence():
    example = SceneSource("train", 1)[0]
    for config, said in (
        (settings("claim_diff", **{"claim_diff.mode": "holistic"}), "is an impression"),
        (settings("rubric", **{"rubric.file": "a.jsonl"}), "made of the scenes' truth"),
        (settings("claims", **{"claims.judges": ["a"]}), "whose rules verify alone"),
    ):
        with pytest.raises(UserError, match=said):
            made(config, [example])
    with pytest.raises(UserError, match="has no reference caption"):
        made(settings("claim_diff"), [example._replace(reference=" ")])
