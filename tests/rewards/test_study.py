"""Rewards changed on purpose, by hand; the same in a resumed run."""

import numpy as np
import pytest

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.study import StudyConfig
from balcap_jax.errors import UserError
from balcap_jax.rewards.study import normals_of, studied

NAMES = ("precision", "linguistic")
REWARDS = np.float32([[[0.5, 0.3], [0.94, np.nan]], [[0.26, 0.9], [np.nan, 1.0]]])
AT = {"seed": 1, "step": 2, "rows": np.array([0, 1])}


def changed(study, rewards=REWARDS, **at):
    return studied(rewards, study, NAMES, **(AT | at))


def test_a_squeeze_draws_to_the_centre_and_leaves_the_others():
    found = changed(StudyConfig(squeeze=("linguistic=0.2",)))
    # 0.8 + 0.2 (0.3 - 0.8) = 0.7; 0.8 + 0.2 x 0.1 = 0.82; 0.84.
    np.testing.assert_allclose(found[..., 1], np.float32([[0.7, np.nan], [0.82, 0.84]]), rtol=1e-6)
    np.testing.assert_array_equal(found[..., 0], REWARDS[..., 0])
    centred = changed(StudyConfig(squeeze=("precision=0.5",), centre=0.5))
    np.testing.assert_allclose(centred[..., 0], np.float32([[0.5, 0.72], [0.38, np.nan]]))


def test_levels_and_sparse_rewards():
    found = changed(StudyConfig(levels=("precision=10",), sparse=("linguistic=0.9",)))
    np.testing.assert_allclose(found[..., 0], np.float32([[0.5, 0.9], [0.3, np.nan]]))
    # 0.9 reaches the threshold 0.9, though float32 and float64 round it apart.
    np.testing.assert_array_equal(found[..., 1], np.float32([[0, np.nan], [1, 1]]))


def test_changes_come_in_their_order():
    # Squeezed to 0.65, then of two levels 0.5 and 1: 1.3 rounds to 1, so 0.5; below 0.6: 0.
    study = StudyConfig(
        squeeze=("precision=0.5",), levels=("precision=2",), sparse=("precision=0.6",)
    )
    assert changed(study)[0, 0, 0] == 0
    assert changed(StudyConfig(squeeze=study.squeeze, sparse=("precision=0.6",)))[0, 0, 0] == 1


def test_noise_is_that_of_seed_step_and_row():
    study = StudyConfig(noise=("precision=0.1",))
    found = changed(study)
    normals = normals_of(1, 2, np.array([0, 1]), group=2, count=2)
    np.testing.assert_allclose(found[..., 0], REWARDS[..., 0] + 0.1 * normals[..., 0], rtol=1e-6)
    np.testing.assert_array_equal(changed(study), found)
    # A host that holds the second row alone draws the same of it.
    np.testing.assert_array_equal(changed(study, REWARDS[1:], rows=np.array([1])), found[1:])
    for other in ({"seed": 2}, {"step": 3}, {"rows": np.array([5, 6])}):
        assert not np.allclose(changed(study, **other)[..., 0], found[..., 0], equal_nan=True)
    many = normals_of(0, 0, np.arange(500), group=4, count=3)
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05


@pytest.mark.parametrize("change", ["squeeze=0.2", "noise=0.1", "levels=10", "sparse=0.5"])
def test_no_signal_stays_no_signal(change):
    name, _, number = change.partition("=")
    study = StudyConfig(**{name: (f"precision={number}", f"linguistic={number}")})
    np.testing.assert_array_equal(np.isnan(changed(study)), np.isnan(REWARDS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"squeeze": ("linguistic",)}, "'linguistic', which is no NAME=NUMBER"),
        ({"noise": ("linguistic=0",)}, "a standard deviation above 0"),
        ({"noise": ("linguistic=nan",)}, "a standard deviation above 0"),
        ({"levels": ("linguistic=2.5",)}, "a whole number from 1 on"),
        ({"sparse": ("recall=1", "recall=2")}, "names a reward twice"),
        ({"centre": 0.5}, "has no effect without study.squeeze"),
    ],
)
def test_mistakes_are_one_sentence(change, said):
    with pytest.raises(UserError, match=said):
        StudyConfig(**change)


def test_a_reward_that_the_run_does_not_have_is_refused():
    with pytest.raises(UserError, match="'linguistics'.*did you mean linguistic"):
        TrainConfig(study=StudyConfig(squeeze=("linguistics=0.5",)))
    without = RewardConfig(names=("precision",))
    with pytest.raises(UserError, match="trains on precision"):
        TrainConfig(reward=without, study=StudyConfig(noise=("recall=0.5",)))
    TrainConfig(reward=without, study=StudyConfig(noise=("precision=0.5",)))
