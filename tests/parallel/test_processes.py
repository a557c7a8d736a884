"""Which process this is, what all must agree in, and whose the rows of a batch are."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import Mesh

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import resume_conflicts
from balcap_jax.config.sections import DataConfig, DistConfig, MeshConfig
from balcap_jax.errors import UserError
from balcap_jax.models.padding import pad_to_sizes, sizes_of
from balcap_jax.parallel import exchange, processes
from balcap_jax.parallel.sharding import BatchRows, local_rows, make_mesh, replicate, shard_batch
from balcap_jax.training.trainer import train

CLUSTERS = ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No cluster, whatever machine the tests run on."""
    for name in CLUSTERS:
        monkeypatch.delenv(name, raising=False)


# Which process this is --------------------------------------------------------------------------


def test_a_machine_on_its_own_is_the_only_process():
    assert processes.find_place(DistConfig()) is None
    assert processes.find_place(DistConfig(coordinator="none")) is None
    assert processes.find_place(DistConfig(coordinator="h:1", processes=1)) is None


def test_processes_by_their_flags():
    place = processes.find_place(DistConfig(coordinator="10.0.0.1:8476", processes=4, process=3))
    assert place == ("10.0.0.1:8476", 4, 3, None)


def slurm(monkeypatch, **changes):
    job = {
        "SLURM_JOB_ID": "4096",
        "SLURM_STEP_NODELIST": "node[007-008,012]",
        "SLURM_NTASKS": "3",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
    }
    for name, value in {**job, **changes}.items():
        monkeypatch.setenv(name, value)


def test_processes_of_a_slurm_job(monkeypatch):
    slurm(monkeypatch)
    # JAX takes a port of the ephemeral range by the job's number: 4096 is the first of them.
    assert processes.find_place(DistConfig()) == ("node007:61440", 3, 2, [0])
    assert processes.find_place(DistConfig(coordinator="none")) is None
    slurm(monkeypatch, SLURM_STEP_NUM_NODES="3")  # a node each: all its devices
    assert processes.find_place(DistConfig()) == ("node007:61440", 3, 2, None)
    slurm(monkeypatch, SLURM_NTASKS="1")
    assert processes.find_place(DistConfig()) is None


def test_a_slurm_job_that_cannot_be_read_says_what_to_do(monkeypatch):
    slurm(monkeypatch, SLURM_PROCID="two")
    with pytest.raises(UserError, match="this slurm job cannot be found .*--dist.coordinator HOST"):
        processes.find_place(DistConfig())


def test_a_cloud_tpu_asks_jax(monkeypatch):
    """JAX reads the metadata of the pod; here its answer is given."""
    from jax._src.clusters import ClusterEnv

    asked = []

    def answer(*arguments):
        asked.append(arguments)
        return "10.130.0.5:8476", 16, 7, None

    monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", answer)
    monkeypatch.setattr(processes, "_on_cloud_tpu", lambda: True)
    assert processes.find_place(DistConfig()) is None  # the tests run on CPU devices
    monkeypatch.setattr(processes, "_cluster", lambda environment: "tpu")
    place = processes.find_place(DistConfig(start_timeout=60))
    assert place == ("10.130.0.5:8476", 16, 7, None)
    assert asked == [(None, None, None, None, None, 60)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"coordinator": "10.0.0.1"}, "must be HOST:PORT, 'auto' or 'none'"),
        ({"coordinator": ":8476"}, "must be HOST:PORT"),
        ({"coordinator": "a:99999"}, "must be HOST:PORT"),
        ({"processes": 2}, "has no effect with dist.coordinator='auto'"),
        ({"coordinator": "none", "processes": 2}, "has no effect with dist.coordinator='none'"),
        ({"process": 1}, "has no effect"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "below dist.processes=2"),
        ({"coordinator": "a:1", "processes": 2, "process": -1}, "at least 0"),
        ({"coordinator": "a:1", "processes": 0}, "set dist.processes 1 or more"),
        ({"start_timeout": 0.0}, "must be above 0"),
        ({"lost_after": 0.5}, "must be at least 1"),
    ],
)
def test_bad_settings(values, said):
    with pytest.raises(UserError) as error:
        DistConfig(**values)
    assert said in str(error.value)


# What all must agree in -------------------------------------------------------------------------


