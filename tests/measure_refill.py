"""Would it pay to refill the sampler's columns from a queue of prompts?

    python tests/measure_refill.py            # the default run's captions, its policy of now
    python tests/measure_refill.py runs/balcap --rounds 9

Captions of the default run (4 batches of 8 scenes with 8 captions) are drawn one batch after the
other, as `balcap train` and `balcap caption` do. Their lengths, and what a step costs here with so
many columns, tell what a sampler with a queue would need for the same captions: a column whose
caption has ended takes the next one of the queue, at a look every so many steps, for nothing but
the prefill of its prompt. That nothing is counted for moving caches makes it a bound from below.
Where a step costs the same whatever the number of columns, as on devices that wait for weights, all
captions at once are the third way.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from balcap_jax.config.commands import TrainConfig
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rollout.rollout import Captioner
from balcap_jax.rollout.sampling import encode_images, sizes_of_compaction
from balcap_jax.training.opening import open_policy
from balcap_jax.training.seams import Seams, open_data

BATCHES = 4
LOOKS = (1, 2, 4, 8, 16)  # steps between two looks for columns that are free


def queue(lengths: Sequence[int], columns: int, every: int) -> list[int]:
    """Columns in use after each step, of captions taken in order.

    Args:
      lengths: tokens of each caption.
      every: steps between two looks.
    """
    waiting, left, used = list(lengths), [0] * columns, []
    while waiting or any(n > 0 for n in left):
        if len(used) % every == 0:
            for at, n in enumerate(left):
                if n <= 0 and waiting:
                    left[at] = waiting.pop(0)
        used.append(sum(n > 0 for n in left))
        left = [n - 1 for n in left]
    return used


def compacted(lengths: np.ndarray, sizes: Sequence[int]) -> list[int]:
    """Columns computed in each step of one batch, which goes on with fewer where these suffice."""
    running = [(lengths > step).sum() for step in range(lengths.max())]
    return [min(size for size in sizes if size >= n) for n in running]


def main(policy: str, rounds: int) -> None:
    """Prints the three ways."""
    config = TrainConfig.of({"model.path": policy} if policy else {})
    B, G, C = (
        config.prompts_per_step, config.rollout.group_size, config.rollout.max_new_tokens
    )  # fmt: skip
    mesh = make_mesh(devices=jax.devices()[:1])
    source, _ = open_data(config, Seams())
    opened = open_policy(config, mesh)
    captioner = Captioner(
        opened.policy, opened.processor, mesh, group_size=G, max_new_tokens=C,
        temperature=config.rollout.temperature, top_p=config.rollout.top_p,
    )  # fmt: skip
    prompts = [opened.processor.prompts([source[i * B + j] for j in range(B)])
               for i in range(BATCHES)]  # fmt: skip

    def draw(i: int) -> np.ndarray:
        rollout = captioner.generate(opened.params, [None] * B, jax.random.key(i),
                                     prompts=prompts[i]).rollout  # fmt: skip
        return np.asarray(rollout.mask).sum(axis=-1).reshape(-1)

    lengths = [draw(i) for i in range(BATCHES)]
    sizes = (B * G, *sizes_of_compaction(B * G, mesh))

    def loop(images: int, group: int, steps: int) -> Callable[[], object]:
        """So many steps of so many columns, of which none ends."""
        wanted = jax.tree.map(lambda x: np.resize(x, (images, *x.shape[1:])), prompts[0])
        features = encode_images(opened.policy, opened.params, wanted.images)
        keys = jax.random.split(jax.random.key(0), (images, group))
        sampler = captioner.sampler(opened.policy)
        return partial(
            sampler, opened.params, wanted, features, keys, max_new_tokens=steps, stop_tokens=()
        )

    groups = {"grouped": (B, G)} | {str(n): (n, 1) for n in sizes}
    timed: dict[str, list[float]] = {}
    loops = {(name, steps): loop(*shape, steps) for name, shape in groups.items()
             for steps in (1, C)}  # fmt: skip
    batches: list[float] = []
    for turn in range(rounds + 1):  # the first one compiles
        for (name, steps), run in loops.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                timed.setdefault(f"{name} {steps}", []).append(time.perf_counter() - start)
        start = time.perf_counter()
        for i in range(BATCHES):
            draw(i)
        if turn:
            batches.append(time.perf_counter() - start)
    median = {name: statistics.median(seconds) for name, seconds in timed.items()}
    prefill = median["grouped 1"]  # of B prompts, with one step
    cost = {name: (median[f"{name} {C}"] - median[f"{name} 1"]) / (C - 1) for name in groups}
    cost_of = {n: cost[str(n)] for n in sizes} | {sizes[0]: cost["grouped"]}

    every = np.concatenate(lengths)
    print(f"{len(every)} captions of {every.mean():.0f} tokens on average, {every.max()} at most")
    print("ms a step: " + ", ".join(f"{name} columns {1e3 * s:.2f}" for name, s in cost.items()))
    steps = [compacted(n, sizes) for n in lengths]
    told = BATCHES * prefill + sum(cost_of[n] for each in steps for n in each)
    print(f"one batch after the other: measured {statistics.median(batches):.2f} s, "
          f"{told:.2f} s by the costs of steps")  # fmt: skip
    whole = sum(len(each) for each in steps)
    for look in LOOKS:
        used = queue(every, sizes[0], look)
        left = len(used) - next(i for i, n in enumerate(reversed(used)) if n > sizes[0] // 2)
        tail = sum(cost_of[min(s for s in sizes if s >= n)] for n in used[left:])
        seconds = BATCHES * prefill + left * cost[str(sizes[0])] + tail
        print(f"a queue, a look every {look:2} steps: at least {seconds:.2f} s, "
              f"{told / seconds:.2f} x; steps alone {whole / len(used):.2f} x")  # fmt: skip
    print(f"all at once: steps alone {whole / every.max():.2f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", nargs="?", default="")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    main(flags.policy, flags.rounds)
