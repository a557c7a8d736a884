"""A policy by its name on the hub is fetched from there once, whatever the number of hosts."""

import pytest
from hub_server import HubServer
from small_run import BASE

from balcap_jax.config.sections import ModelConfig
from balcap_jax.errors import UserError
from balcap_jax.models.hf.folders import commit_of
from balcap_jax.parallel import processes
from balcap_jax.storage.paths import as_path
from balcap_jax.training.opening import _folder_on_all

NAME = "tiny/captioner"


@pytest.fixture
def hub(monkeypatch):
    with HubServer({NAME: BASE}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield server


def as_host(monkeypatch, tmp_path, number: int, told: list[str]) -> None:
    """This process is one of several from here on, with caches of its own."""

    def on_process_zero(action) -> None:
        if number == 0:
            action()

    def gather_list(items: list) -> list:
        told.extend(items)
        return list(told)

    monkeypatch.setattr(processes, "is_alone", lambda: False)
    monkeypatch.setattr(processes, "on_process_zero", on_process_zero)
    monkeypatch.setattr(processes, "gather_list", gather_list)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / f"hub{number}"))
    monkeypatch.setenv("BALCAP_CACHE_DIR", str(tmp_path / f"bucket{number}"))


def test_one_host_asks_the_hub(hub, bucket, monkeypatch, tmp_path):
    told: list[str] = []
    model, out = ModelConfig(path=NAME), as_path(bucket.url) / "runs"
    as_host(monkeypatch, tmp_path, 0, told)
    first = _folder_on_all(model, out)
    fetched = hub.fetched["model.safetensors"]
    assert fetched == 1
    for number in (1, 2):
        as_host(monkeypatch, tmp_path, number, told)
        folder = _folder_on_all(model, out)
        assert folder != first
        assert commit_of(NAME, folder) == commit_of(NAME, first) == hub.commit(NAME)
        for file in BASE.iterdir():
            if file.is_file() and (first / file.name).exists():
                assert (folder / file.name).read_bytes() == file.read_bytes()
        assert (folder / "model.safetensors").exists()
    assert hub.fetched["model.safetensors"] == fetched
    sent = len(bucket.server.requests)
    told.clear()
    as_host(monkeypatch, tmp_path, 0, told)  # a second run
    assert _folder_on_all(model, out) == first
    uploads = [line for line in bucket.server.requests[sent:] if line.startswith("POST")]
    assert uploads == []


def test_a_bucket_that_is_read_only_is_told(hub, bucket, monkeypatch, tmp_path):
    as_host(monkeypatch, tmp_path, 0, [])
    with (
        bucket.server.failing(forbidden="^POST"),
        pytest.raises(UserError, match="Storage Object User"),
    ):
        _folder_on_all(ModelConfig(path=NAME), as_path(bucket.url) / "runs")
