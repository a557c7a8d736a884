"""Which runs share their prompts out to the cores of a machine without accelerator."""

from dataclasses import replace

import jax
import pytest

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import MeshConfig, ModelConfig
from balcap_jax.training import cores_as_devices
from balcap_jax.training.cores_as_devices import devices_of

ALL = jax.devices()


@pytest.fixture
def asked(monkeypatch):
    """For how many parts cores are made devices, call by call, in a process that has none yet."""
    asked = []
    monkeypatch.setattr(cores_as_devices, "open_cores", asked.append)
    return asked


@pytest.fixture
def large(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for number in (1, 2):
        with (tmp_path / f"model-0000{number}-of-00002.safetensors").open("wb") as file:
            file.truncate(33 * 10**6)
    return str(tmp_path)


def test_cores_are_made_devices_for_a_small_policy_that_samples(asked):
    assert devices_of(TrainConfig(), parts=6) == ALL  # which JAX had opened
    assert asked == [6]
    devices_of(SFTConfig(), parts=6)
    assert asked == [6]


@pytest.mark.parametrize("mesh", [{"data": 1}, {"fsdp": 2}, {"fsdp": -1, "data": 1}])
def test_not_where_the_mesh_is_said(asked, mesh):
    assert devices_of(TrainConfig(mesh=MeshConfig(**mesh)), parts=8) == ALL
    assert asked == []


def test_not_for_large_models_nor_in_one_of_several_processes(asked, large, monkeypatch):
    config = TrainConfig()
    devices_of(replace(config, model=ModelConfig(path=large)), parts=8)
    devices_of(replace(config, judge=JudgeConfig(kind="lexical", fluency=large)), parts=8)
    # Whoever opens this one says which setting named it.
    devices_of(replace(config, judge=JudgeConfig(kind="lexical", fluency="no-folder")), parts=8)
    assert asked == []
    devices_of(replace(config, judge=JudgeConfig(kind="lexical", fluency="policy")), parts=8)
    assert asked == [8]
    monkeypatch.setattr(cores_as_devices, "is_alone", lambda: False)
    devices_of(config, parts=8)
    assert asked == [8]


@pytest.mark.usefixtures("asked")
def test_a_later_run_of_the_process_takes_as_many_as_it_would_have_made(monkeypatch, large):
    monkeypatch.setattr(cores_as_devices, "cores_are_devices", lambda: True)
    config = TrainConfig()
    assert [len(devices_of(config, parts=n)) for n in (8, 6, 7, 1)] == [8, 6, 7, 1]
    assert devices_of(replace(config, model=ModelConfig(path=large)), parts=8) == ALL[:1]
    assert devices_of(SFTConfig(), parts=8) == ALL[:1]
    for mesh, count in (({"data": 1}, 1), ({"data": 2, "fsdp": 2}, 4), ({"fsdp": -1}, 8)):
        sized = replace(config, mesh=MeshConfig(**{"data": 1, **mesh}))
        assert devices_of(sized, parts=8) == ALL[:count]
