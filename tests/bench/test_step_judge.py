"""`balcap bench step --judge`: a run whose judge has the policy's size, stage by stage."""

import json

import pytest

from balcap_jax.bench import step_judge
from balcap_jax.cli import main as cli


@pytest.mark.slow  # a run; its parts are tested by themselves
@pytest.mark.long
def test_stages_of_one_step_are_compared(monkeypatch, capsys):
    monkeypatch.setattr(step_judge, "TOKENS", 12)
    report = step_judge.run(rounds=2, images=8, group=2)  # one image for each device
    for stage in step_judge.STAGES:
        assert len(report["seconds"][stage]) == 2
        assert all(seconds > 0 for seconds in report["seconds"][stage])
    judging, updates = (report["seconds"][stage] for stage in ("judge", "update"))
    ratios = [j / u for j, u in zip(judging, updates, strict=True)]
    assert min(ratios) <= report["judge_per_update"] <= max(ratios)
    assert 0 < report["questions"] <= report["statements"]
    json.dumps(report)
    capsys.readouterr()
    monkeypatch.setattr(step_judge, "run", lambda **_: report)
    assert cli.main(["bench", "step", "--judge", "--rounds", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert cli.main(["bench", "step", "--judge"]) == 0
    assert f"{report['judge_per_update']:.2f} times the update" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--lora", "--profile", "--against hf", "--preset qwen3b"])
def test_it_has_its_own_policy_and_no_other_side(flag, capsys):
    assert cli.main(["bench", "step", "--judge", *flag.split()]) == 2
    assert "packaged policy by itself" in capsys.readouterr().err
