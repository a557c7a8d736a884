"""`balcap eval captionqa --download`: from a hub on this machine, and without it."""

import json

import pytest
from benchmark_world import answer, make_world
from hub_server import HubServer
from judge_server import JudgeServer

from balcap_jax.cli.main import main
from balcap_jax.evaluation.captionqa_data import REPOSITORY

IMAGES = 4


@pytest.fixture
def world(tmp_path):
    """A world whose questions lie by domains, as on the hub."""
    world = make_world(tmp_path / "w", IMAGES)
    folder = tmp_path / "repository"
    folder.mkdir()
    for line in (world.folder / "questions.jsonl").read_text().splitlines():
        with (folder / f"{json.loads(line)['domain']}.jsonl").open("a") as file:
            file.write(line + "\n")
    (folder / "README.md").write_text("licence: captionqa")
    (folder / "weights.bin").write_bytes(b"x" * 100)
    return world


@pytest.fixture
def hub(world, tmp_path, monkeypatch):
    with HubServer({REPOSITORY: tmp_path / "repository"}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("time.sleep", lambda _: None)  # of retries
        yield running


def evaluate(world, tmp_path, capsys) -> tuple[int, str, str]:
    with JudgeServer(answer=answer) as server:
        code = main(
            list(map(str, [
                "eval", "captionqa", "--download", "--captions", world.captions("c.json"),
                "--judge.base-url", server.url, "--judge.cache", tmp_path / "c.sqlite",
                "--out", tmp_path / "out",
            ]))
        )  # fmt: skip
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_data_are_fetched_once_and_the_licence_is_told(world, hub, tmp_path, capsys):
    code, out, err = evaluate(world, tmp_path, capsys)
    assert code == 0, err
    assert f"{REPOSITORY} is under the licence captionqa" in out + err
    assert "100.00" in out
    domains = ("natural", "document", "ecommerce", "embodiedai")
    assert hub.fetched == dict.fromkeys([*(f"{d}.jsonl" for d in domains), "README.md"], 1)
    # What is there is not fetched again, and needs no network.
    hub.close()
    assert evaluate(world, tmp_path, capsys)[0] == 0


def test_a_fetch_that_was_cut_goes_on(world, hub, tmp_path, capsys):
    hub.broken["ecommerce.jsonl"] = "short"
    code, _, err = evaluate(world, tmp_path, capsys)
    assert code == 2
    assert err.splitlines()[-1].startswith(
        f"balcap: error: The data set {REPOSITORY} cannot be fetched ("
    )
    hub.broken.clear()
    assert evaluate(world, tmp_path, capsys)[0] == 0
    assert hub.fetched["natural.jsonl"] == 1  # before the cut or, fetched beside it, after


def test_without_a_network_it_is_one_sentence(world, hub, tmp_path, capsys):
    hub.close()
    code, _, err = evaluate(world, tmp_path, capsys)
    assert code == 2
    line = err.splitlines()[-1]
    assert f"The data set {REPOSITORY} cannot be fetched (" in line
    assert "give its folder as --data" in line
