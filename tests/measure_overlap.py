"""What waiting for the judge costs: `python tests/measure_overlap.py`. A measurement, not a test.

A server that takes 200 ms per call judges captions of a queue of rollouts with 64 calls at once,
while the device is busy for as long as the judging takes. The device is a pause, because a GPU
leaves the host to the judge; all else is what `balcap train` runs. Of a judge of 4 s a call beside
steps of 5 s:

    python tests/measure_overlap.py --latency 4 --concurrency 512 --device 5 --overlap 0 1 2 4

Captions end one after the other while the device samples, and are told as they do; `--whole` hands
them in together when the last one has ended.
"""

import argparse
import multiprocessing
import tempfile
import time
import types
from pathlib import Path

import numpy as np
from judge_server import JudgeServer

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import RolloutConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.parallel.sharding import BatchRows, make_mesh
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rollout.rollout import Caption
from balcap_jax.runs.stopwatch import Stopwatch
from balcap_jax.training.judge_load import JudgeLoad
from balcap_jax.training.judge_queue import JudgeQueue
from balcap_jax.training.rollout_queue import RolloutQueue

IMAGES, GROUP, CHUNKS = 32, 16, 16


class Data:
    """The examples of a step, which are at hand."""

    def __init__(self):
        self.source = SceneSource("train", 10**6)

    def step(self, number: int):
        return [self.source[IMAGES * number + i] for i in range(IMAGES)], None


class Device:
    """Samples captions in `seconds`, an equal share of them ends in each of the chunks."""

    def __init__(self, seconds: float):
        self.seconds, self.count = seconds, 0

    def generate(self, params, examples, key, *, images, prompts, tell=None):
        self.count += 1
        rollout = self.count, examples
        sampled = self.sampled(rollout)
        for places in np.array_split(np.random.default_rng(0).permutation(IMAGES * GROUP), CHUNKS):
            time.sleep(self.seconds / CHUNKS)
            for row, place in (divmod(int(n), GROUP) for n in places if tell is not None):
                tell(row, place, sampled[row][place])
        return types.SimpleNamespace(rollout=rollout)

    def sampled(self, rollout):
        step, examples = rollout
        return [
            [Caption(f"{e.reference} This is {g} of {step}.", [1]) for g in range(GROUP)]
            for e in examples
        ]


def measure(
    url: str, *, overlap: int, device_seconds: float, concurrency: int, steps: int, whole: bool
) -> tuple[float, float]:
    """(seconds per step, of which the device waited) over `steps` after those that fill the
    queue.
    """
    first = overlap + 2
    with tempfile.TemporaryDirectory() as folder:
        judge = LLMJudge(
            JudgeConfig(
                kind="llm",
                model="m",
                base_url=url,
                concurrency=concurrency,
                cache=Path(folder) / "cache.sqlite",
            )  # fmt: skip
        )
        config = TrainConfig(
            steps=steps + first,
            prompts_per_step=IMAGES,
            rollout=RolloutConfig(group_size=GROUP, overlap_steps=overlap),
        )
        watch = Stopwatch()
        judging = JudgeQueue(judge, background=overlap > 0)
        if whole:
            judging.expect = lambda examples: None
        queue = RolloutQueue(
            config,
            Data(),
            Device(device_seconds / 2),
            judging,
            watch,
            rows=BatchRows.of(make_mesh(), IMAGES),
        )
        load = JudgeLoad({"judge.concurrency": concurrency}, steps=overlap + 1)
        rows = []
        for step in range(steps + first):
            now = queue.current(step, {})
            with watch.stage("judge"):
                answered = now.answer.result()
                assert None not in answered.verdicts
            time.sleep(device_seconds / 2)  # the update
            queue.advance()
            rows.append(row := watch.lap(tokens=0))
            busy = row["seconds/step"] - row["seconds/judge"]
            for line in load.add(answered.calls, device_seconds=busy) if overlap else ():
                print(line)
        judging.close()
    kept = rows[first:]
    return tuple(sum(row[f"seconds/{n}"] for row in kept) / steps for n in ("step", "judge"))


def serve(connection, latency: float) -> None:
    """The server, in a process of its own as servers are: it must not share our interpreter."""
    with JudgeServer(latency=latency) as server:
        connection.send(server.url)
        connection.recv()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latency", type=float, default=0.2, help="seconds of a call")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--device", type=float, help="seconds of a step; default: of the judging")
    parser.add_argument("--overlap", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, given.latency), daemon=True)
    process.start()
    url = here.recv()
    options = {"concurrency": given.concurrency, "steps": given.steps, "whole": given.whole}
    device = given.device
    if device is None:
        _, device = measure(url, overlap=0, device_seconds=0.0, **options)
        print(f"judging {IMAGES * GROUP} captions: {device:.2f} s")
    for overlap in given.overlap:
        step, waited = measure(url, overlap=overlap, device_seconds=device, **options)
        print(
            f"overlap_steps={overlap}: step {step:.2f} s, waits {waited:.2f} s "
            f"({waited / step:.1%}), beyond the device {step - device:.2f} s "
            f"({(step - device) / step:.1%})",
            flush=True,
        )
    here.send(None)
    process.join()
