"""Checkpoints come back exactly, and neither kill -9 nor a full disk loses a run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import balcap_jax.training.checksums as sums_module
from balcap_jax.errors import UserError
from balcap_jax.training.checkpoint import Checkpoints
from balcap_jax.training.checksums import checksums


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


def test_a_frozen_matrix_of_an_older_run_comes_back_rounded(tmp_path):
    """Which had it in float32; what trains has its bits, and no leaf is made wider than it was."""
    values = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    old = {"frozen": jnp.asarray(values), "trained": jnp.asarray(values)}
    like = {"frozen": jnp.zeros((4, 8), jnp.bfloat16), "trained": jnp.zeros((4, 8))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, old, {})
        restored, _ = checkpoints.restore(like)
        assert_identical(restored, {**old, "frozen": old["frozen"].astype(jnp.bfloat16)})
        checkpoints.save(2, like, {})
        with pytest.raises(UserError, match=r"frozen is bfloat16\[4, 8\], not float32\[4, 8\]"):
            checkpoints.restore(old)


def test_numpy_leaves_come_back_as_numpy(tmp_path):
    state = {"count": np.int64(2**40), "table": np.arange(3, dtype=np.float64), "w": jnp.ones(2)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        restored, _ = checkpoints.restore(state)
    assert isinstance(restored["table"], np.ndarray)
    assert_identical(restored, state)


def test_a_save_tells_its_time_and_size_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.times() == {}
        checkpoints.save(1, {"x": np.zeros(250_000, np.float32)}, {})
        checkpoints.wait()
        first = checkpoints.times()
        assert first["save/mb"] == 1.0
        assert first["save/seconds"] > 0
        assert checkpoints.times() == {}


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


def test_reading_takes_no_checkpoint_away(tmp_path):
    """A run that was killed after a commit leaves one step too many, which may be asked for."""
    with Checkpoints(tmp_path, keep=3, keep_best=False) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {"step": step})
    with Checkpoints(tmp_path, keep=2, keep_best=False) as checkpoints:
        for step in checkpoints.steps():
            assert checkpoints.restore(make_state(), step=step)[1] == {"step": step}
        assert checkpoints.steps() == [1, 2, 3]
        checkpoints.save(4, make_state(4), {"step": 4})
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]


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


@pytest.mark.one_jax
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


def noise(seed: int) -> dict[str, jax.Array]:
    """Arrays that do not compress, so that a changed byte of a file is one of a number."""
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "w": jax.random.bits(keys[0], (64, 512), jnp.uint32),
        "b": jax.random.bits(keys[1], (64,), jnp.uint16),
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = max(0, len(data) // 2 - 32)
    data[middle : middle + 64] = (byte ^ 0xFF for byte in data[middle : middle + 64])
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "foreign": lambda path: path.write_bytes(b'{"step": "x"}'),
}


@pytest.mark.slow
def test_whatever_file_is_damaged_the_newest_intact_step_is_taken(tmp_path):
    """Each file of a step in each way: either nothing is lost, or the step before is taken."""
    with Checkpoints(tmp_path / "run") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, noise(step), {"n": step}, pending={"p": noise(step + 10)["b"]})
    whole = tmp_path / "run" / "checkpoints" / "2"
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(files) > 10
    told: dict[str, str] = {}

    def like(extra):
        assert extra["n"] in (1, 2)
        return {"p": noise(0)["b"]}

    for file in files:
        for name, damage in DAMAGES.items():
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(tmp_path / "run", copy)
            damage(copy / "checkpoints" / "2" / file)
            with Checkpoints(copy) as checkpoints:
                got = checkpoints.restore_intact(noise(0), pending_like=like)
                assert got.step in (1, 2)
                assert_identical(got.state, noise(got.step))
                assert_identical(got.pending, {"p": noise(got.step + 10)["b"]})
                assert got.extra == {"n": got.step}
                assert got.checked
                if got.step == 2:
                    continue
                told[f"{file} {name}"] = got.broken[0]
                assert got.broken[0].startswith("2 (")
                with pytest.raises(UserError, match=r"no intact checkpoint of step 2: 2 \("):
                    checkpoints.restore_intact(noise(0), step=2, pending_like=like)
    biggest = max(files, key=lambda file: (whole / file).stat().st_size)
    for name in DAMAGES:
        assert f"{biggest} {name}" in told
        assert f"extra/metadata {name}" in told
    assert told[f"{biggest} flipped"] == "2 (the checksum of w does not fit)"


def test_a_damaged_step_goes_out_of_the_way_and_no_intact_step_is_a_sentence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, noise(step), {})
    folder = tmp_path / "checkpoints"
    (folder / "2" / "extra" / "metadata").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_intact(noise(0)).step == 1
        assert checkpoints.set_aside_after(1) == ["aside-2"]
        checkpoints.save(2, noise(7), {})
        checkpoints.wait()
        assert_identical(checkpoints.restore(noise(0))[0], noise(7))
        assert (folder / "aside-2").is_dir()
        for step in (1, 2):
            shutil.rmtree(folder / str(step) / "state")
        with pytest.raises(UserError, match=r"no intact checkpoint: 2 \(.*; 1 \("):
            checkpoints.restore(noise(0))


def test_what_only_has_the_name_of_a_step_is_none(tmp_path):
    """Files and folders of other people, and a copy of a step under another name."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, noise(4), {})
    folder = tmp_path / "checkpoints"
    (folder / "99").write_text("x")
    (folder / "98").mkdir()
    (folder / "97").mkdir()
    (folder / "97" / "notes.txt").write_text("x")
    (folder / "007").mkdir()
    (folder / "²").mkdir()
    (folder / "notes").mkdir()
    (folder / "5").symlink_to(folder / "nowhere")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4]
        assert checkpoints.latest_step() == 4
        assert checkpoints.best_step() is None
        assert checkpoints.restore_intact(noise(0)).step == 4
        for step in (97, 98, 99):
            checkpoints.save(step, noise(step), {})
        checkpoints.wait()
        assert checkpoints.steps() == [98, 99]
    assert (folder / "notes").is_dir()
    shutil.copytree(folder / "99", folder / "100")
    with Checkpoints(tmp_path) as checkpoints:
        got = checkpoints.restore_intact(noise(0))
    assert got.step == 99
    assert got.broken == ("100 (it is step 99)",)


