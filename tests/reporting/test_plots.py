"""Curves: one panel per number worth it, for rewards of any names."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from balcap_jax.reporting import plots
from balcap_jax.reporting.plots import Panel, draw_curves, panels, smooth, stands_still


def test_smoothing_keeps_constants_and_does_not_lag():
    np.testing.assert_allclose(smooth(np.full(9, 0.3), width=2.0), 0.3)
    line = np.arange(41.0)
    np.testing.assert_allclose(smooth(line, width=2.0)[6:-6], line[6:-6])
    noisy = line + np.tile([1.0, -1.0], 21)[:41]
    assert np.abs(smooth(noisy, width=2.0) - line)[6:-6].max() < 0.05
    np.testing.assert_array_equal(smooth(np.array([4.0]), width=0.0), [4.0])
    assert smooth(np.array([1.0, 2.0]), width=3.0).shape == (2,)


def keys_of(*rows: dict) -> list[str]:
    return [panel.key for panel in panels([{"step": i} | row for i, row in enumerate(rows, 1)])]


def test_every_reward_has_a_panel_whatever_its_name():
    row = {
        "reward/short/mean": 0.5, "reward/short/std": 0.1, "reward/a/b $x$/mean": -3.0,
        "reward/short/no_signal": 0.0, "words": 4.0, "rho/mean": 1.0, "rho/std": 0.1, "kl": 0.2,
    }  # fmt: skip
    made = panels([{"step": 1} | row])
    assert [(p.key, p.title) for p in made] == [
        ("reward/short/mean", "short"),
        ("reward/a/b $x$/mean", "a/b $x$"),
        ("words", "words"),
        ("rho/mean", "rho"),
        ("kl", "kl"),
    ]


def test_b_capscore_has_a_panel_only_of_the_three():
    three = {"reward/precision/mean": 0.75, "reward/recall/mean": 0.4}
    assert "b_capscore" not in keys_of(three | {"reward/short/mean": 0.9})
    three |= {"reward/linguistic/mean": 0.75}
    made = panels([{"step": 1, "reward/short/mean": 0.01} | three, {"step": 2}])
    (found,) = [panel for panel in made if panel.key == "b_capscore"]
    # 3 / (4/3 + 5/2 + 4/3) = 18/31, with nothing of `short` in it
    np.testing.assert_allclose(found.values, [100 * 18 / 31, np.nan])
    alone = [{name: value} for name, value in three.items()]  # never at the same step
    assert "b_capscore" not in keys_of(*alone)


def test_held_out_scores_have_panels_of_their_own():
    first = {"heldout/precision": 50.0, "heldout/b_capscore": 40.0, "heldout/captions": 8}
    rows = [{"words": 3.0} | row for row in (first, {}, {"heldout/precision": 55.0})]
    made = panels([{"step": i} | row for i, row in enumerate(rows)])
    assert [panel.title for panel in made] == ["held-out precision", "held-out b-CapScore", "words"]
    np.testing.assert_array_equal(made[0].values, [50.0, np.nan, 55.0])


@pytest.mark.parametrize(
    ("rates", "shown"),
    [([1e-6, 1e-6, 1e-6], False), ([0.0, 5e-7, 1e-6], True), ([None, None, 1e-6], False)],
)
def test_a_learning_rate_is_drawn_where_it_varies(rates, shown):
    rows = [{"words": 1.0, "epoch": i / 3, "learning_rate": rate} for i, rate in enumerate(rates)]
    assert keys_of(*rows) == ["words"] + shown * ["learning_rate"]


def test_a_small_learning_rate_is_not_drawn_flat():
    ax = Figure().subplots()
    values = np.array([1e-7, 1e-6])
    plots._draw_panel(ax, Panel("learning_rate", "", "k", values), np.array([1, 2]), floor=0.0)
    low, high = ax.get_ylim()
    assert high - low < 2e-6


def test_a_rare_number_is_drawn_over_the_steps_of_the_run():
    ax = Figure().subplots()
    values = np.array([np.nan, 0.5, 0.6, np.nan])
    steps = np.array([1, 40, 60, 100])
    plots._draw_panel(ax, Panel("heldout/recall", "", "k", values), steps, floor=0.0)
    low, high = ax.get_xlim()
    assert low <= 1
    assert high >= 100


@pytest.mark.parametrize(
    "row",
    [{}, {"rho/hist": [1, 2]}, {"reward/$a_$^/mean": 0.0}, {"reward/" + "long_" * 40 + "/mean": 1}],
)
def test_curves_of_any_row_are_a_picture(tmp_path, row):
    draw_curves([{"step": 1} | row], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_what_stood_still_has_no_panel():
    """What is 0 but for rounding, too; but not a reward, and not of a single step."""
    rows = [
        {"step": i, "reward/recall/mean": 0.5, "words": 40.0, "kl": 0.0, "drift": 1e-13 * i,
         "ratio_max": 1.0 + 1e-6 * i, "loss": 0.1 * i, "entropy": 1e-4 * i,
         "learning_rate": 1e-7 * i}
        for i in range(1, 4)
    ]  # fmt: skip
    still = {panel.key for panel in panels(rows) if stands_still(panel)}
    assert still == {"kl", "drift", "ratio_max"}
    assert not any(stands_still(panel) for panel in panels(rows[:1]))


def test_it_is_told_below_the_panels(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    said = []
    monkeypatch.setattr(Figure, "supxlabel", lambda self, text: said.append(text))
    rows = [{"step": i, "loss": 0.1 * i, "kl": 0.0, "ratio_max": 1.0} for i in range(3)]
    draw_curves(rows, tmp_path / "curves.png")
    draw_curves([row | {"kl": row["step"], "ratio_max": row["step"]} for row in rows],
                tmp_path / "more.png")  # fmt: skip
    assert said == ["step\ndid not change: kl 0, ratio max 1", "step"]
