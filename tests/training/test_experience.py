"""From captions to advantages on the host's side."""

import dataclasses

import numpy as np
import pytest

from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import RLConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.errors import UserError
from balcap_jax.rewards.callables import Completions, TrainerState
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.rl.advantages import gdpo_advantages, grpo_advantages, rloo_advantages
from balcap_jax.training import experience
from balcap_jax.training.experience import advantages_of, reward_captions, sample_rows
from balcap_jax.training.judge_queue import JudgeQueue

JUDGE = SceneJudge()
NAN = np.nan
STATE = TrainerState(global_step=0, max_steps=1, epoch=0.0)
SOURCE = SceneSource("train", 4)


def judged(config=None, captions=None, judge=JUDGE, per_word=2, reference_per_word=2, study=None):
    """Of two images; lengths in tokens are those in words times `per_word`."""
    examples = [SOURCE[0], SOURCE[1]]
    if captions is None:
        # The reference, its first sentence, and the reference three times over.
        captions = [
            [e.reference, e.reference.split(".")[0] + ".", " ".join([e.reference] * 3)]
            for e in examples
        ]
    counts = np.array([[len(c.split()) for c in texts] for texts in captions]) * per_word
    reference_tokens = np.array([len(e.reference.split()) for e in examples]) * reference_per_word
    pairs = [(e, c) for e, texts in zip(examples, captions, strict=True) for c in texts]
    completions = Completions([e for e, _ in pairs], [c for _, c in pairs], [[1]] * len(pairs))
    answered = JudgeQueue(judge, background=False).score(completions, STATE)
    return reward_captions(
        answered,
        examples,
        captions,
        counts,
        reference_tokens,
        config or RewardConfig(),
        study=study,
    )


def test_mask_acts_on_the_linguistic_reward_alone_and_before_normalisation():
    found = judged()
    np.testing.assert_array_equal(found.rewards[..., 0], found.kept[..., 0])
    np.testing.assert_array_equal(found.rewards[..., 1], found.kept[..., 1])
    # References are perfect; a single sentence is shorter than half, three times over is longer
    # than 2.
    np.testing.assert_array_equal(found.rewards[:, 0], 1.0)
    np.testing.assert_array_equal(found.kept[:, 0], 1.0)
    assert (found.rewards[:, 1, 2] > 0.9).all()
    np.testing.assert_array_equal(found.kept[:, 1:, 2], 0.0)


def test_mask_can_drop_instead():
    found = judged(RewardConfig(mask_mode="drop"))
    assert np.isnan(found.kept[:, 1:, 2]).all()
    assert found.valid.all()  # precision and recall still speak


def test_a_host_may_have_nothing_to_judge():
    class Never(SceneJudge):
        def __call__(self, examples, captions):
            raise AssertionError("there is nothing to judge")

    queue = JudgeQueue(Never(), background=False)
    answered = queue.hand_in(Completions([], [], []), STATE).result()
    assert answered.verdicts == []
    counts = np.zeros((0, 3), np.int32)
    nothing = reward_captions(answered, [], [], counts, np.zeros(0), RewardConfig())
    assert nothing.rewards.shape == nothing.kept.shape == (0, 3, 3)
    assert nothing.valid.shape == nothing.words.shape == (0, 3)


def test_lengths_in_tokens_give_the_same_rho_here():
    # Twice as many tokens as words on both sides.
    words, tokens = judged(), judged(RewardConfig(length_unit="tokens"))
    np.testing.assert_array_equal(tokens.lengths, 2 * words.lengths)
    np.testing.assert_array_equal(tokens.kept, words.kept)
    np.testing.assert_array_equal(tokens.words, words.words)


def test_lengths_in_tokens_are_compared_with_the_reference_in_tokens():
    """Captions of 1 to 4 tokens a word, references of 3: rho by hand, in either unit."""
    per_word = np.array([[1, 2, 4], [3, 2, 1]])
    found = judged(RewardConfig(length_unit="tokens"), per_word=per_word, reference_per_word=3)
    words = judged(RewardConfig())
    rho = words.lengths / words.reference_lengths[:, None]
    np.testing.assert_allclose(
        found.lengths / found.reference_lengths[:, None], rho * per_word / 3, rtol=1e-6
    )
    inside = (rho * per_word / 3 >= 0.5) & (rho * per_word / 3 <= 2)
    np.testing.assert_array_equal(found.kept[..., 2], np.where(inside, found.rewards[..., 2], 0))
    assert (inside != ((rho >= 0.5) & (rho <= 2))).any()


