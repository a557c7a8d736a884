"""Checkpoints in a bucket: whole or none, whoever dies or refuses when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.errors import UserError
from balcap_jax.storage import held
from balcap_jax.storage.paths import as_path
from balcap_jax.training.checkpoint import Checkpoints, latest_step_of
from balcap_jax.training.checkpoint_record import COMMITTED


def state(fill: float) -> dict:
    return {"kernel": jnp.full((16, 8), fill, jnp.bfloat16), "step": np.int32(fill)}


def assert_state(found: dict, fill: float) -> None:
    assert jax.tree.map(lambda x: np.asarray(x).tobytes(), found) == jax.tree.map(
        lambda x: np.asarray(x).tobytes(), state(fill)
    )


@pytest.fixture
def run(bucket):
    return as_path(bucket.url) / "runs" / "one"


def saved(run, steps, **options) -> None:
    with Checkpoints(run, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), {"step": step}, metric=-abs(step - 2.0))


def steps_with(bucket, name: str = "") -> set[str]:
    start = "runs/one/checkpoints/"
    return {
        key.removeprefix(start).split("/")[0]
        for key in bucket.objects
        if key.startswith(start) and key.endswith(name)
    }


def test_a_round_trip_keeps_the_last_few_and_the_best(bucket, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    saved(run, [1, 2, 3, 4, 5], keep=2)
    assert steps_with(bucket) == {"2", "4", "5"}
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.best_step() == 2
        found = checkpoints.restore_intact(state(0))
        assert (found.step, found.checked, found.extra) == (5, True, {"step": 5})
        assert_state(found.state, 5)
        assert_state(checkpoints.restore(state(0), step=2)[0], 2)
    assert latest_step_of(run) == 5
    assert not list(tmp_path.iterdir())  # nothing is local, no folder "gs:" either


def test_half_a_checkpoint_is_none_and_goes(bucket, run):
    saved(run, [1, 2])
    for name in [key for key in bucket.objects if "/checkpoints/2/" in key and COMMITTED in key]:
        del bucket.objects[name]
    bucket.put("runs/one/checkpoints/9/state/d/abc", b"the first object of a save")
    assert latest_step_of(run) == 1
    with Checkpoints(run, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
        assert_state(checkpoints.restore(state(0))[0], 1)
    assert steps_with(bucket) == {"1", "2", "9"}  # reading takes nothing away
    with Checkpoints(run) as checkpoints:
        assert steps_with(bucket) == {"1"}
        checkpoints.save(2, state(2), {})
    assert latest_step_of(run) == 2


def test_a_damaged_object_is_told_and_the_one_before_is_taken(bucket, run):
    saved(run, [1, 2])
    for key, stored in bucket.objects.items():
        if "/checkpoints/2/state/d/" in key or "/2/state/ocdbt.process_0/d/" in key:
            stored.data = bytes(len(stored.data))
    with Checkpoints(run, read_only=True) as checkpoints:
        found = checkpoints.restore_intact(state(0))
    assert found.step == 1
    assert found.broken[0].startswith("2 (")


def test_going_back_sets_the_later_ones_aside(bucket, run):
    saved(run, [1, 2, 3], keep=3)
    with Checkpoints(run, keep=3) as checkpoints:
        assert checkpoints.set_aside_after(1) == ["aside-2", "aside-3"]
        assert checkpoints.steps() == [1]
        checkpoints.save(2, state(20), {})
    assert steps_with(bucket, COMMITTED) == {"1", "2", "aside-2", "aside-3"}


def test_an_old_one_is_none_before_its_first_object_goes(bucket, run):
    """Whatever is removed first, a process that is killed then leaves no broken step."""
    saved(run, [1, 2], keep=2)
    bucket.server.requests.clear()
    with Checkpoints(run, keep=1, keep_best=False) as checkpoints:
        checkpoints.save(3, state(3), {})
    gone = [line.split("/o/")[1] for line in bucket.server.requests if line.startswith("DELETE")]
    for step in (1, 2):
        of_step = [name for name in gone if f"/checkpoints/{step}/" in name]
        assert of_step[0] == f"runs/one/checkpoints/{step}/{COMMITTED}"


def test_a_bucket_that_refuses_to_be_written_is_a_sentence(bucket, run):
    saved(run, [1])
    with Checkpoints(run) as checkpoints:

        def save() -> None:
            checkpoints.save(2, state(2), {})
            checkpoints.wait()

        refused = r"Cannot write gs://.*403.*Storage Object User.*intact"
        with (
            bucket.server.failing(forbidden="^(POST|PUT|DELETE)"),
            pytest.raises(UserError, match=refused),
        ):
            save()
        checkpoints.save(3, state(3), {})
    assert latest_step_of(run) == 3
    with (
        Checkpoints(run, read_only=True) as checkpoints,
        bucket.server.failing(forbidden="GET .*/state/"),
        pytest.raises(UserError, match="says nothing about the checkpoint itself"),
    ):
        checkpoints.restore(state(0))


def test_faults_that_pass_lose_nothing(bucket, run):
    with bucket.server.failing(every=9, match="upload"):
        saved(run, [1])
        assert bucket.server.failed
    with Checkpoints(run, read_only=True) as checkpoints:
        assert_state(checkpoints.restore(state(0))[0], 1)


def test_a_run_that_was_taken_over_saves_no_more(bucket, run):
    with Checkpoints(run) as checkpoints:
        held.taken[str(run)] = "process 7 of elsewhere"
        try:
            with pytest.raises(UserError, match="taken over by process 7 of elsewhere"):
                checkpoints.save(1, state(1), {})
        finally:
            held.taken.clear()
    assert not steps_with(bucket)
