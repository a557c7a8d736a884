"""Copies of a bucket on this machine, and files of this machine that go there."""

import threading

import pytest

from balcap_jax.errors import UserError
from balcap_jax.storage.local import Mirror, cache_folder, edited_locally, fetched, written_locally
from balcap_jax.storage.paths import as_path


def downloads(bucket, name: str) -> int:
    return bucket.server.requests.count(f"GET /storage/v1/b/{bucket.name}/o/{name}")


def test_a_folder_is_fetched_once_for_each_version(bucket):
    for name in ("model/config.json", "model/sub/weights"):
        bucket.put(name, name.encode())
    folder = fetched(f"{bucket.url}/model")
    assert folder.name == "model"
    assert (folder / "sub" / "weights").read_text() == "model/sub/weights"
    bucket.server.requests.clear()
    assert fetched(f"{bucket.url}/model") == folder
    assert not downloads(bucket, "model/sub/weights")
    bucket.put("model/config.json", b"another")
    other = fetched(f"{bucket.url}/model")
    assert (other / "config.json").read_text() == "another"
    assert (folder / "config.json").read_text() == "model/config.json"


def test_many_threads_fetch_once(bucket):
    bucket.put("data.jsonl", b"{}\n" * 1000)
    bucket.server.requests.clear()
    threads = [
        threading.Thread(target=fetched, args=(f"{bucket.url}/data.jsonl",)) for _ in "12345"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    path = fetched(f"{bucket.url}/data.jsonl")
    assert path.name == "data.jsonl"
    assert path.read_bytes() == b"{}\n" * 1000
    assert len([f for f in cache_folder().iterdir() if not f.name.startswith(".")]) == 1


def test_what_is_cut_off_leaves_nothing_half_fetched(bucket):
    bucket.put("model/a", b"a")
    bucket.put("model/b", b"b")
    with bucket.server.failing(forbidden="^GET .*model/b"), pytest.raises(UserError) as told:
        fetched(f"{bucket.url}/model")
    assert "--cache-dir" in str(told.value)
    assert not [f for f in cache_folder().iterdir() if not f.name.startswith(".")]
    assert (fetched(f"{bucket.url}/model") / "b").read_text() == "b"


def test_what_is_local_or_missing_stays_as_it_is(bucket, tmp_path):
    assert fetched(tmp_path) is tmp_path
    assert not fetched(f"{bucket.url}/missing").exists()


def test_a_name_that_leads_out_is_refused(bucket):
    bucket.put("model/../../evil", b"x")
    bucket.put("model/a", b"x")
    with pytest.raises(UserError, match="leads out of its folder"):
        fetched(f"{bucket.url}/model")


def test_a_written_file_is_sent_whole_or_not(bucket):
    path = as_path(bucket.url) / "picture.png"
    with written_locally(path) as local:
        local.write_bytes(b"png")
    assert bucket.text("picture.png") == "png"
    with pytest.raises(ZeroDivisionError), written_locally(path) as local:
        local.write_bytes(b"x" * (1 // 0))
    assert bucket.text("picture.png") == "png"


def test_a_mirror_sends_what_has_changed(bucket):
    mirror = Mirror(as_path(bucket.url) / "tensorboard", every=0.0)
    (mirror.local / "events").write_text("1")
    mirror.sync()
    assert bucket.text("tensorboard/events") == "1"
    sent = len(bucket.server.requests)
    mirror.sync()
    assert len(bucket.server.requests) == sent
    (mirror.local / "events").write_text("12")
    mirror.close()
    mirror.close()
    assert bucket.text("tensorboard/events") == "12"
    assert not mirror.local.exists()


def test_an_edited_file_holds_whole_lines_and_one_writer(bucket):
    bucket.put("out.jsonl", b"1\n")
    path = as_path(bucket.url) / "out.jsonl"

    def fail() -> None:
        with edited_locally(path) as local, local.open("a") as file:
            file.write("2\n3")
            file.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert bucket.text("out.jsonl") == "1\n2\n"
    assert list(bucket.objects) == ["out.jsonl"]  # no lock is left
