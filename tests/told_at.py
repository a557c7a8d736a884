"""`balcap ...` that is sent SIGTERM at one moment of a run, as a preemption would.

    python tests/told_at.py MOMENT train --out gs://bucket/runs ...

Prints "told STEP TIME": the step that was being made, counted from 1, and the time by the clock of
the machine.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

AT = 4  # the step
HANGS = 300.0  # seconds of a judge that has stopped responding


def told() -> None:
    print(f"told {AT} {time.time()}", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _before(owner: Any, name: str, *, call: int = AT, then: Callable[[], None] = told) -> None:
    """Before so many-th call of a function."""
    found, made = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made == call:
            then()
        return found(*args, **kwargs)

    setattr(owner, name, wrapped)


def rollout() -> None:
    """The device samples, and its captions are waited for."""
    from balcap_jax.training import rollout_queue

    sampled = rollout_queue.Captioner.sampled
    in_step = rollout_queue.RolloutQueue._sample

    def sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        rollout_queue.Captioner.sampled = counted  # evaluations sample, too, and are not meant
        try:
            return in_step(self, *args, **kwargs)
        finally:
            rollout_queue.Captioner.sampled = sampled

    _before(rollout_queue.Captioner, "sampled")
    counted = rollout_queue.Captioner.sampled
    rollout_queue.Captioner.sampled = sampled
    rollout_queue.RolloutQueue._sample = sample


def judge() -> None:
    """The judge has stopped responding, and does not listen either."""
    from balcap_jax.rewards.scene import judge as scene

    def hang() -> None:
        told()
        time.sleep(HANGS)

    # One call before the first step, and one in each.
    _before(scene.SceneJudge, "__call__", call=AT + 1, then=hang)


def update() -> None:
    """The device learns."""
    from balcap_jax.training.learner import Learner

    _before(Learner, "_updates")


def save() -> None:
    """The state is copied, and on its way to the bucket."""
    from balcap_jax.training.checkpoint import Checkpoints

    found = Checkpoints.save

    def wrapped(self: Any, step: int, *args: Any, **kwargs: Any) -> None:
        found(self, step, *args, **kwargs)
        if step == AT:
            Checkpoints.save = found
            told()

    Checkpoints.save = wrapped


def evaluation() -> None:
    """Held-out images are captioned: the second batch of them after the step."""
    from balcap_jax.training.loop import TrainingLoop
    from balcap_jax.training.rollout_queue import Captioner

    evaluate = TrainingLoop._evaluate

    def wrapped(self: Any, when: str, **kwargs: Any) -> Any:
        if when == f"step_{AT:06d}":
            _before(Captioner, "generate", call=2)
            _before(Captioner, "generate", call=3, then=lambda: print("a batch more", flush=True))
        return evaluate(self, when, **kwargs)

    TrainingLoop._evaluate = wrapped


MOMENTS = (rollout, judge, update, save, evaluation)


if __name__ == "__main__":
    from balcap_jax.cli.main import main

    {moment.__name__: moment for moment in MOMENTS}[sys.argv.pop(1)]()
    sys.exit(main())
