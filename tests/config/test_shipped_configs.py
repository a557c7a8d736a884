"""Configs of the package by their names: in a checkout, and in a wheel without one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from balcap_jax.cli import main as cli
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import find_config, load_toml, shipped_configs
from balcap_jax.errors import UserError

ROOT = Path(__file__).parents[2]
RIVALS = {f"rivals/{path.stem}" for path in (ROOT / "configs" / "rivals").glob("*.toml")}
NAMES = {path.stem for path in (ROOT / "configs").glob("*.toml")} | RIVALS


def test_the_files_of_a_checkout_are_known_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(shipped_configs()) == NAMES
    assert len(NAMES) > 10
    assert find_config(Path("smoke")) == ROOT / "configs" / "smoke.toml"
    assert load_toml(TrainConfig, Path("grpo")) == load_toml(
        TrainConfig, ROOT / "configs" / "grpo.toml"
    )


@pytest.mark.parametrize("name", sorted(RIVALS))
def test_presets_of_other_methods_load(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_toml(TrainConfig, Path(name))
    assert config.name == name.removeprefix("rivals/")
    assert config.reward.rivals
    assert not config.reward.names
    assert config.reward.judge.kind == "llm"
    with pytest.raises(UserError, match=f"no config '{name}x'.*did you mean {name}"):
        find_config(Path(f"{name}x"))


def test_the_released_preset_of_caprl_has_its_published_numbers():
    config = load_toml(TrainConfig, Path("rivals/caprl-released"))
    reward, qa = config.reward, config.reward.qa
    assert (qa.draws, qa.shuffle, qa.cannot_answer, qa.scale) == (8, False, False, 2.0)
    assert (reward.judge.temperature, reward.judge.max_tokens) == (0.6, 10)
    assert (config.rl.advantage, config.rl.kl_coef) == ("rloo", 0.0)
    assert (config.prompts_per_step, config.rollout.group_size) == (128, 8)
    assert (config.optim.learning_rate, config.optim.warmup_steps) == (1e-6, 20)


@pytest.mark.parametrize(
    ("name", "mode"), [("default", "normalized_diff"), ("readme", "normalized_a_only")]
)
def test_the_presets_of_claimdiff_have_its_published_numbers(name, mode):
    config = load_toml(TrainConfig, Path(f"rivals/claimdiff-{name}"))
    reward, rl = config.reward, config.rl
    assert (reward.claim_diff.mode, reward.claim_diff.severity) == (mode, "off")
    assert not reward.claim_diff.ambiguity
    assert (reward.judge.model, reward.judge.temperature) == ("gemini-2.5-flash", 0.0)
    assert (reward.judge.retries, reward.judge.timeout, reward.judge.concurrency) == (8, 120, 10)
    assert (rl.advantage, rl.clip_low, rl.clip_high, rl.kl_coef) == ("verl", 0.2, 0.28, 0.0)
    assert (config.rollout.group_size, config.rollout.max_new_tokens) == (4, 4096)
    assert (config.optim.learning_rate, config.optim.schedule) == (1e-6, "constant")
    assert config.optim.warmup_steps == 0.05 * config.steps
    assert (config.data.min_pixels, config.data.max_pixels) == (256 * 28**2, 8192 * 28**2)


def test_a_file_of_the_working_directory_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("grpo").write_text("steps = 3\n")
    assert load_toml(TrainConfig, Path("grpo")) == TrainConfig(steps=3)


def test_paths_are_left_alone(tmp_path):
    for path in (Path("grpo.toml"), Path("configs/grpo"), tmp_path / "grpo"):
        assert find_config(path) == path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("grop", "did you mean grpo?"),
        ("linear", "did you mean linear_length?"),
        ("qwen2_5_vl_3b_one_gpus", "did you mean qwen2_5_vl_3b_one_gpu or qwen2_5_vl_7b_one_gpu"),
        ("zzz", "known are eval, grpo, linear_length, "),
    ],
)
def test_unknown_names_are_one_sentence(name, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        find_config(Path(name))
    assert str(error.value).startswith(f"There is no config {name!r}, neither as a file nor in the")
    assert said in str(error.value)
    for command in (["train", "--config", name], ["plan", name], ["sft", f"--config={name}"]):
        assert cli.main(command) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_wheel_has_them(tmp_path):
    pytest.importorskip("setuptools", minversion="70.1", reason="a wheel is built with setuptools")
    source, site = tmp_path / "source", tmp_path / "site"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("balcap_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
                   check=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-compile", "--target", site, wheel],
                   check=True)  # fmt: skip
    shutil.rmtree(source)

    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from balcap_jax.config.files import shipped_configs\n"
        "print(*sorted(shipped_configs()), sep='\\n')\n"
        "from balcap_jax.cli.main import main\n"
        "sys.exit(main(['train', '--config', 'qwen2_5_vl_3b_one_gpu', '--steps', '0']))"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert set(result.stdout.split()) == NAMES
    assert result.stderr == "balcap: error: steps=0 must be at least 1; set --steps 1 or more.\n"
    assert result.returncode == 2
