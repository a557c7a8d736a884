"""A million rows and a hundred shards in a bucket: a start that does not grow with them."""

import io
import json
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from bucket_server import BucketServer
from PIL import Image

ROWS, SHARDS, SAMPLES = 1_000_000, 100, 100
READ = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.sources import open_sources
began = time.perf_counter()
train, heldout = open_sources(DataConfig(path=sys.argv[1], images=sys.argv[2], heldout=20), seed=0)
opened = time.perf_counter() - began
places = range(0, len(train), max(1, len(train) // 300))[:300]
began = time.perf_counter()
with ThreadPoolExecutor(int(sys.argv[3])) as threads:
    sizes = list(threads.map(lambda i: train.part(i, i + 1)[0].image.size, places))
rate = len(sizes) / (time.perf_counter() - began)
# Not of getrusage, which begins with that of the process that started this one.
memory = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps([len(train), len(set(sizes)), opened, rate, memory]))
"""


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((320, 240)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="module")
def server():
    photos = [jpeg(number) for number in range(50)]
    found = BucketServer("bucket")
    for shard in range(SHARDS):
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for number in range(SAMPLES):
                text = json.dumps({"caption": f"photo {number} of {shard}"}).encode()
                for name, part in (("jpg", photos[number % 50]), ("json", text)):
                    info = tarfile.TarInfo(f"{number:05d}.{name}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
        found.put("bucket", f"set/s-{shard:03d}.tar", data.getvalue())
    for number in range(70):  # the last 20 rows, which are held out, have photos of their own
        found.put("bucket", f"photos/{number}.jpg", photos[number % 50])
    names = [n % 50 if n < ROWS - 20 else 50 + ROWS - 1 - n for n in range(ROWS)]
    lines = (
        f'{{"image": "{name}.jpg", "caption": "a photo, row {n}"}}\n'
        for n, name in enumerate(names)
    )
    found.put("bucket", "rows.jsonl", "".join(lines).encode())
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "images", "count"),
    [
        ("gs://bucket/rows.jsonl", "gs://bucket/photos", ROWS - 20),
        (f"gs://bucket/set/s-{{000..{SHARDS - 1:03d}}}.tar", "", SHARDS * SAMPLES - 20),
    ],
    ids=["rows", "shards"],
)
def test_memory_stays_small_and_an_index_is_made_once(server, tmp_path, path, images, count):
    """What takes how long is printed and not asserted; see docs/cloud.md."""
    environment = {**server.environment, "BALCAP_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin"}
    environment["PYTHONPATH"] = ":".join(sys.path)
    told, requests = [], []
    for _ in range(2):
        server.requests.clear()
        process = subprocess.run(
            [sys.executable, "-c", READ, path, images, "8"],
            capture_output=True, text=True, env=environment, timeout=280,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        told.append(json.loads(process.stdout))
        requests.append(len(server.requests))
    print(time.strftime("%H:%M"), *told, sep="\n")
    for length, sizes, _, _, memory in told:
        assert (length, sizes) == (count, 1)
        assert memory < 500
    # The second start lists what there is, and reads samples; it looks through nothing again.
    assert requests[1] <= 2 * 600 + SHARDS + 2_500
