"""Whole runs in a bucket, by processes that share no folder."""

import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from bucket_runs import FLAGS, balcap, begun, committed, wait_for
from host_processes import Hosts

from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.runs.fields import without_wall_clock
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import as_path

pytestmark = pytest.mark.slow  # processes that each import, compile and train


def longer(*values):
    return pytest.param(*values, marks=pytest.mark.long)


def numbers(run) -> list[dict]:
    return [without_wall_clock(row) for row in read_jsonl(run / "metrics.jsonl")]


def weights(run) -> list[np.ndarray]:
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(load_pretrained(fetched(run / "policy"))[1])]


def assert_same_run(run, other, *, rtol: float = 0.0) -> None:
    rows, others = numbers(run), numbers(other)
    assert len(rows) == len(others)
    for row, expected in zip(rows, others, strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            ours, theirs = np.array(value, float), np.array(expected[name], float)
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol / 10, err_msg=name)
    assert read_jsonl(run / "samples.jsonl") == read_jsonl(other / "samples.jsonl")
    for ours, theirs in zip(weights(run), weights(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol / 10)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The same run on a disk, by one process."""
    folder = tmp_path_factory.mktemp("local")
    balcap("train", *FLAGS, "--steps", 6, "--out", folder / "runs", cwd=folder)
    return folder / "runs" / "balcap"


def folder_of(tmp_path: Path, name: object) -> Path:
    (tmp_path / str(name)).mkdir()
    return tmp_path / str(name)


@pytest.mark.long
@pytest.mark.parametrize("kills", [2, 10])
def test_killed_runs_go_on_elsewhere_to_the_same_bits(bucket, tmp_path, local, kills):
    """Each start has a folder of its own, as another host has; report and export as well."""
    rng = random.Random(0)
    run = as_path(bucket.url) / "runs" / "balcap"
    start = ("train", *FLAGS, "--out", run.parent, "--steps", 6)
    for kill in range(kills):
        cwd = folder_of(tmp_path, f"host{kill}")
        at = committed(bucket)
        goes_on = ("train", "--resume", run) if begun(bucket) else start
        process = balcap(*goes_on, cwd=cwd, wait=False)
        if at < 5 and kill % 2 == 0:  # after a commit, somewhere in the next step or its save
            wait_for(lambda at=at: committed(bucket) > at, process)
            time.sleep(rng.uniform(0, 0.5))
        else:  # wherever it is: imports, the lease, a restore
            time.sleep(rng.uniform(1, 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    cwd = folder_of(tmp_path, "last")
    goes_on = ("train", "--resume", run) if begun(bucket) else start
    with bucket.server.failing(every=40):
        balcap(*goes_on, cwd=cwd)
        assert bucket.server.failed > 3
    assert_same_run(run, local)
    assert [path.name for path in cwd.iterdir()] in ([], ["cache"])  # nothing of it is local
    left = [n.split("/")[2] for n in bucket.objects]
    assert "metrics.jsonl.parts" not in left
    assert ".lock" not in left

    balcap("export", run, as_path(bucket.url) / "exported", cwd=cwd)
    exported = load_pretrained(fetched(f"{bucket.url}/exported"))[1]
    for ours, theirs in zip(weights(run), weights_of(exported), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    for name in ("curves.png", "captions.html"):
        del bucket.objects[f"runs/balcap/{name}"]
    balcap("report", run, cwd=cwd)
    assert bucket.objects["runs/balcap/curves.png"].data.startswith(b"\x89PNG")
    assert "data:image/png" in bucket.text("runs/balcap/captions.html")


def weights_of(params) -> list[np.ndarray]:
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(params)]


@pytest.mark.long
def test_two_hosts_without_a_shared_folder_are_one_run(bucket, tmp_path, local, monkeypatch):
    run = as_path(bucket.url) / "runs" / "balcap"
    monkeypatch.chdir(folder_of(tmp_path, "elsewhere"))
    with Hosts(tmp_path, 2, *FLAGS, "--out", str(run.parent), "--steps", "6") as hosts:
        assert hosts.wait() == [0, 0], hosts.said()
    assert_same_run(run, local, rtol=1e-4)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, local)]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 6


def test_a_preempted_run_is_saved_and_its_lock_is_free(bucket, tmp_path):
    run = as_path(bucket.url) / "runs" / "balcap"
    flags = (*FLAGS, "--out", run.parent, "--steps", 10_000, "--checkpoint.every", 3)
    process = balcap("train", *flags, cwd=tmp_path, wait=False)
    wait_for(lambda: committed(bucket), process)
    time.sleep(0.7)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    seconds = time.monotonic() - began
    assert process.returncode == 0, said
    assert seconds < 60  # 10 s are asked for on a machine that is not shared
    step = committed(bucket)
    assert f"stopped at step {step} of 10000, all saved" in said
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step + 1))
    assert "runs/balcap/.lock" not in bucket.objects


def test_two_runs_of_one_name_and_a_locked_one_are_a_sentence(bucket, tmp_path):
    out = as_path(bucket.url) / "runs"
    bucket.put("runs/balcap/config.json", b"{}")
    process = balcap("train", *FLAGS, "--out", out, cwd=tmp_path, wait=False)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert f"The folder {out}/balcap already holds a run, which is never overwritten" in said
    assert "Traceback" not in said
    assert bucket.text("runs/balcap/config.json") == "{}"
    assert list(bucket.objects) == ["runs/balcap/config.json"]


@pytest.mark.parametrize(
    ("path", "faults", "sentence"),
    [
        longer("gs://no-such-bucket/runs", {}, "There is no bucket gs://no-such-bucket for"),
        longer("s3://bucket/runs", {}, "is neither a local path nor in a bucket"),
        longer("{url}/runs", {"forbidden": ".*"}, "Storage Object User on the bucket"),
        longer(
            "{url}/runs",
            {"forbidden": ".*", "refusal": 401},
            "gcloud auth application-default login",
        ),
        ("{url}/runs", {"forbidden": "^(POST|PUT|DELETE)"}, "Storage Object User on the bucket"),
    ],
    ids=["no bucket", "s3", "no rights", "no credentials", "read-only"],
)
def test_what_cannot_be_used_is_one_sentence(bucket, tmp_path, path, faults, sentence):
    with bucket.server.failing(**faults):
        process = balcap(
            "train", *FLAGS, "--out", path.format(url=bucket.url), cwd=tmp_path, wait=False
        )
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 2, said
    assert said.strip().splitlines()[-1].startswith("balcap: error: ")
    assert len(said.strip().splitlines()) <= 2  # what is going to be done, and the sentence
    assert sentence in said
    assert "Traceback" not in said
    assert not bucket.objects
    assert not list(tmp_path.iterdir())