def test_the_linear_control_takes_its_coefficient():
    reward = RewardConfig(length_control="linear", linear_coefficient=0.25)
    found = judged(reward)
    rho = found.lengths / found.reference_lengths[:, None]
    expected = found.rewards[..., 2] - 0.25 * np.abs(rho - 1)
    np.testing.assert_allclose(found.kept[..., 2], expected, rtol=1e-5)


def test_a_caption_whose_only_reward_is_dropped_is_not_learned_from():
    reward = RewardConfig(names=("linguistic",), weights=(1.0,), mask_mode="drop")
    found = judged(reward)
    assert not np.isnan(found.rewards).any()
    # The references stay; too short and too long captions have nothing left.
    np.testing.assert_array_equal(found.valid, [[True, False, False]] * 2)


def test_length_control_none_changes_nothing():
    found = judged(RewardConfig(length_control="none"))
    np.testing.assert_array_equal(found.rewards, found.kept)


class Silent(SceneJudge):
    """Fails on every second caption."""

    def __call__(self, examples, captions):
        verdicts = super().__call__(examples, captions)
        return [None if i % 2 else verdict for i, verdict in enumerate(verdicts)]


def test_a_failed_judge_is_nan_even_where_the_mask_would_write_a_zero():
    found = judged(judge=Silent())
    lost = np.array([[False, True, False], [True, False, True]])
    np.testing.assert_array_equal(np.isnan(found.kept).all(axis=-1), lost)
    np.testing.assert_array_equal(found.valid, ~lost)
    advantages = advantages_of(found, RewardConfig(), RLConfig())
    assert (np.asarray(advantages)[lost] == 0).all()
    queue = JudgeQueue(JUDGE, background=False)
    rows = sample_rows(found, queue, RewardConfig(), images=2)
    assert [row["verdict"] is None for row in rows] == lost.reshape(-1).tolist()


def test_settings_choose_the_advantage():
    found = judged()
    reward = RewardConfig(weights=(1.0, 2.0, 0.5))
    np.testing.assert_allclose(
        advantages_of(found, reward, RLConfig(whiten=False, ddof=0)),
        gdpo_advantages(found.kept, weights=np.array([1, 2, 0.5]), whiten=False, ddof=0),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        advantages_of(found, reward, RLConfig(advantage="grpo", grpo_scale="batch")),
        grpo_advantages(found.kept, weights=np.array([1, 2, 0.5]), scale="batch"),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        advantages_of(found, reward, RLConfig(advantage="rloo")),
        rloo_advantages(found.kept, weights=np.array([1, 2, 0.5])),
        rtol=1e-6,
    )
    gdpo = np.asarray(advantages_of(found, reward, RLConfig()))
    for preset in ("trl", "nvlabs", "verl", "nemo", "swift"):
        other = np.asarray(advantages_of(found, reward, RLConfig(advantage=preset)))
        # One rollout, five conventions: the order of the captions is the same in all of them.
        np.testing.assert_array_equal(other.argmax(axis=1), gdpo.argmax(axis=1))


def with_rival(values, weights):
    """The judged captions with a column of a rival, and their settings."""
    reward = RewardConfig(rivals=("qa_utility",), weights=weights)
    plain = judged()
    column = np.array(values, np.float32)[..., None]
    both = {
        name: np.concatenate([getattr(plain, name), column], axis=-1)
        for name in ("rewards", "studied", "kept")
    }
    taught = tuple(weight > 0 for weight in weights)
    return plain._replace(**both, by_rivals=1, taught=taught), reward


RIVAL = [[0.5, NAN, 0.25], [NAN, NAN, 0.75]]


def test_a_caption_that_has_only_what_is_watched_is_not_learned_from():
    found, reward = with_rival(RIVAL, (0.0, 0.0, 0.0, 1.0))
    np.testing.assert_array_equal(found.valid, ~np.isnan(RIVAL))
    for advantage in ("gdpo", "grpo", "rloo", "trl"):
        got = np.asarray(advantages_of(found, reward, RLConfig(advantage=advantage)))
        # Of the second image one caption has a reward: nothing to compare it with.
        np.testing.assert_array_equal(got != 0, [[True, False, True], [False, False, False]])
    rloo = advantages_of(found, reward, RLConfig(advantage="rloo"))
    np.testing.assert_allclose(rloo[0], [0.25, 0, -0.25])
    # Trained on beside the judge's, all are learned from.
    found, _ = with_rival(RIVAL, (1.0, 1.0, 1.0, 1.0))
    assert found.valid.all()


