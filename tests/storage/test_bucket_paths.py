"""A path in a bucket does what a path of the disk does, and says in words what it cannot."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from balcap_jax.errors import UserError
from balcap_jax.storage.bucket import BucketPath, read_all
from balcap_jax.storage.paths import as_path, is_remote
from balcap_jax.storage.refusals import bucket_reason


@pytest.fixture(params=["disk", "bucket"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "folder"
    return as_path(request.getfixturevalue("bucket").url) / "folder"


def test_files_and_folders_are_those_of_a_disk(folder):
    assert not folder.exists()
    (folder / "inner").mkdir(parents=True, exist_ok=True)
    for name, text in {"a.txt": "ä\n", "b.txt": "", "inner/c.txt": "c" * 100_000}.items():
        (folder / name).write_text(text, encoding="utf-8")
    assert (folder / "a.txt").read_text(encoding="utf-8") == "ä\n"
    assert (folder / "a.txt").read_bytes() == "ä\n".encode()
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt", "inner"]
    assert [path.name for path in folder.glob("a*")] == ["a.txt"]
    assert folder.is_dir()
    assert not folder.is_file()
    assert (folder / "inner" / "c.txt").is_file()
    assert not (folder / "inner" / "c.txt").is_dir()
    (folder / "b.txt").unlink()
    assert not (folder / "b.txt").exists()
    with pytest.raises(FileNotFoundError):
        (folder / "b.txt").read_text()
    (folder / "b.txt").unlink(missing_ok=True)


def test_names_are_kept_however_a_path_is_made(bucket):
    path = as_path("gs://bucket/runs/x.jsonl")
    assert isinstance(path, BucketPath)
    assert as_path(path) is path
    assert str(as_path(Path("gs://bucket/runs/x.jsonl"))) == str(path) == "gs://bucket/runs/x.jsonl"
    assert (path.bucket, path.key, path.stem) == ("bucket", "runs/x.jsonl", "x")
    assert str(path.parent / "y") == "gs://bucket/runs/y"
    assert str(path.with_name("z")) == "gs://bucket/runs/z"
    assert is_remote(path)
    assert not is_remote("runs")
    assert as_path("runs/x") == Path("runs/x")


@pytest.mark.parametrize("url", ["s3://bucket/runs", "s3:/bucket/runs", "https://host/runs"])
def test_other_stores_are_refused(url):
    with pytest.raises(UserError, match=r"neither a local path nor in a bucket.*give a gs:// path"):
        as_path(url)


def test_ranges_and_many_at_once(bucket):
    folder = as_path(bucket.url)
    for number in range(20):
        bucket.put(f"{number:02d}", f"object {number}".encode())
    assert (folder / "07").read_range(2, 6) == b"ject"
    assert read_all([folder / f"{n:02d}" for n in (3, 19)]) == [b"object 3", b"object 19"]
    assert read_all([]) == []


def test_objects_are_files_to_read_and_not_to_append_to(bucket):
    path = as_path(bucket.url) / "x.txt"
    path.write_text("first\nsecond ä\n")
    with path.open() as file:
        assert list(file) == ["first\n", "second ä\n"]
    with path.open("rb") as file:
        file.seek(-4, 2)
        assert file.read() == "ä\n".encode().rjust(4, b" ")
    with pytest.raises(OSError, match="bit by bit") as told:
        path.open("a")
    assert bucket_reason(told.value) == f"{path}: {told.value.strerror}"


def test_a_folder_is_no_bucket_and_none_is_made(bucket):
    missing = as_path("gs://no-such-bucket/folder")
    missing.mkdir(parents=True)
    assert "no-such-bucket" not in bucket.server.buckets
    assert not missing.has_bucket()
    assert as_path(bucket.url).has_bucket()
    with pytest.raises(FileNotFoundError, match="no such object or bucket"):
        (missing / "x").write_text("x")


def test_faults_that_pass_are_waited_for(bucket, monkeypatch):
    import gcsfs.retry

    async def at_once(seconds: float) -> None:
        assert seconds > 0

    monkeypatch.setattr(gcsfs.retry.asyncio, "sleep", at_once)
    path = as_path(bucket.url) / "x"
    with bucket.server.failing(every=2):
        for number in range(6):
            path.write_text(str(number))
            assert path.read_text() == str(number)
        assert bucket.server.failed >= 6
    with bucket.server.failing(every=1), pytest.raises(OSError, match="429|did not answer") as told:
        path.read_bytes()
    assert told.value.errno == errno.EIO
    assert path.read_text() == "5"


def test_what_is_forbidden_is_no_missing_file(bucket):
    path = as_path(bucket.url) / "x"
    path.write_text("x")
    with bucket.server.failing(forbidden=".*"):
        for ask in (path.exists, path.is_dir, path.read_bytes, path.has_bucket, path.iterdir):
            with pytest.raises(PermissionError, match="Storage Object User"):
                ask()
    with bucket.server.failing(forbidden="^(POST|DELETE)"):
        assert path.read_text() == "x"
        for change in (lambda: path.write_text("y"), path.unlink, path.rmtree):
            with pytest.raises(PermissionError):
                change()
    assert path.read_text() == "x"


def test_no_client_is_imported_for_local_paths():
    code = (
        "import sys, balcap_jax.cli.main, balcap_jax.runs.folder\n"
        "print([name for name in ('gcsfs', 'etils', 'google.cloud') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