def test_facts_name_settings_versions_and_files(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text("12345\n")
    config = TrainConfig(data=DataConfig(path=str(data)))
    first = DistConfig(coordinator="a:1", processes=2)
    facts = [
        processes.facts_of(
            dataclasses.replace(config, dist=dataclasses.replace(first, process=process)),
            resume=None,
        )
        for process in (0, 1)
    ]
    assert facts[0] == facts[1]
    assert facts[0]["jax"] == jax.__version__
    assert facts[0]["rl.eps"] == 1e-4
    assert facts[0]["bytes of data.path (d.jsonl)"] == 6
    assert len(facts[0]["the code of balcap_jax"]) == 12
    data.write_text("123456\n")
    other = processes.facts_of(dataclasses.replace(config, seed=1), resume=Path("runs/a"))
    changed = {name for name in other if facts[0].get(name) != other[name]}
    assert changed == {
        "seed", "--resume", "bytes of data.path (d.jsonl)", "dist.processes",
    }  # fmt: skip


def test_other_code_is_another_fact(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = processes._digest(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    assert processes._digest(tmp_path) != before


def test_a_run_may_go_on_with_other_hosts_and_another_mesh():
    old = TrainConfig()
    new = dataclasses.replace(
        old,
        dist=DistConfig(coordinator="a:1", processes=4, process=1),
        mesh=MeshConfig(data=2, fsdp=-1),
    )
    assert resume_conflicts(old, new) == []


# Whose the rows are -----------------------------------------------------------------------------


class Device:
    """A device of some process, as a mesh knows it."""

    def __init__(self, id: int, process_index: int):  # noqa: A002
        self.id, self.process_index = id, process_index
        self.platform = self.device_kind = "cpu"
        self.client = None


def mesh_of(processes: list[int], data: int, fsdp: int, tensor: int) -> Mesh:
    """A mesh whose i-th device belongs to processes[i]."""
    devices = np.array([Device(i, process) for i, process in enumerate(processes)])
    return Mesh(devices.reshape(data, fsdp, tensor), ("data", "fsdp", "tensor"))


def rows_of(monkeypatch, mesh: Mesh, count: int, processes: int) -> list[BatchRows]:
    found = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        found.append(BatchRows.of(mesh, count))
    monkeypatch.undo()
    return found


@pytest.mark.parametrize(
    ("processes", "sizes", "held"),
    [
        # two hosts of two devices
        ([0, 0, 1, 1], (4, 1, 1), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ([0, 0, 1, 1], (1, 2, 2), [[0, 1, 2, 3], [4, 5, 6, 7]]),
        # a copy of the policy over both hosts: both hold all rows
        ([0, 0, 1, 1], (1, 1, 4), [[*range(8)], [*range(8)]]),
        # devices of a host that are not neighbours in the mesh
        ([0, 1, 0, 1], (2, 2, 1), [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ([0, 1, 0, 1], (1, 2, 2), [[*range(8)], [*range(8)]]),
    ],
)
def test_every_row_is_held_where_its_devices_are_and_owned_once(
    processes, sizes, held, monkeypatch
):
    rows = rows_of(monkeypatch, mesh_of(processes, *sizes), 8, 2)
    assert [r.local_rows.tolist() for r in rows] == held
    assert sorted(np.concatenate([r.judged_rows for r in rows])) == list(range(8))
    for r in rows:
        np.testing.assert_array_equal(r.local_rows[r.judged_places], r.judged_rows)
        assert [o.tolist() for o in r.judged_by] == [o.tolist() for o in rows[0].judged_by]


def test_processes_that_hold_the_same_rows_share_the_judging(monkeypatch):
    rows = rows_of(monkeypatch, mesh_of([0, 1, 0, 1], 1, 2, 2), 8, 2)
    assert [r.judged_rows.tolist() for r in rows] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    rows = rows_of(monkeypatch, mesh_of([0, 1, 2, 3], 1, 1, 4), 2, 4)
    assert [r.judged_rows.tolist() for r in rows] == [[0], [], [1], []]
    assert [r.local_rows.tolist() for r in rows] == [[0, 1]] * 4


def test_one_process_holds_and_owns_all():
    rows = BatchRows.of(make_mesh(data=2, fsdp=2, tensor=2), 8)
    assert (
        rows.local_rows.tolist()
        == rows.judged_rows.tolist()
        == rows.judged_places.tolist()
        == list(range(8))
    )
    with pytest.raises(UserError, match="batch of 6 prompts cannot be split over 4 data shards"):
        BatchRows.of(make_mesh(data=2, fsdp=2, tensor=2), 6)


def test_rows_go_to_the_mesh_and_back():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    x = {"a": np.arange(24.0).reshape(8, 3), "b": np.arange(8)}
    back = local_rows(mesh, shard_batch(mesh, x))
    np.testing.assert_array_equal(back["a"], x["a"])
    np.testing.assert_array_equal(back["b"], x["b"])
    key = replicate(mesh, jax.random.key(3))
    assert len(key.sharding.device_set) == 8
    assert jax.random.bits(key) == jax.random.bits(jax.random.key(3))


# What hosts exchange ----------------------------------------------------------------------------


def test_alone_nothing_is_exchanged():
    assert processes.is_process_zero()
    assert processes.process_index() == 0
    assert processes.any_process(True) is True
    assert processes.any_process(False) is False
    assert processes.gather_list([1]) == [1]
    assert processes.largest([3, 4]) == [3, 4]
    x = {"a": np.arange(3)}
    assert processes.gather_rows(BatchRows.of(make_mesh(), 8), x) is x
    np.testing.assert_array_equal(processes.to_process_zero(jnp.arange(3)), np.arange(3))
    done = []
    processes.on_process_zero(lambda: done.append(1))
    assert done == [1]

    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="^no$"):
        processes.on_process_zero(refuse)


class Said:
    """An exchange in which the other process has said this."""

    def __init__(self, process: int, others: list):
        self.process, self.others, self.processes = process, others, len(others) + 1

    def gather(self, value, *, tag):
        return [*self.others, value]

    def from_process_zero(self, value, *, tag):
        return value if self.process == 0 else self.others[0]


@pytest.fixture
def second(monkeypatch):
    """This is process 1 of 2; a function says what process 0 has said."""

    def said(value):
        assert hasattr(exchange.Exchange, "gather")
        assert hasattr(exchange.Exchange, "from_process_zero")
        monkeypatch.setattr(exchange, "current", Said(1, [value]))

    return said


def test_what_the_others_say_counts(second, tmp_path):
    second(True)
    assert processes.any_process(False)
    assert not processes.is_process_zero()
    second([5, 1])
    assert processes.largest([3, 4]) == [5, 4]
    second(["a", "b"])
    assert processes.gather_list(["c"]) == ["a", "b", "c"]
    second("the folder holds a run")
    with pytest.raises(UserError, match="the folder holds a run"):
        processes.on_process_zero(lambda: pytest.fail("only process 0 does it"))


def test_what_no_process_would_say_is_refused(second):
    """Whoever reaches JAX's port can say anything in the place of process 0."""
    second({"a": 1})
    with pytest.raises(RuntimeError, match="something else than a list for 'gather_list'"):
        processes.gather_list(["c"])
    with pytest.raises(RuntimeError, match="something else than a bool"):
        processes.any_process(False)
    with pytest.raises(RuntimeError, match="something else than a list"):
        processes.largest([1])
    with pytest.raises(RuntimeError, match="for a sentence"):
        processes.on_process_zero(lambda: None)


def test_many_files_are_few_facts(tmp_path):
    """A greeting has a limit, and folders of images have none."""
    for i in range(300):
        (tmp_path / f"{i:06d}.jpg").write_bytes(b"x" * i)
    few = processes._sizes("data.path", tmp_path)
    assert few["files of data.path"] == 300
    assert few["bytes of data.path"] == sum(range(300))
    (tmp_path / "000007.jpg").write_bytes(b"x" * 8)
    (tmp_path / "000008.jpg").write_bytes(b"x" * 7)
    other = processes._sizes("data.path", tmp_path)
    assert [name for name in few if few[name] != other[name]] == ["names and sizes of data.path"]


def test_gathered_rows_are_in_the_order_of_the_batch(second, monkeypatch):
    """Whose rows they are alternates, and process 0 has one more than this one."""
    rows = BatchRows(np.array([1, 3]), (np.array([0, 2, 4]), np.array([1, 3])), 1)
    own = {"words": np.array([10, 30]), "valid": np.array([[True], [False]])}
    theirs = {"words": np.array([0, 20, 40]), "valid": np.array([[False], [False], [True]])}
    parts = {x.dtype: x for x in theirs.values()}
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.process_allgather",
        lambda x: np.stack([parts[x.dtype], x]),
    )
    second(None)
    found = processes.gather_rows(rows, own)
    np.testing.assert_array_equal(found["words"], [0, 10, 20, 30, 40])
    np.testing.assert_array_equal(found["valid"], [[False], [True], [False], [False], [True]])


def test_a_prompt_that_is_padded_on_gives_the_same_answer():
    policy, params = tiny.policy()
    short = tiny.prompts(2, grids=((4, 4),))
    short = jax.tree.map(np.asarray, short)
    sizes = [size + extra for size, extra in zip(sizes_of(short), (3, 16, 2, 0), strict=True)]
    long = pad_to_sizes(short, sizes, pad_token_id=tiny.PAD)
    assert sizes_of(long) == sizes
    assert long.mask.sum() == short.mask.sum()
    assert (long.images.image_ids[:, -16:] == -1).all()
    features = [policy.encode_images(params, prompts.images) for prompts in (short, long)]
    count = int((short.tokens == tiny.IMAGE).sum(axis=1).max())
    np.testing.assert_allclose(features[0][:, :count], features[1][:, :count], atol=1e-5)
    assert pad_to_sizes(short, sizes_of(short), pad_token_id=tiny.PAD) is short


def test_a_batch_or_mesh_that_does_not_fit_is_refused_before_there_is_a_run(tmp_path):
    config = TrainConfig(out=tmp_path, prompts_per_step=6)
    with pytest.raises(UserError, match="6 prompts cannot be split into 1 micro-batches over 8"):
        train(config)
    with pytest.raises(UserError, match="does not fit the number of devices, 8"):
        train(dataclasses.replace(config, mesh=MeshConfig(data=3)))
    assert not (tmp_path / "balcap").exists()
