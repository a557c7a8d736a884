"""What runs in tests of training may leave out."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from matplotlib.figure import Figure

from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.training import task_run


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Curves are files without content: drawing them takes longer than the steps of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, path, **__: Path(path).write_bytes(b""))
        yield


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """For what does not depend on the mesh: programs for one device compile fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
        yield
