"""Checkpoints come back exactly, and neither kill -9 nor a full disk loses a run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from balcap_jax.errors import UserError
from balcap_jax.training.checkpoint import Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array


def make_state(fill: float = 0.5) -> State:
    params = {
        "embed": {"kernel": jnp.full((16, 4), fill, jnp.bfloat16)},
        "layers": [jnp.full((8,), -fill, jnp.float32), jnp.arange(8, dtype=jnp.int8)],
        "frozen": jnp.array([True, False]),
        "key": jax.random.key_data(jax.random.key(3)),
    }
    floats = {"kernel": params["embed"]["kernel"], "bias": params["layers"][0]}
    return State(jnp.int32(fill), params, optax.adamw(1e-3).init(floats), jnp.int32(7))


def assert_identical(actual: Any, expected: Any) -> None:
    """The same tree, types of its nodes included, and the same bits."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_round_trip_is_exact_in_every_dtype(tmp_path):
    state = make_state()
    state.params["layers"][0] = jnp.array([0.0, -0.0, np.inf, np.nan, 1e-42, 3.4e38, 1 / 3, 1.0])
    extra = {"cursor": {"epoch": 1, "index": 30}, "seed": 17, "loss": float("nan")}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(4, state, extra)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 4
        restored, back = checkpoints.restore(jax.eval_shape(lambda: state))
    assert_identical(restored, state)
    assert back == {**extra, "loss": None}


def test_numpy_leaves_come_back_as_numpy(tmp_path):
    state = {"count": np.int64(2**40), "table": np.arange(3, dtype=np.float64), "w": jnp.ones(2)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored, _ = checkpoints.restore(state)
    assert isinstance(restored["table"], np.ndarray)
    assert_identical(restored, state)


def test_a_save_holds_the_values_of_its_call(tmp_path):
    """The next steps donate the saved buffers while the save still runs."""
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {f"w{i}": jnp.zeros((256, 256)) for i in range(4)}
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for step in range(4):
            checkpoints.save(step, state, {})
            for _ in range(3):
                state = add(state)
        jax.block_until_ready(state)
        for step in range(4):
            restored, _ = checkpoints.restore(state, step=step)
            for leaf in jax.tree.leaves(restored):
                np.testing.assert_array_equal(leaf, np.full((256, 256), 3.0 * step))


def test_keeps_the_last_few_and_the_best(tmp_path):
    metrics = {1: 0.3, 2: 0.9, 3: float("nan"), 4: 0.5, 5: None, 6: 0.1}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, make_state(step), {"step": step}, metric=metric)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2
        assert checkpoints.latest_step() == 6
        restored, extra = checkpoints.restore(make_state(), step=2)
        assert_identical(restored, make_state(2))
        assert extra == {"step": 2}
    with Checkpoints(tmp_path, keep=1) as checkpoints:  # what was best is known after a restart
        checkpoints.save(7, make_state(7), {}, metric=0.8)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 7]


def test_the_best_can_be_the_least_or_nothing(tmp_path):
    with Checkpoints(tmp_path / "min", keep=1, best_mode="min") as checkpoints:
        for step, metric in {1: 0.3, 2: 0.9, 3: 0.8}.items():
            checkpoints.save(step, {"w": jnp.ones(2)}, {}, metric=metric)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]
    with Checkpoints(tmp_path / "none", keep=1, keep_best=False) as checkpoints:
        for step, metric in {1: 0.9, 2: 0.3}.items():
            checkpoints.save(step, {"w": jnp.ones(2)}, {}, metric=metric)
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_a_step_is_saved_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, {"first": True})
        checkpoints.save(1, {"w": jnp.zeros(2)}, {"first": False})
        assert checkpoints.restore({"w": jnp.ones(2)})[1] == {"first": True}


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (8, 2)])
def test_restores_on_another_number_of_devices(tmp_path, before, after):
    def place(count: int) -> NamedSharding | SingleDeviceSharding:
        if count == 1:
            return SingleDeviceSharding(jax.devices()[0])
        mesh = Mesh(np.array(jax.devices()[:count]), ("fsdp",))
        return NamedSharding(mesh, PartitionSpec("fsdp"))

    values = {
        "w": np.arange(32, dtype=np.float32).reshape(16, 2),
        "b": np.arange(8, dtype=np.int32),
    }
    state = jax.device_put(values, place(before))
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(after)), state
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored, _ = checkpoints.restore(like)
    assert len(restored["w"].sharding.device_set) == after
    assert restored["w"].sharding.is_equivalent_to(place(after), 2)
    assert_identical(restored, values)