def test_the_share_of_lost_captions_is_that_of_the_worst_source():
    found, _ = with_rival(RIVAL, (1.0, 1.0, 1.0, 1.0))
    assert found.lost == pytest.approx(0.5)
    silent = np.where(np.eye(2, 3, dtype=bool)[..., None], found.rewards, NAN)
    assert found._replace(rewards=silent).lost == pytest.approx(5 / 6)
    assert judged().lost == 0.0
    # Functions alone: captions that none of them has a reward for.
    functions = found._replace(by_judge=0, by_rivals=0)
    assert functions.lost == 0.0


def test_rollout_metrics_count_what_they_say():
    found = judged(judge=Silent())
    row = experience.rollout_metrics(
        found, np.array([[True, True, False], [True, True, True]]), np.ones((2, 3)), RewardConfig()
    )
    assert row["no_signal"] == pytest.approx(0.5)
    assert row["truncated"] == pytest.approx(1 / 6)
    assert row["reward/linguistic/no_signal"] == pytest.approx(0.5)
    # Judged: reference and thrice of image 0, sentence of image 1; the last two are out of range.
    assert row["reward/linguistic/masked"] == pytest.approx(2 / 3)
    assert row["advantage/rms"] == pytest.approx(1.0)


def test_a_study_changes_what_is_learned_from_and_not_what_is_logged():
    plain = judged()
    found = judged(study=lambda rewards: 0.8 + 0.2 * (rewards - 0.8))
    np.testing.assert_array_equal(found.rewards, plain.rewards)
    np.testing.assert_allclose(found.studied, 0.8 + 0.2 * (plain.rewards - 0.8), rtol=1e-6)
    # The length control comes after it: a masked reward is 0, not 0.64.
    np.testing.assert_array_equal(found.kept[:, 1:, 2], 0.0)
    np.testing.assert_array_equal(found.kept[..., :2], found.studied[..., :2])
    ended = np.ones((2, 3), bool)
    rows = [
        experience.rollout_metrics(which, ended, np.ones((2, 3)), RewardConfig())
        for which in (plain, found)
    ]
    assert rows[0] == rows[1]


def test_without_pointability_commentary_is_precise():
    calm = "The composition creates a sense of balance."
    captions = [[e.reference, f"{e.reference} {calm}", calm] for e in (SOURCE[0], SOURCE[1])]
    exact = judged(captions=captions).rewards[..., 0]
    without = judged(RewardConfig(pointability=False), captions=captions).rewards[..., 0]
    np.testing.assert_array_equal(exact[:, [0, 2]], [[1, 0], [1, 0]])
    assert (exact[:, 1] < 1).all()
    np.testing.assert_array_equal(without, 1.0)


def test_pointability_of_a_reward_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="acts on the precision reward"):
        RewardConfig(names=("recall", "linguistic"), pointability=False)


@pytest.mark.parametrize("rl", [RLConfig(), RLConfig(advantage="grpo"), RLConfig(advantage="trl")])
def test_balance_is_logged_of_what_the_advantages_are_made_of(rl):
    found, reward = judged(), RewardConfig(weights=(1.0, 2.0, 0.5))
    weights = np.float32(reward.all_weights)
    spread = experience.spread_of(found, rl)
    row = experience.balance_metrics(found, reward, rl, weights=weights, spread=spread)
    shares = [row[f"balance/{name}"] for name in reward.names]
    assert sum(shares) == pytest.approx(1, rel=1e-5)
    # Twice the weight, twice the part.
    double = experience.balance_metrics(
        found, reward, rl, weights=weights * np.float32([2, 1, 1]), spread=spread
    )
    odds = [r["balance/precision"] / r["balance/recall"] for r in (row, double)]
    assert odds[1] == pytest.approx(2 * odds[0], rel=1e-4)
    # Of the rewards after the length control, by numpy.
    stds = found.kept.std(axis=1, ddof=1).mean(axis=0)
    got = [row[f"reward/{name}/group_std"] for name in reward.names]
    np.testing.assert_allclose(got, stds, rtol=1e-4, atol=1e-6)
    assert "weight/precision" not in row
    if rl.advantage == "grpo":
        estimated = dataclasses.replace(rl, grpo_weights="running")
        row = experience.balance_metrics(found, reward, estimated, weights=weights, spread=spread)
        assert [row[f"weight/{name}"] for name in reward.names] == [1.0, 2.0, 0.5]
