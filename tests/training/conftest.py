"""What runs in tests of training may leave out."""

from collections.abc import Iterator
from functools import cache

import jax
import pytest

from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.reporting import report
from balcap_jax.training import programs, sft, task_run


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Curves are files without content: drawing them takes longer than the steps of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_curves", lambda _, path, **__: path.write_bytes(b""))
        for name in ("draw_lengths", "draw_captions"):
            patch.setattr(report, name, lambda *args, **_: args[-1].write_bytes(b""))
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_made_once() -> Iterator[None]:
    """Runs of a file with equal settings share their programs: tracing them takes longer, too."""
    optimizer = cache(programs.make_optimizer)

    def of_schedule(**options):
        """Runs of any number of steps share it where the rate does not depend on them."""
        if options["schedule"] == "constant":
            options["total_steps"] = 0
        return optimizer(**options)

    made = {
        programs: ("make_update", "make_reference_logprobs"),
        sft: ("make_supervised_update", "make_supervised_sums"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for room, names in made.items():
            for name in names:
                patch.setattr(room, name, cache(getattr(room, name)))
        patch.setattr(programs, "make_optimizer", of_schedule)
        yield


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """For what does not depend on the mesh: programs for one device compile fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_run, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1]))
        yield
