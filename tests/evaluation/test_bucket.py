"""`balcap eval` on files in a bucket, its results written there."""

import json
from contextlib import closing

import pytest
from benchmark_runs import run, values
from benchmark_world import answer, make_world
from judge_server import JudgeServer
from small_run import BASE

from balcap_jax.cli.main import main
from balcap_jax.config.evaluation import BCapScoreConfig
from balcap_jax.evaluation.captioning import _policy_files
from balcap_jax.storage.lease import Lease
from balcap_jax.storage.paths import as_path

IMAGES = 3


@pytest.fixture(scope="module")
def server():
    with JudgeServer(answer=answer) as running:
        yield running


class There:
    """The world of a benchmark as it lies in a bucket."""

    def __init__(self, bucket, world):
        bucket.put_folder(world.folder, "world")
        self.folder = as_path(bucket.url) / "world"
        self.images = self.folder / str(world.images.relative_to(world.folder))


@pytest.mark.parametrize("benchmark", ["dcscore", "captionqa", "caparena", "bcapscore"])
def test_results_are_those_of_a_disk(bucket, server, tmp_path, benchmark, capsys):
    world = make_world(tmp_path / "w", IMAGES)
    captions = world.captions("whole.json")
    there, cache = There(bucket, world), tmp_path / "cache.sqlite"
    assert run(world, server, benchmark, captions, tmp_path / "out", cache=cache) == 0
    calls = server.calls
    out = as_path(bucket.url) / "eval"
    for _ in "12":  # the second time over what is there
        capsys.readouterr()
        assert run(there, server, benchmark, there.folder / "whole.json", out, cache=cache) == 0
        assert str(out / benchmark) in capsys.readouterr().out.replace("\n", "")
    assert server.calls == calls  # nothing is asked twice
    assert values(out, benchmark) == values(tmp_path / "out", benchmark)
    local = tmp_path / "out" / benchmark
    expected = {str(p.relative_to(local)): p for p in local.rglob("*") if p.is_file()}
    found = (out / benchmark).files_below()
    assert {*found} == {name for name in expected if not name.startswith(".")}
    for name in found.keys() - {"result.json"}:  # which has dates, times and paths
        assert bucket.objects[f"eval/{benchmark}/{name}"].data == expected[name].read_bytes(), name
    record = json.loads(bucket.text(f"eval/{benchmark}/result.json"))
    assert record["data"].startswith(bucket.url)
    assert record["captions"] == {"file": str(there.folder / "whole.json")}
    assert not [name for name in bucket.objects if name.endswith(".lock")]
    assert main(["eval", "report", str(out), "--html", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_mistakes_name_the_bucket_and_leave_it_free(bucket, server, tmp_path, capsys):
    world = make_world(tmp_path / "w", IMAGES)
    there, out = There(bucket, world), as_path(bucket.url) / "eval"
    world.captions("whole.json")
    bucket.put("world/whole.json", (world.folder / "whole.json").read_bytes())
    captions, cache = there.folder / "whole.json", tmp_path / "cache.sqlite"
    with closing(Lease(out / ".dcscore.lock", what="it", seconds=1.5)):
        assert run(there, server, "dcscore", captions, out, cache=cache) == 2
    assert not [name for name in bucket.objects if name.startswith("eval/dcscore")]
    with bucket.server.failing(forbidden="^POST .*eval/|^POST /upload"):
        assert run(there, server, "dcscore", captions, out, cache=cache) == 2
    assert "Storage Object User on the bucket" in capsys.readouterr().err
    bucket.put("eval/bcapscore/made.jsonl", b'{"no": "caption"}\n')
    given = ["--model", "base", "--data", str(there.folder / "photos.jsonl"), "--out", str(out)]
    assert main(["eval", "bcapscore", *given]) == 2
    assert f"{out}/bcapscore/made.jsonl is no file of captions" in capsys.readouterr().err
    assert not [name for name in bucket.objects if name.endswith(".lock")]


def test_captions_of_another_policy_of_the_same_name_are_noticed(bucket):
    bucket.put_folder(BASE, "model")
    config = BCapScoreConfig(model=f"{bucket.url}/model", data=as_path(bucket.url))
    first = _policy_files(config)
    assert [name for name, *_ in first] == ["model.safetensors"]
    assert _policy_files(config) == first
    bucket.put("model/model.safetensors", (BASE / "model.safetensors").read_bytes())
    assert _policy_files(config) != first
