"""The server that stands for Google Cloud Storage refuses what the real one refuses."""

import os

import gcsfs
import pytest
import tensorstore
from google.api_core.exceptions import NotFound, PreconditionFailed
from google.cloud import storage


def test_a_second_conditional_create_is_refused(bucket):
    blob = storage.Client().bucket(bucket.name).blob("lock")
    blob.upload_from_string("first", if_generation_match=0)
    with pytest.raises(PreconditionFailed):
        storage.Client().bucket(bucket.name).blob("lock").upload_from_string(
            "second", if_generation_match=0
        )
    assert bucket.text("lock") == "first"
    blob.upload_from_string("renewed", if_generation_match=blob.generation)
    with pytest.raises(PreconditionFailed):
        blob.delete(if_generation_match=1 + blob.generation)
    assert bucket.text("lock") == "renewed"


def test_of_many_writers_at_once_one_creates(bucket):
    from concurrent.futures import ThreadPoolExecutor

    def create(number: int) -> bool:
        blob = storage.Client().bucket(bucket.name).blob("lock")
        try:
            blob.upload_from_string(str(number), if_generation_match=0)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(create, range(16)))
    assert made.count(True) == 1
    assert bucket.text("lock") == str(made.index(True))


def test_three_clients_see_the_same_objects(bucket):
    key_values = tensorstore.KvStore.open(
        {"driver": "gcs", "bucket": bucket.name, "path": "folder/"}
    ).result()
    key_values.write("a", b"by tensorstore").result()
    files = gcsfs.GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)
    assert files.cat_file(f"{bucket.name}/folder/a") == b"by tensorstore"
    assert files.cat_file(f"{bucket.name}/folder/a", start=3, end=9) == b"tensor"
    big = os.urandom(7_000_000)
    files.pipe_file(f"{bucket.name}/folder/b", big, chunksize=2**21)  # a resumable upload
    assert storage.Client().bucket(bucket.name).blob("folder/b").download_as_bytes() == big
    assert sorted(key_values.list().result()) == [b"a", b"b"]
    assert key_values.read("b").result().value == big


def test_long_listings_come_in_pages(bucket):
    for number in range(1500):
        bucket.put(f"many/{number:04d}", b"")
    bucket.put("many/below/x", b"")
    found = storage.Client().list_blobs(bucket.name, prefix="many/", delimiter="/")
    assert len(list(found)) == 1500
    assert found.prefixes == {"many/below/"}
    with pytest.raises(NotFound):
        list(storage.Client().list_blobs("no-such-bucket"))
