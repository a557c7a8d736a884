"""Ctrl-C, SIGTERM and SIGHUP: the first saves, the second ends at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import tiny
from small_run import params_of, small

from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    RolloutConfig,
)
from balcap_jax.runs.fields import without_wall_clock
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training.interrupts import Interrupts, Stopped
from balcap_jax.training.trainer import Trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_outside_it_raises_and_inside_it_waits(number):
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        with interrupts.held():
            signal.raise_signal(number)
            assert interrupts.stop.wait(60)
        time.sleep(0.05)
    assert signal.getsignal(number) == before
    with Interrupts(), pytest.raises(Stopped) as stopped:
        signal.raise_signal(number)
    assert stopped.value.exit_code == 128 + number


def test_in_another_thread_signals_are_the_callers():
    found = []

    def run():
        with Interrupts():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


# Its main thread is in C, as while a program compiles: Python's own handlers do not run there. What
# time it is its listener asks on stdin.
BUSY = """
import hashlib, signal, sys, types
from balcap_jax.training import interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs

def asked():
    print("when?", flush=True)
    return float(sys.stdin.readline())

interrupts.time = types.SimpleNamespace(monotonic=asked)
with interrupts.Interrupts() as listening, listening.held():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # a quarter of an hour
"""


class Busy:
    """A process that is told the time of each signal."""

    def __init__(self, **options):
        root = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUSY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root},
            **options,
        )

    def __enter__(self) -> "Busy":
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()

    def send(self, number: int, *, at: float) -> None:
        """A signal, which it hears `at` s."""
        self.process.send_signal(number)
        assert self.process.stdout.readline() == "when?\n"
        print(at, file=self.process.stdin, flush=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_second_one_ends_at_once_also_within_a_compilation(number):
    with Busy() as child:
        child.send(number, at=10.0)
        assert number.name in child.process.stderr.readline()
        # Of a launcher that passes on what it has got: the same wish.
        child.send(number, at=10.2)
        child.send(number, at=10.29)
        assert child.process.poll() is None
        child.send(number, at=10.31)
        assert child.process.wait(timeout=120) == 128 + number


def test_what_is_ignored_stays_ignored():
    """nohup."""
    with Busy(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as child:
        for _ in range(3):
            child.process.send_signal(signal.SIGHUP)
        child.send(signal.SIGTERM, at=10.0)
        assert "SIGTERM" in child.process.stderr.readline()  # which is the first that it hears
        assert child.process.poll() is None


class Calls:
    """A reward function that gets the run interrupted in call `at`, and answers much too late."""

    def __init__(self, at: int | None):
        self.at, self.made, self.seconds = at, 0, 300.0
        self.__name__ = "letters"

    def __call__(self, completions, **_):
        self.made += 1
        if self.made == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + self.seconds
            while time.monotonic() < deadline and not self.given_up.is_set():
                time.sleep(0.05)
        return [float(len(text)) for text in completions]

    given_up = threading.Event()


@pytest.fixture
def no_late_threads():
    Calls.given_up = threading.Event()
    yield
    Calls.given_up.set()


def config_of(out: Path, name: str, overlap: int):
    return small(
        out,
        name=name,
        steps=3,
        prompts_per_step=8,
        mesh=MeshConfig(),
        data=DataConfig(heldout=2),
        reward=RewardConfig(names=("precision",)),
        rollout=RolloutConfig(group_size=2, max_new_tokens=6, overlap_steps=overlap),
        checkpoint=CheckpointConfig(every=9),
        evaluation=EvaluationConfig(every=2, batch_size=2),
        sample_every=2,
        log_every=3,
    )


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("overlap", [0, 2])
def test_a_wait_for_the_judge_ends_with_a_signal_and_nothing_is_lost(
    tmp_path, capsys, no_late_threads, monkeypatch, overlap
):
    """In every call of a run: the evaluations before, between and after the steps, and in each."""
    monkeypatch.setattr("balcap_jax.training.judge_queue._LAST", 0.5)
    counting = Calls(None)
    unbroken = Trainer(config_of(tmp_path, "unbroken", overlap), reward_funcs=counting).train()
    assert counting.made == 6  # before, 3 steps, after step 2, after
    for at in range(1, counting.made + 1):
        trainer = Trainer(config_of(tmp_path, f"at-{at}", overlap), reward_funcs=Calls(at))
        # Before a step is made there is nothing to save.
        with pytest.raises(Stopped) if at <= 2 else nullcontext() as stopped:
            trainer.train()
        assert stopped is None or stopped.value.exit_code == 128 + signal.SIGTERM
        said = capsys.readouterr().out
        assert f"Trainer(resume='{trainer.run}'" in said
        assert not (trainer.run / "summary.json").exists()
        again = Trainer(
            config_of(tmp_path, f"at-{at}", overlap), resume=trainer.run, reward_funcs=Calls(None)
        ).train()
        for name in ("metrics.jsonl", "samples.jsonl"):
            rows, expected = read_jsonl(again / name), read_jsonl(unbroken / name)
            assert [without_wall_clock(row) for row in rows] == [
                without_wall_clock(row) for row in expected
            ], (at, name)
        tiny.assert_equal_trees(params_of(again), params_of(unbroken))
