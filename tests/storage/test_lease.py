"""One process writes to a run in a bucket; one that has ended keeps nobody out."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from balcap_jax.errors import UserError
from balcap_jax.runs.folder import RunLock, run_folder
from balcap_jax.storage import held, lease
from balcap_jax.storage.held import check_held
from balcap_jax.storage.lease import Lease
from balcap_jax.storage.paths import as_path


def holder(bucket) -> dict:
    return json.loads(bucket.text("run/.lock"))


def write(bucket, **changes) -> None:
    now = {"host": "elsewhere", "process": 7, "machine": "another", "id": "x", "started": "1"}
    told = {**now, "time": time.time(), "seconds": 0.5, **changes}
    bucket.put("run/.lock", json.dumps(told).encode())


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def path(bucket):
    yield as_path(bucket.url) / "run" / ".lock"
    held.taken.clear()


def test_the_lock_of_a_run_is_a_lease_that_goes_with_it(bucket, path):
    with RunLock(path.parent):
        assert holder(bucket)["process"] == os.getpid()
        assert run_folder(as_path(bucket.url), "run") == path.parent  # a lock alone is no run
    assert not bucket.objects


def test_a_living_holder_is_told_by_its_renewals(bucket, path):
    with_lease = Lease(path, seconds=0.6)
    first = holder(bucket)["time"]
    waited: list[str] = []
    with pytest.raises(
        UserError, match=rf"is being written by process {os.getpid()} of .*, and only"
    ):
        Lease(path, seconds=0.6, told=waited.append)
    assert "waiting up to" in waited[0]
    assert holder(bucket)["time"] > first
    with_lease.close()
    with_lease.close()
    Lease(path, seconds=0.6).close()


def test_of_two_that_start_at_once_one_gets_it(bucket, path):
    got, refused, both = [], [], threading.Barrier(2)

    def start() -> None:
        both.wait()
        try:
            got.append(Lease(path, seconds=0.6))
        except UserError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 1)
    got[0].close()


@pytest.mark.parametrize("age", [0.0, 3600.0], ids=["fresh", "old"])
def test_a_lease_that_nobody_renews_is_taken_over(bucket, path, age):
    write(bucket, time=time.time() - age)
    waited: list[str] = []
    taken = Lease(path, seconds=0.5, told=waited.append)
    assert holder(bucket)["process"] == os.getpid()
    assert bool(waited) == (age == 0.0)  # an old one is nobody's at once
    taken.close()


def test_a_clock_that_is_wrong_takes_no_living_run(bucket, path):
    """The other's clock is fast by an hour, and it renews."""
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.1):
            write(bucket, time=time.time() + 3600)

    write(bucket, time=time.time() + 3600)
    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(UserError, match="process 7 of elsewhere"):
        Lease(path, seconds=0.5)
    stop.set()
    thread.join()


HOLD = """
import sys, time
from balcap_jax.storage.lease import Lease
from balcap_jax.storage.paths import as_path

lease = Lease(as_path(sys.argv[1]), seconds=600.0)
print("held", flush=True)
time.sleep(600)
"""


def test_a_process_that_was_killed_here_keeps_nobody_out(bucket, path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **bucket.server.environment},
    )
    with process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    began = time.monotonic()
    Lease(path, seconds=600.0).close()
    assert time.monotonic() - began < 300  # its own end would be in ten minutes


def test_who_has_lost_a_lease_writes_no_more(bucket, path):
    mine = Lease(path, seconds=0.3)
    check_held(path.parent)
    write(bucket, seconds=60.0)  # as if this process had been suspended, and another had come
    wait_for(lambda: held.taken)
    with pytest.raises(UserError, match="was taken over by process 7 of elsewhere"):
        check_held(path.parent)
    mine.close()
    assert holder(bucket)["process"] == 7  # the other's is left alone


def test_a_lease_survives_faults_shorter_than_itself(bucket, path):
    mine = Lease(path, seconds=2.0)
    first = holder(bucket)["time"]
    with bucket.server.failing(every=2, match="upload"):
        wait_for(lambda: holder(bucket)["time"] > first)
    check_held(path.parent)
    mine.close()


def test_a_lease_of_nonsense_is_taken_over(bucket, path):
    bucket.put("run/.lock", b"not JSON")
    Lease(path, seconds=0.3).close()


def test_read_only_credentials_are_a_sentence(bucket, path):
    with (
        bucket.server.failing(forbidden="^(POST|PUT|DELETE)"),
        pytest.raises(UserError, match=r"Cannot write gs://.*Storage Object User"),
    ):
        RunLock(path.parent)
    assert lease.SECONDS > 3 * lease._SKEW