def test_another_tree_is_refused_by_key_path(tmp_path):
    state = {"layer": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "scale": jnp.ones(1)}
    other = {"layer": {"kernel": jnp.ones((2, 4)), "gate": jnp.ones(3)}, "scale": jnp.int32([1])}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {})
        with pytest.raises(UserError) as raised:
            checkpoints.restore(other)
    for part in (
        "layer/gate is missing",
        "layer/bias is unexpected",
        "layer/kernel is float32[2, 3], not float32[2, 4]",
        "scale is float32[1], not int32[1]",
    ):
        assert part in str(raised.value)


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"holds no checkpoint to restore"):
            checkpoints.restore({"w": jnp.ones(1)})
        checkpoints.save(2, {"w": jnp.ones(1)}, {})
        with pytest.raises(UserError, match=r"no checkpoint of step 5; choose one of 2\."):
            checkpoints.restore({"w": jnp.ones(1)}, step=5)
    with pytest.raises(UserError, match=r"keep=0 must be at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_a_full_disk_is_refused_before_the_save(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.wait()
        usage = shutil.disk_usage(tmp_path)._replace(free=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(UserError, match=r"Cannot write .*No space left on device.*--resume\."):
            checkpoints.save(2, make_state(2), {})
        monkeypatch.undo()
        assert checkpoints.steps() == [1]
        assert_identical(checkpoints.restore(make_state())[0], make_state(1))
        checkpoints.save(2, make_state(2), {})  # space was freed
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 2]


# Saves noise, so that it does not compress, under a limit of file size that the kernel enforces:
# the refusal comes from the background thread, as a disk's does that fills up during a save.
DISK_REFUSES = """
import resource, sys
import jax
from balcap_jax.training.checkpoint import Checkpoints
from balcap_jax.errors import UserError

noise = lambda seed: {"w": jax.random.normal(jax.random.key(seed), (64, 512))}
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
checkpoints = Checkpoints(sys.argv[1], keep=1)
checkpoints.save(1, noise(1), {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
for surface in (checkpoints.wait, lambda: checkpoints.save(3, noise(3), {}), checkpoints.close):
    checkpoints.save(2, noise(2), {})
    try:
        surface()
    except UserError as error:
        print("refused:", error)
    assert checkpoints.steps() == [1], checkpoints.steps()
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
checkpoints = Checkpoints(sys.argv[1], keep=1)
assert (checkpoints.restore(noise(0))[0]["w"] == noise(1)["w"]).all()
checkpoints.save(2, noise(2), {})
checkpoints.wait()
assert checkpoints.steps() == [2]
"""


def test_a_disk_that_fills_during_a_save(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DISK_REFUSES, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        env=child_environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refusals = [line for line in done.stdout.splitlines() if line.startswith("refused:")]
    assert len(refusals) == 3
    for line in refusals:
        assert "File too large; what was saved before is intact" in line


# Resumes and saves without end; w, the step and the extra say the same number in every save.
SAVES_FOREVER = """
import sys
import jax.numpy as jnp
from balcap_jax.training.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1], keep=2)
like = {f"w{i}": jnp.zeros((200, 200)) for i in range(4)}
step = 0
if checkpoints.latest_step() is not None:
    state, extra = checkpoints.restore(like)
    step = extra["step"]
    assert all((leaf == step).all() for leaf in state.values())
print("ready", step, flush=True)
while True:
    step += 1
    state = {name: leaf + step for name, leaf in like.items()}
    checkpoints.save(step, state, {"step": step}, metric=-abs(step - 4))
    print(checkpoints.steps()[-1] if checkpoints.steps() else 0, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_run_that_resumes(tmp_path):
    moments = random.Random(0)
    like = {f"w{i}": jnp.zeros((200, 200)) for i in range(4)}
    committed = 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", SAVES_FOREVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
        )
        assert child.stdout.readline().split() == ["ready", str(committed)]
        for _ in range(moments.randint(1, 6)):
            committed = int(child.stdout.readline())
        time.sleep(moments.random() * 0.1)
        os.kill(child.pid, signal.SIGKILL)
        said = [int(line) for line in child.stdout.read().split()]
        assert child.wait() == -signal.SIGKILL
        committed = max([committed, *said])

        with Checkpoints(tmp_path) as checkpoints:
            # A save may have been committed after the child last said so, and before it died.
            assert committed <= checkpoints.latest_step() <= committed + 2
            committed = checkpoints.latest_step()
            for step in checkpoints.steps():
                state, extra = checkpoints.restore(like, step=step)
                assert extra == {"step": step}
                assert all((leaf == step).all() for leaf in state.values())
            assert len(checkpoints.steps()) <= 4  # last two, the best, and one that was to go
        left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
        assert all(name.isdigit() for name in left)
    assert committed > 5


def child_environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
