"""The benchmark runs, its sides agree, and TRL's formula is TRL's. No test asserts a time."""

import json

import numpy as np
import pytest
from rich.console import Console

from balcap_jax.bench import trl_formula
from balcap_jax.bench.advantages import SHAPES, Result, numpy_gdpo, run, run_and_print, table
from balcap_jax.errors import UserError
from balcap_jax.rl.advantages import gdpo_advantages

SMALL = (6, 8, 3)


def test_shapes_include_the_promised_ones():
    assert (4096, 8, 3) in SHAPES
    assert SHAPES[-1] == (65536, 16, 3)


def test_run_reports_every_side_and_they_agree():
    (result,) = run([SMALL], repeats=2)
    assert (result.batch, result.group, result.rewards) == SMALL
    assert result.balcap_ms > 0
    assert result.times_numpy == result.numpy_ms / result.balcap_ms
    assert (result.trl_ms is not None) == trl_formula.installed()
    assert 0 <= result.max_difference < 1e-5


def test_json_is_for_programs(capsys):
    run_and_print(json=True, shapes=[SMALL], repeats=1)
    report = json.loads(capsys.readouterr().out)
    assert report["results"][0]["batch"] == 6
    assert "jax" in report["versions"]


def test_table_fits_a_terminal(capsys):
    slow = Result(65536, 16, 3, 12.345, 0.12345, 12.345, 12345.678, 1e-6)
    Console(width=80).print(table([slow]))
    out = capsys.readouterr().out
    assert "…" not in out
    row = next(line for line in out.splitlines() if "65536 x 16 x 3" in line)
    # 12.345 / 0.12345 = 100 and 12345.678 / 0.12345 = 100005.5
    assert row.split()[5:] == "0.123 12.3 100.0 12346 100005.5 12.3 s 1e-06".split()


def test_without_trl_the_other_sides_remain(monkeypatch, capsys):
    monkeypatch.setattr(trl_formula, "installed", lambda: False)
    run_and_print(shapes=[SMALL], repeats=1)
    assert "TRL is compared where it is installed" in capsys.readouterr().out


def test_numpy_side_is_the_same_formula():
    rewards = np.random.default_rng(0).random(SMALL, dtype=np.float32)
    rewards[0, 0] = np.nan
    rewards[1, 2, 1] = np.nan
    np.testing.assert_allclose(numpy_gdpo(rewards), gdpo_advantages(rewards), atol=1e-5)


@pytest.mark.torch
@pytest.mark.skipif(
    not trl_formula.installed(), reason="needs the test extra: pip install 'balcap_jax[test]'"
)
def test_trl_formula_by_hand():
    import torch

    # R_1 = 1, 2, 3 -> z -1, 0, 1 and R_2 = 0, 4, 2 -> z -1, 1, 0 up to eps;
    # S = -2, 1, 1, std sqrt 3. GRPO: sums 1, 6, 5, mean 4, std sqrt 7.
    rewards = torch.tensor([[[1.0, 0.0], [2.0, 4.0], [3.0, 2.0]]])
    gdpo = trl_formula.load("normalize_then_sum", weights=(1.0, 1.0))(rewards)
    np.testing.assert_allclose(gdpo, [[-1.15470, 0.57735, 0.57735]], atol=3e-4)
    grpo = trl_formula.load("sum_then_normalize", weights=(1.0, 1.0))(rewards)
    np.testing.assert_allclose(grpo, [[-1.13389, 0.75593, 0.37796]], atol=3e-4)


def test_repeats_must_be_positive():
    with pytest.raises(UserError, match="repeats=0"):
        run([SMALL], repeats=0)
