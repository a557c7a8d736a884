"""How much a save of a large state holds up the steps beside it.

    python tests/measure_save.py /folder/on/a/disk 2.0       # GB of state
    python tests/measure_save.py gs://bucket/folder 2.0

Prints the device's idle share and the seconds of steps without a save, beside one that is under
way, and from the call of `save` on, in which its caller is held; and where it is held.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.storage.paths import as_path
from balcap_jax.training import checkpoint
from balcap_jax.training.checkpoint import Checkpoints

LAYERS = 16


@contextmanager
def timed(room: Any, name: str) -> Iterator[list[float]]:
    """Seconds of each call of a function."""
    found, seconds = getattr(room, name), []

    def wrapped(*args: Any) -> Any:
        began = time.perf_counter()
        try:
            return found(*args)
        finally:
            seconds.append(time.perf_counter() - began)

    setattr(room, name, wrapped)
    try:
        yield seconds
    finally:
        setattr(room, name, found)


def main(folder: str, gigabytes: float) -> None:
    """Two laps of the same steps."""
    width = int((gigabytes * 1e9 / 4 / LAYERS) ** 0.5)
    state = [jnp.full((width, width), 0.5 / width, jnp.float32) for _ in range(LAYERS)]

    @jax.jit
    def step(state: list[jax.Array], x: jax.Array) -> jax.Array:
        for layer in state:
            x = jnp.tanh(x @ layer)
        return x

    x = jnp.ones((8, width))
    jax.block_until_ready(step(state, x))
    clock = DeviceClock()

    def lap(until: Callable[[float], bool]) -> tuple[float, float, int]:
        """Steps until it holds of the seconds since the first; idle is what was since the last."""
        began, count = time.perf_counter(), 0
        while not count or not until(time.perf_counter() - began):
            start = clock.start()
            y = step(state, x)
            clock.ran(start, y)
            jax.block_until_ready(y)
            count += 1
        took = time.perf_counter() - began
        return clock.idle_share(), took / count, count

    with Checkpoints(as_path(folder) / "measure_save") as checkpoints:
        for number in range(2):
            clock.idle_share()
            idle, seconds, steps = lap(lambda seconds: seconds > 10)
            print(f"without a save: idle {idle:.3f}, {seconds:.3f} s a step, {steps} steps")
            called = time.perf_counter()
            with timed(checkpoint, "checksums") as summed:
                checkpoints.save(number, state, {})
            clock.idle_share()
            told: dict[str, float] = {}

            def committed(_: float, told: dict[str, float] = told) -> bool:
                told.update(checkpoints.times())
                return bool(told)

            idle, seconds, steps = lap(committed)
            held, took = told["save/held_seconds"], time.perf_counter() - called
            print(
                f"beside a save: idle {idle:.3f}, {seconds:.3f} s a step, {steps} steps; whole "
                f"after {told['save/seconds']:.1f} s, {told['save/mb']:.0f} MB"
            )
            print(
                f"from the call on: idle {(held + idle * (took - held)) / took:.3f}; held "
                f"{held:.2f} s, {sum(summed):.2f} s of them for checksums"
            )
    clock.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
