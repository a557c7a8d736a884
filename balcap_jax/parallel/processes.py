"""Several processes as one run: how they find one another, and what their hosts exchange.

A run of one process needs none of this, and all functions here then do nothing. JAX's own runtime
joins the devices and carries what is exchanged; `control` is how hosts meet and learn of an end.
"""

import hashlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import flat
from balcap_jax.config.sections import DistConfig
from balcap_jax.errors import UserError
from balcap_jax.parallel import exchange
from balcap_jax.parallel.control import Control, end_process
from balcap_jax.parallel.exchange import Exchange, process_index
from balcap_jax.parallel.meeting import bind_address
from balcap_jax.parallel.sharding import BatchRows

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
_SLICE_BYTES = 1 << 28  # of a parameter that are gathered at once
# How long an error of a collective may be ahead of the news that a process has ended, in seconds.
_NEWS = 5.0
_LISTED_FILES = 200  # of a folder; of more, sizes are compared by their digest


class Place(NamedTuple):
    """Which process this is.

    Attributes:
      coordinator: HOST:PORT of process 0.
      local_devices: numbers of the devices that this process uses; None: all.
    """

    coordinator: str
    processes: int
    process: int
    local_devices: list[int] | None = None


# Start and end ----------------------------------------------------------------------------------


@contextmanager
def joined(
    dist: DistConfig, *, facts: Callable[[], Mapping[str, Any]], run: Path
) -> Iterator[None]:
    """Inside, the processes of the run are one: `jax.devices()` are those of all of them.

    Where a process fails or dies, the others end with a sentence that says which, and why.

    Args:
      facts: gives what must be equal on all processes, by name.
      run: the run's folder, for the sentence.

    Raises:
      UserError: the processes cannot meet, or differ in their facts.
    """
    place = find_place(dist)
    if place is None:
        yield
        return

    def lost(sentence: str) -> None:
        end_process(
            f"{sentence}; process {place.process} ends with it. What was saved is intact: go on "
            f"with `balcap train --resume {run}`, on any number of hosts."
        )

    control = Control(
        place.coordinator,
        process=place.process,
        processes=place.processes,
        facts=facts(),
        timeout=dist.start_timeout,
        patience=dist.lost_after,
        on_lost=lost,
    )
    try:
        exchange.current = _start_jax(place, dist)
        yield
    except BaseException as error:
        if not isinstance(error, (UserError, KeyboardInterrupt)):
            control.wait_for_loss(_NEWS)
        control.end(_one_line(error))
        raise
    else:
        control.close()
        _jax().distributed.shutdown()
    finally:
        exchange.current = None


def find_place(dist: DistConfig) -> Place | None:
    """Which process this is by its settings or its environment; None: the only one.

    Raises:
      UserError: the environment says that there are several processes, but not where they meet.
    """
    if dist.coordinator == "none":
        return None
    if dist.coordinator != "auto":
        one = dist.processes == 1
        return None if one else Place(dist.coordinator, dist.processes, dist.process)
    method = _cluster(os.environ)
    if method is None:
        return None
    # JAX knows how each kind of cluster names its hosts; asked here, since it would start its
    # service with the answer at once, and ends the process in C++ where that fails.
    from jax._src.clusters import ClusterEnv

    try:
        address, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None if method == "tpu" else method, int(dist.start_timeout)
        )
    except Exception as error:  # of whatever the cluster's services raise
        raise UserError(
            f"The hosts of this {method} job cannot be found ({_one_line(error)}); name them with "
            "--dist.coordinator HOST:PORT --dist.processes N --dist.process I, or train on this "
            "host alone with --dist.coordinator none."
        ) from error
    if address is None or processes is None or process is None or processes == 1:
        return None
    if method == "slurm" and os.environ.get("SLURM_STEP_NUM_NODES") == str(processes):
        devices = None  # JAX gives each task one GPU, also where it has the node to itself
    return Place(address, processes, process, None if devices is None else list(devices))


def _cluster(environment: Mapping[str, str]) -> str | None:
    """The kind of cluster that has started several processes, None where nothing says so."""
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return "slurm"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "ompi"
    platforms = _jax().config.jax_platforms or "tpu"
    if "tpu" in platforms and _on_cloud_tpu():
        return "tpu"
    return None


def _on_cloud_tpu() -> bool:
    from jax._src import cloud_tpu_init

    return cloud_tpu_init.running_in_cloud_tpu_vm


def _start_jax(place: Place, dist: DistConfig) -> Exchange:
    jax = _jax()
    host, _, port = place.coordinator.rpartition(":")
    # It would take SIGTERM away from the run, which saves on it.
    jax.config.update("jax_enable_preemption_service", False)  # noqa: FBT003
    jax.distributed.initialize(
        coordinator_address=place.coordinator,
        num_processes=place.processes,
        process_id=place.process,
        coordinator_bind_address=bind_address(host, int(port)) if place.process == 0 else None,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(dist.start_timeout),
        # `control` is faster; this is for a process that hangs in C++ so that it hears nothing.
        heartbeat_timeout_seconds=int(dist.lost_after) + 20,
    )
    # JAX gives its key-value store by no public name; orbax takes it by this one.
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None
    return Exchange(client, process=place.process, processes=place.processes)


# What must be equal -----------------------------------------------------------------------------


