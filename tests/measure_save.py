"""How much a save of a large state holds up the steps beside it.

    python tests/measure_save.py /folder/on/a/disk 2.0       # GB of state
    python tests/measure_save.py gs://bucket/folder 2.0

Prints the device's idle share and the seconds of steps without and with a save under way.
"""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.storage.paths import as_path
from balcap_jax.training.checkpoint import Checkpoints

LAYERS = 16


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
        """Steps until it holds of the seconds since the first."""
        clock.idle_share()
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
            idle, seconds, steps = lap(lambda seconds: seconds > 10)
            print(f"without a save: idle {idle:.3f}, {seconds:.3f} s a step, {steps} steps")
            checkpoints.save(number, state, {})
            told: dict[str, float] = {}

            def committed(_: float, told: dict[str, float] = told) -> bool:
                told.update(checkpoints.times())
                return bool(told)

            idle, seconds, steps = lap(committed)
            print(
                f"beside a save: idle {idle:.3f}, {seconds:.3f} s a step, {steps} steps; held "
                f"{told['save/held_seconds']:.2f} s, whole after {told['save/seconds']:.1f} s, "
                f"{told['save/mb']:.0f} MB"
            )
    clock.close()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
