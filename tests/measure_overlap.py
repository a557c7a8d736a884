"""What waiting for the judge costs: `python tests/measure_overlap.py`. A measurement, not a test.

A server that takes 200 ms per call judges captions of a queue of rollouts with 64 calls at once,
while the device is busy for as long as the judging takes. The device is a pause, because a GPU
leaves the host to the judge; all else is what `balcap train` runs.
"""

import multiprocessing
import tempfile
import time
import types
from pathlib import Path

from judge_server import JudgeServer

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import RolloutConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.parallel.sharding import BatchRows, make_mesh
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rollout.rollout import Caption
from balcap_jax.runs.stopwatch import Stopwatch
from balcap_jax.training.judge_queue import JudgeQueue
from balcap_jax.training.rollout_queue import RolloutQueue

LATENCY, CONCURRENCY, IMAGES, GROUP, STEPS = 0.2, 64, 32, 16, 6


class Data:
    """The examples of a step, which are at hand."""

    def __init__(self):
        self.source = SceneSource("train", 10**6)

    def step(self, number: int):
        return [self.source[IMAGES * number + i] for i in range(IMAGES)], None


class Device:
    """Samples captions in `seconds`."""

    def __init__(self, seconds: float):
        self.seconds, self.count = seconds, 0

    def generate(self, params, examples, key, *, images, prompts):
        time.sleep(self.seconds)
        self.count += 1
        return types.SimpleNamespace(rollout=(self.count, examples))

    def sampled(self, rollout):
        step, examples = rollout
        return [
            [Caption(f"{e.reference} This is {g} of {step}.", [1]) for g in range(GROUP)]
            for e in examples
        ]


def measure(url: str, *, overlap: int, device_seconds: float) -> tuple[float, float]:
    """(seconds per step, of which the device waited) over the steps after the first two."""
    with tempfile.TemporaryDirectory() as folder:
        judge = LLMJudge(
            JudgeConfig(
                kind="llm",
                model="m",
                base_url=url,
                concurrency=CONCURRENCY,
                cache=Path(folder) / "cache.sqlite",
            )  # fmt: skip
        )
        config = TrainConfig(
            steps=STEPS + 2,
            prompts_per_step=IMAGES,
            rollout=RolloutConfig(group_size=GROUP, overlap_steps=overlap),
        )
        watch = Stopwatch()
        judging = JudgeQueue(judge, background=overlap > 0)
        queue = RolloutQueue(
            config,
            Data(),
            Device(device_seconds / 2),
            judging,
            watch,
            rows=BatchRows.of(make_mesh(), IMAGES),
        )
        steps = []
        for step in range(STEPS + 2):
            now = queue.current(step, {})
            with watch.stage("judge"):
                assert None not in now.answer.result().verdicts
            time.sleep(device_seconds / 2)  # the update
            queue.advance()
            steps.append(watch.lap(tokens=0))
        judging.close()
    kept = steps[2:]
    return tuple(sum(row[f"seconds/{n}"] for row in kept) / STEPS for n in ("step", "judge"))


def serve(connection) -> None:
    """The server, in a process of its own as servers are: it must not share our interpreter."""
    with JudgeServer(latency=LATENCY) as server:
        connection.send(server.url)
        connection.recv()


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    url = here.recv()
    _, alone = measure(url, overlap=0, device_seconds=0.0)
    print(f"judging {IMAGES * GROUP} captions: {alone:.2f} s")
    for overlap in (0, 1):
        step, waited = measure(url, overlap=overlap, device_seconds=alone)
        print(
            f"overlap_steps={overlap}: step {step:.2f} s, waits {waited:.2f} s "
            f"({waited / step:.1%}), beyond the device {step - alone:.2f} s "
            f"({(step - alone) / step:.1%})"
        )
    here.send(None)
    process.join()