def facts_of(config: TrainConfig, *, resume: Path | None) -> dict[str, Any]:
    """What all processes of a run must agree in: versions, settings, and the sizes of the files
    that each reads for itself.
    """
    settings = flat(to_dict(config))
    for name in ("dist.process", "dist.coordinator"):  # they have met, by whatever name of a host
        del settings[name]
    return {
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
        "the code of balcap_jax": _digest(Path(__file__).parents[1]),
        **settings,
        "--resume": str(resume),
        **_sizes("data.path", Path(config.data.path)),
        **_sizes("model.path", Path(config.model.path)),
    }


def _digest(package: Path) -> str:
    """Of the package's Python files: its version does not change from commit to commit."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _sizes(name: str, path: Path) -> dict[str, int | str]:
    """Bytes of a file, or of the files of a folder."""
    paths = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.is_file())
    sizes = {f"bytes of {name} ({p.name})": p.stat().st_size for p in paths}
    if len(sizes) <= _LISTED_FILES:
        return sizes
    digest = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:12]
    return {
        f"files of {name}": len(sizes),
        f"bytes of {name}": sum(sizes.values()),
        f"names and sizes of {name}": digest,
    }


def check_shared(folder: Path) -> None:
    """Refuses a run's folder that is not the same on all hosts.

    Raises:
      UserError: on all of them, and names those that see another folder.
    """
    if exchange.current is None:
        return
    mark = folder / f".{exchange.current.from_process_zero(uuid.uuid4().hex, tag='mark')}.shared"
    on_process_zero(mark.touch)
    deadline = time.monotonic() + 10  # a network's folder may show a new file late
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    seen = exchange.current.gather(mark.exists(), tag="shared")
    on_process_zero(mark.unlink)
    if not all(seen):
        blind = ", ".join(str(process) for process, sees in enumerate(seen) if not sees)
        raise UserError(
            f"{folder} is not one folder for all hosts, because process {blind} does not see what "
            "process 0 writes there; put --out on storage that all hosts share."
        )


# What hosts exchange ----------------------------------------------------------------------------


def is_alone() -> bool:
    """Whether the run has one process only."""
    return exchange.current is None


def is_process_zero() -> bool:
    """Whether this process is the one that writes and prints."""
    return process_index() == 0


def on_process_zero(action: Callable[[], Any]) -> None:
    """Process 0 does it, and the others go on when it is done.

    Raises:
      UserError: on all processes, where it raises one.
    """
    failure = None
    if is_process_zero():
        try:
            action()
        except UserError as error:
            failure = str(error)
    if exchange.current is not None:
        failure = exchange.current.from_process_zero(failure, tag="on_process_zero")
        if not isinstance(failure, str | None):
            raise RuntimeError(f"process 0 gave {failure!r:.100} for a sentence")
    if failure is not None:
        raise UserError(failure)


def any_process(condition: bool) -> bool:  # noqa: FBT001
    """Whether the condition holds on any process; the same answer on all."""
    return any(_gather(condition, bool, tag="any_process"))


def gather_list(items: list) -> list:
    """The items of all processes, those of process 0 first; plain JSON."""
    return [item for part in _gather(items, list, tag="gather_list") for item in part]


def largest(sizes: list[int]) -> list[int]:
    """Each size at its largest over all processes."""
    return np.max(_gather(sizes, list, tag="largest"), axis=0).tolist()


def _gather(value: Any, kind: type, *, tag: str) -> list:
    """The value of each process; RuntimeError where one is of another kind."""
    if exchange.current is None:
        return [value]
    values = exchange.current.gather(value, tag=tag)
    if not all(isinstance(v, kind) for v in values):
        raise RuntimeError(f"a process gave something else than a {kind.__name__} for {tag!r}")
    return values


def gather_rows(rows: BatchRows, tree: Any) -> Any:
    """The whole batch on every process, from each process's own rows.

    Args:
      tree: numpy arrays [own rows ...] of at most 32 bits.

    Returns:
      The arrays [all rows ...], in the order of the batch.
    """
    if exchange.current is None:
        return tree
    from jax.experimental import multihost_utils

    jax = _jax()
    most = max(map(len, rows.judged_by))

    def whole(x: np.ndarray) -> np.ndarray:
        # All processes must give as many rows; the filling is not read.
        filled = np.zeros((most, *x.shape[1:]), x.dtype)
        filled[: len(x)] = x
        parts = np.asarray(multihost_utils.process_allgather(filled))
        batch = np.empty((sum(map(len, rows.judged_by)), *x.shape[1:]), x.dtype)
        for owned, part in zip(rows.judged_by, parts, strict=True):
            batch[owned] = part[: len(owned)]
        return batch

    return jax.tree.map(whole, tree)


def to_process_zero(tree: Any) -> Any:
    """Numpy arrays of device arrays that may lie on many hosts, on process 0; None on the others.

    In slices: no device and no other host holds a large parameter as a whole. Of a process alone
    they stay where they are, and who writes them takes them to the host piece by piece.
    """
    from jax.experimental import multihost_utils

    jax = _jax()
    if exchange.current is None:
        return tree

    def fetch(x: Any) -> np.ndarray | None:
        step = max(1, _SLICE_BYTES * max(len(x), 1) // max(x.nbytes, 1)) if x.ndim else 1
        whole = np.empty(x.shape, x.dtype) if is_process_zero() else None
        for start in range(0, len(x), step) if x.ndim else (0,):
            part = x[start : start + step] if x.ndim else x
            host = multihost_utils.process_allgather(part, tiled=True)
            if whole is not None:
                whole[(slice(start, start + step),) if x.ndim else ()] = host
        return whole

    fetched = jax.tree.map(fetch, tree)
    return fetched if is_process_zero() else None


def _jax() -> Any:
    import jax  # not above: the flags of a command must not wait for it

    return jax


def _one_line(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"[:500]
