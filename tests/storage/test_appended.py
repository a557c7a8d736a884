"""Lines that were appended are there, each once, whenever the process was killed."""

import pytest

from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.jsonl import JsonlLog
from balcap_jax.storage.appended import Appended, joined
from balcap_jax.storage.paths import as_path


def rows(first: int, last: int) -> list[dict]:
    return [{"step": step} for step in range(first, last + 1)]


def names(bucket) -> list[str]:
    return sorted(bucket.objects)


def test_an_interval_is_an_object_and_the_end_is_one(bucket):
    path = as_path(bucket.url) / "log.jsonl"
    log = Appended(path, every=3600.0)
    log.append("1\n2\n")
    assert joined(path) == b""  # it waits
    log.flush()
    log.append("3\n")
    log.flush()
    log.flush()
    assert names(bucket) == [
        "log.jsonl", "log.jsonl.parts/000000000000", "log.jsonl.parts/000000000002"
    ]  # fmt: skip
    assert joined(path) == b"1\n2\n3\n"
    log.close()
    assert names(bucket) == ["log.jsonl"]
    assert bucket.text("log.jsonl") == "1\n2\n3\n"
    log = Appended(path, every=0.0)
    log.append("4\n")
    assert joined(path) == b"1\n2\n3\n4\n"


def test_a_kill_between_two_writes_doubles_and_loses_nothing(bucket):
    path = as_path(bucket.url) / "log.jsonl"
    log = Appended(path, every=0.0)
    for number in range(1, 5):
        log.append(f"{number}\n")
    parts = {name: bucket.text(name) for name in names(bucket) if "parts" in name}
    log.close()
    for name, text in parts.items():  # joined, and killed before the parts were removed
        bucket.put(name, text.encode())
    assert joined(path) == b"1\n2\n3\n4\n"
    bucket.put("log.jsonl", b"1\n")  # cut back to the first, and killed before they were
    del bucket.objects["log.jsonl.parts/000000000001"]
    assert joined(path) == b"1\n"  # what stands behind a gap is of steps that are made again


def test_what_could_not_be_sent_goes_with_the_next(bucket):
    path = as_path(bucket.url) / "log.jsonl"
    log = Appended(path, every=3600.0)
    log.append("1\n")
    with bucket.server.failing(forbidden="^POST"), pytest.raises(PermissionError):
        log.flush()
    log.append("2\n")
    log.flush()
    assert joined(path) == b"1\n2\n"


def test_a_log_goes_back_and_on_as_on_a_disk(bucket, tmp_path):
    found = {}
    for folder in (tmp_path, as_path(bucket.url) / "run"):
        log = JsonlLog(folder / "metrics.jsonl")
        log.append(rows(1, 5))
        log.flush()
        log.append(rows(6, 7))
        log.close()
        log = JsonlLog(folder / "metrics.jsonl")
        assert log.rows_to(3) == 3
        log.truncate_to(4)
        log.append(rows(5, 6))
        assert log.rows_to(9) == 6
        log.close()
        found[str(folder)] = read_jsonl(folder / "metrics.jsonl")
    assert list(found.values()) == [rows(1, 6), rows(1, 6)]
