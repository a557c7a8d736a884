"""Which runs share their prompts out to the cores of a machine without accelerator."""

from dataclasses import replace

import pytest

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import MeshConfig, ModelConfig, RLConfig
from balcap_jax.training import cores_as_devices
from balcap_jax.training.cores_as_devices import share_out_cores


@pytest.fixture
def asked(monkeypatch):
    """What is asked for, call by call."""
    asked = []
    monkeypatch.setattr(cores_as_devices, "open_cores", asked.append)
    return asked


def test_of_a_small_policy_by_the_prompts_of_a_micro_batch(asked):
    share_out_cores(TrainConfig())
    share_out_cores(TrainConfig(prompts_per_step=12, rl=RLConfig(micro_batches=2)))
    assert asked == [8, 6]


@pytest.mark.parametrize("mesh", [{"data": 1}, {"fsdp": 2}, {"fsdp": -1, "data": 1}])
def test_not_where_the_mesh_is_said(asked, mesh):
    share_out_cores(TrainConfig(mesh=MeshConfig(**mesh)))
    assert asked == []


def test_not_of_a_large_policy_nor_in_one_of_several_processes(asked, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model-00001-of-00002.safetensors").open("wb") as file:
        file.truncate(65 * 10**6)
    config = TrainConfig(model=ModelConfig(path=str(tmp_path)))
    share_out_cores(config)
    monkeypatch.setattr(cores_as_devices, "is_alone", lambda: False)
    share_out_cores(replace(config, model=ModelConfig()))
    assert asked == []
