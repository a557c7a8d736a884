"""Names on the hub are fetched from there once, whatever the number of hosts."""

import json
import shutil
from pathlib import Path

import pytest
from hub_server import HubServer
from small_run import BASE, small

from balcap_jax.config.judge import AuditConfig, JudgeConfig
from balcap_jax.config.sections import LoraConfig, ModelConfig
from balcap_jax.errors import UserError
from balcap_jax.models.hf.adapter_config import base_folder
from balcap_jax.models.hf.folders import adapter_folder, commit_of, policy_folder
from balcap_jax.parallel import processes
from balcap_jax.storage.paths import as_path
from balcap_jax.training.hub_folders import fetched_by_one_host

NAME, JUDGE, ADAPTER = "tiny/captioner", "tiny/judge", "tiny/adapter"
WEIGHTS, OF_ADAPTERS = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Two policies, and an adapter whose base is the second one."""
    judge, adapter = tmp_path / "judge", tmp_path / "adapter"
    shutil.copytree(BASE, judge)
    (judge / "README.md").write_text("Another commit.")
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": JUDGE}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / OF_ADAPTERS).write_bytes(b"not looked at")
    with HubServer({NAME: BASE, JUDGE: judge, ADAPTER: adapter}) as server:
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


def opened(config, out) -> dict[str, Path]:
    """The folders that a run with these settings finds, by what they are of."""
    with fetched_by_one_host(config, out):
        found = {
            "policy": policy_folder(config.model.path, revision=config.model.revision),
            "judge": policy_folder(config.judge.model),
        }
        found["start"] = adapter_folder(config.model.lora.start)
        found["audit"] = policy_folder(config.audit.model)
        found["base of audit"] = base_folder(found["audit"])
        commit = commit_of(NAME, found["policy"])
        assert policy_folder(NAME, revision=commit) == found["policy"]
        return found


def test_one_host_asks_the_hub(hub, bucket, monkeypatch, tmp_path):
    told: list = []
    out = as_path(bucket.url) / "runs"
    config = small(
        out,
        model=ModelConfig(path=NAME, lora=LoraConfig(start=ADAPTER)),
        judge=JudgeConfig(kind="model", model=JUDGE, fluency=NAME),
        audit=AuditConfig(every=1, kind="model", model=ADAPTER),
    )
    as_host(monkeypatch, tmp_path, 0, told)
    first = opened(config, out)
    assert (hub.fetched[WEIGHTS], hub.fetched[OF_ADAPTERS]) == (2, 1)
    sent = dict(hub.fetched)
    for number in (1, 2):
        as_host(monkeypatch, tmp_path, number, told)
        found = opened(config, out)
        assert commit_of(NAME, found["policy"]) == hub.commit(NAME)
        for what, folder in found.items():
            assert folder != first[what]
            assert folder.is_relative_to(tmp_path / f"bucket{number}")
            names = [file.name for file in first[what].iterdir()]
            assert {WEIGHTS, OF_ADAPTERS} & {*names}
            for name in names:
                assert (folder / name).read_bytes() == (first[what] / name).read_bytes()
        assert found["base of audit"] == found["judge"]
    assert dict(hub.fetched) == sent
    before = len(bucket.server.requests)
    told.clear()
    as_host(monkeypatch, tmp_path, 0, told)  # a second run
    assert opened(config, out) == first
    uploads = [line for line in bucket.server.requests[before:] if line.startswith("POST")]
    assert uploads == []


def test_a_name_at_an_endpoint_is_none_of_the_hub(hub, bucket, monkeypatch, tmp_path):
    as_host(monkeypatch, tmp_path, 0, told := [])
    judge = JudgeConfig(kind="llm", model="tiny/other")
    with fetched_by_one_host(small(tmp_path, judge=judge), as_path(bucket.url) / "runs"):
        assert told == []
    assert not hub.tokens  # nothing was asked


def test_without_a_bucket_each_host_asks(hub, monkeypatch, tmp_path):
    config = small(tmp_path, model=ModelConfig(path=NAME))
    for number in (0, 1):
        as_host(monkeypatch, tmp_path, number, [])
        with fetched_by_one_host(config, tmp_path / "runs"):
            assert policy_folder(NAME).is_relative_to(tmp_path / f"hub{number}")
    assert hub.fetched[WEIGHTS] == 2


def test_a_bucket_that_is_read_only_is_told(hub, bucket, monkeypatch, tmp_path):
    as_host(monkeypatch, tmp_path, 0, [])
    out = as_path(bucket.url) / "runs"
    with (
        bucket.server.failing(forbidden="^POST"),
        pytest.raises(UserError, match="Storage Object User"),
        fetched_by_one_host(small(out, model=ModelConfig(path=NAME)), out),
    ):
        pass