def test_a_step_of_an_older_version_is_restored_unchecked(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, noise(1), {"n": 1})
    path = tmp_path / "checkpoints" / "1" / "extra" / "metadata"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: record[name] for name in ("leaves", "extra")}))
    with Checkpoints(tmp_path) as checkpoints:
        got = checkpoints.restore_intact(noise(0))
    assert_identical(got.state, noise(1))
    assert (got.checked, got.extra) == (False, {"n": 1})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "float16", "uint32"])
def test_checksums_see_every_bit_and_every_move_but_no_mesh(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    values = jnp.asarray(rng.integers(0, 2, (8, 16)) * 100).astype(dtype)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    places = (
        jax.devices()[3],
        NamedSharding(mesh, PartitionSpec("a", "b")),
        NamedSharding(mesh, PartitionSpec(None, "a")),
        NamedSharding(mesh, PartitionSpec()),
    )
    sums = {checksums({"x": jax.device_put(values, place)})["x"] for place in places}
    assert sums == {checksums({"x": np.asarray(values)})["x"]}
    with monkeypatch.context() as patch:  # as of large ones, where they lie
        patch.setattr("balcap_jax.training.checksums._SMALL", 0)
        assert sums == {checksums({"x": jax.device_put(values, place)})["x"] for place in places}
    moved = {checksums({"x": np.roll(np.asarray(values), n, axis=n % 2)})["x"] for n in (1, 2, 3)}
    bits = np.asarray(values).view(f"uint{8 * values.dtype.itemsize}").copy()
    bits[3, 5] ^= 1
    changed = bits.view(values.dtype)
    assert len(sums | moved | {checksums({"x": changed})["x"]}) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "complex64"])
def test_checksums_by_parts_on_all_cores_are_those_of_a_device(dtype, monkeypatch):
    rng = np.random.default_rng(0)
    shapes = ((6, 16), (96,), (3, 4, 8), (5, 5), ())  # three of one size
    leaves = [jnp.asarray(rng.integers(0, 2, shape) * 100).astype(dtype) for shape in shapes]
    monkeypatch.setattr(sums_module, "_BLOCK", 7)
    found = checksums([*leaves, np.zeros((0, 3), np.float32)])
    assert list(found.values()) == [*(int(sums_module._sum(leaf)) for leaf in leaves), 0]


def test_checksums_see_pairs_of_changes_that_a_plain_sum_would_miss():
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    right = checksums({"x": values})["x"]
    bits = values.view(np.uint32)
    for change in (0x8000_0000, 0x40, 0x0100_0000):
        pair = bits.copy()
        pair[1, 2] ^= change
        pair[9, 4] ^= change
        swapped = bits.copy()
        swapped[[3, 4]] = swapped[[4, 3]]
        for other in (pair, swapped):
            assert checksums({"x": other.view(np.float32)})["x"] != right
    assert checksums({"x": np.float64(1)}) != checksums({"x": np.float64(2)})
    assert checksums({"x": np.int64(2**40)}) != checksums({"x": np.int64(2**41)})


@pytest.mark.parametrize("how", ["a file in its place", "read-only"])
def test_a_folder_that_cannot_be_written_any_more_ends_at_once(how):
    """No thread goes on waiting for the folder of a step that could not be made."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        done = subprocess.run(
            [sys.executable, "-c", FOLDER_GONE, folder, how],
            capture_output=True,
            text=True,
            timeout=200,
            env=child_environment(),
            check=False,
        )
        ended = time.monotonic()
        os.chmod(os.path.join(folder, "checkpoints"), 0o755)
    assert done.returncode == 0, done.stderr
    *said, refused = done.stdout.splitlines()
    assert len(said) == 2
    for sentence in said:
        assert sentence.startswith("refused: Cannot write")
        assert ("Permission denied" in sentence) == (how == "read-only")
    assert done.stderr == ""
    assert ended - float(refused) < 30  # it took 308 s


FOLDER_GONE = """
import os, shutil, sys, time
import jax.numpy as jnp
from balcap_jax.training.checkpoint import Checkpoints
from balcap_jax.errors import UserError

checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"w": jnp.ones(4)}, {})
checkpoints.wait()
folder = os.path.join(sys.argv[1], "checkpoints")
if sys.argv[2] == "read-only":
    os.chmod(folder, 0o555)
    if os.geteuid() == 0:  # who may write everywhere
        os.setuid(65534)
else:
    shutil.rmtree(folder)
    open(folder, "w").close()
for step in (2, 3):
    try:
        checkpoints.save(step, {"w": jnp.ones(4)}, {})
        checkpoints.wait()
    except UserError as error:
        print("refused:", error)
print(time.monotonic())
"""
