"""What is logged is what happened, and kill -9 or a resume leave no wrong row behind."""

import json

import numpy as np
import pytest

from balcap_jax.errors import UserError
from balcap_jax.reporting.rows import caption_row
from balcap_jax.rewards.verdicts import Assertion, Verdict
from balcap_jax.runs.logs import RHO_EDGES, MetricsLog, SampleLog, without_wall_clock
from balcap_jax.runs.stopwatch import Stopwatch, peak_memory_mb
from balcap_jax.training.metrics import length_metrics, reward_metrics, rho_histogram

NAN = float("nan")


def lines(path):
    return path.read_text().splitlines()


def test_reward_metrics_by_hand():
    precision = np.float32([[0.2, 0.4, NAN], [0.5, 0.5, 0.5], [NAN, NAN, NAN]])
    linguistic = np.float32([[0.9, 0.5, 0.2], [0.6, 0.7, 0.6], [0.1, 1.0, NAN]])
    shown = np.float32([[0.9, 0.6, 0.3], [0.6, 0.6, 0.6], [0.0, 1.0, NAN]])  # of a study
    masked = np.float32([[0.9, 0.0, 0.3], [NAN, 0.6, 0.6], [0.0, 0.0, NAN]])
    row = reward_metrics(
        ("precision", "linguistic"),
        np.stack([precision, linguistic], axis=-1),
        np.stack([precision, shown], axis=-1),
        np.stack([precision, masked], axis=-1),
    )
    # precision: 0.2 0.4 0.5 0.5 0.5 -> sum 2.1, mean 0.42; squares 0.95 / 5 - 0.1764 = 0.0136
    # one of two groups with a signal is constant; 4 of 9 captions have none.
    # linguistic as judged: sum 4.6 over 8; squares 3.32 / 8 - 0.575^2 = 0.084375
    # after the mask, groups 2 and 3 are constant (a dropped reward does not vary its group);
    # the mask changed one caption in each group: 3 of 8.
    expected = {
        "reward/precision/mean": 0.42,
        "reward/precision/std": 0.0136**0.5,
        "reward/precision/constant_groups": 1 / 2,
        "reward/precision/masked": 0.0,
        "reward/precision/no_signal": 4 / 9,
        "reward/linguistic/mean": 4.6 / 8,
        "reward/linguistic/std": 0.084375**0.5,
        "reward/linguistic/constant_groups": 2 / 3,
        "reward/linguistic/masked": 3 / 8,
        "reward/linguistic/no_signal": 1 / 9,
    }
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(row[name], value, rtol=1e-6, err_msg=name)


def test_a_judge_outage_is_not_a_zero():
    rewards = np.full((2, 3, 1), NAN, np.float32)
    row = reward_metrics(("recall",), rewards, rewards, rewards)
    assert row["reward/recall/no_signal"] == 1.0
    for name in ("mean", "std", "constant_groups", "masked"):
        assert np.isnan(row[f"reward/recall/{name}"])


def test_length_metrics_by_hand():
    row = length_metrics(
        np.array([[10, 20], [5, 15]]),
        np.array([10, 0]),  # an empty reference counts as one unit
        np.array([[8, 16], [4, 12]]),
        np.array([[False, True], [False, False]]),
    )
    # rho: 1, 2, 5, 15
    assert row["rho/mean"] == 23 / 4
    np.testing.assert_allclose(row["rho/std"], np.std([1, 2, 5, 15]), rtol=1e-6)
    assert row["words"] == 10.0
    assert row["truncated"] == 0.25
    assert row["rho/hist"][RHO_EDGES.index(1.0)] == 1
    assert row["rho/hist"][RHO_EDGES.index(2.0)] == 1
    assert row["rho/hist"][-1] == 2
    assert sum(row["rho/hist"]) == 4


def test_rho_bins_hold_their_upper_edge():
    rho = np.array([0.0, 0.25, 0.2500001, 4.0, 4.1, 100.0])
    assert rho_histogram(rho) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    assert rho_histogram(np.array([])) == [0] * (len(RHO_EDGES) + 1)


def test_rows_are_on_disk_at_once_and_strict_json(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.log(1, {"loss": np.float32(0.5), "kl": NAN, "norm": np.inf, "rho/hist": np.arange(3)})
    (line,) = lines(tmp_path / "metrics.jsonl")  # the log is still open
    row = json.loads(line, parse_constant=pytest.fail)
    assert row == {"step": 1, "loss": 0.5, "kl": None, "norm": None, "rho/hist": [0, 1, 2]}
    log.close()


def test_tensorboard_holds_the_same_numbers(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log = MetricsLog(tmp_path)
    log.log(3, {"reward/recall/mean": 0.25, "rho/hist": rho_histogram(np.array([0.8, 1.1]))})
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, offset, values = file.read_bytes(), 0, {}
    while offset < len(data):  # record: length (8 bytes), checksum (4), event, checksum (4)
        length = int.from_bytes(data[offset : offset + 8], "little")
        event = Event.FromString(data[offset + 12 : offset + 12 + length])
        offset += 16 + length
        values |= {value.tag: (event.step, value) for value in event.summary.value}
    step, scalar = values["reward/recall/mean"]
    assert (step, scalar.simple_value) == (3, 0.25)
    step, histogram = values["rho/hist"]
    assert (step, histogram.histo.num) == (3, 2)
    assert list(histogram.histo.bucket_limit[:-1]) == list(RHO_EDGES)


def test_a_resumed_log_equals_an_unbroken_one(tmp_path):
    def row(step):
        return {"loss": step / 3, "kl": NAN if step % 2 else 0.1}

    unbroken = MetricsLog(tmp_path / "unbroken", tensorboard=False)
    for step in range(1, 7):
        unbroken.log(step, row(step))
    first = MetricsLog(tmp_path / "resumed", tensorboard=False)
    for step in range(1, 6):
        first.log(step, row(step))
    first.close()
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 2.')  # torn by kill -9
    second = MetricsLog(tmp_path / "resumed", tensorboard=False)
    assert len(lines(tmp_path / "resumed" / "metrics.jsonl")) == 5
    second.truncate_to(3)
    assert len(lines(tmp_path / "resumed" / "metrics.jsonl")) == 3
    for step in range(4, 7):
        second.log(step, row(step))
    expected = (tmp_path / "unbroken" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "resumed" / "metrics.jsonl").read_bytes() == expected


def test_truncating_survives_a_kill_between_its_writes(tmp_path, monkeypatch):
    """The file is the old one or the new one: the replacement is the only visible moment."""
    log = MetricsLog(tmp_path, tensorboard=False)
    for step in range(1, 4):
        log.log(step, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        log.truncate_to(1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    log = MetricsLog(tmp_path, tensorboard=False)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not JSON"):
        log.truncate_to(1)


def test_only_the_wall_clock_is_left_out_of_comparisons():
    row = {"step": 1, "loss": 0.5, "seconds/judge": 1.0, "tokens_per_second": 3.0, "words": 40}
    row |= {"peak_memory_mb": 900.0}
    assert without_wall_clock(row) == {"step": 1, "loss": 0.5, "words": 40}


def test_samples_hold_the_verdict(tmp_path):
    verdict = Verdict(
        assertions=(
            Assertion("a red circle", True, True),
            Assertion("a sense of calm", False, False),
        ),
        covered=(True, False),
        clarity=1.0,
        fluency=0.5,
        coherency=0.75,
    )
    row = caption_row(
        id="scene-7",
        caption="A red circle gives a sense of calm.",
        reference="A red circle and a star.",
        rewards={"precision": np.float32(0.5), "recall": NAN},
        verdict=verdict,
        units=("red circle", "star"),
        rho=8 / 6,
    )
    failed = caption_row(
        id="scene-8", caption="x", reference="y", rewards={"precision": NAN}, verdict=None,
        units=("y",), rho=1.0,
    )  # fmt: skip
    log = SampleLog(tmp_path)
    log.log(10, [row, failed])
    log.log(20, [row])
    log.truncate_to(10)
    log.close()
    first, second = map(json.loads, lines(tmp_path / "samples.jsonl"))
    assert first["step"] == second["step"] == 10
    assert first["words"] == 8
    assert first["rewards"] == {"precision": 0.5, "recall": None}
    assert first["verdict"]["assertions"][1] == {
        "text": "a sense of calm", "verified": False, "pointable": False,
    }  # fmt: skip
    assert first["verdict"]["units"] == ["red circle", "star"]
    assert first["verdict"]["covered"] == [True, False]
    assert second["verdict"] is None


def test_stopwatch_adds_up_and_starts_anew():
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])

    def spend(stage, seconds):
        with watch.stage(stage):
            now[0] += seconds

    spend("rollout", 2.0)
    spend("judge", 1.0)
    spend("rollout", 3.0)
    now[0] += 4.0  # outside every stage
    assert watch.lap(tokens=50) == {
        "seconds/rollout": 5.0,
        "seconds/judge": 1.0,
        "seconds/step": 10.0,
        "tokens_per_second": 5.0,
    }
    now[0] += 1.0
    assert watch.lap(tokens=0) == {"seconds/step": 1.0, "tokens_per_second": 0.0}
    spend("rollout", 4.0)
    assert watch.lap(tokens=8, steps=2) == {
        "seconds/rollout": 2.0,
        "seconds/step": 2.0,
        "tokens_per_second": 2.0,
    }


def test_peak_memory_is_in_megabytes():
    block = np.ones(100_000_000 // 8)  # touched, so resident
    peak = peak_memory_mb()
    assert block.nbytes / 1e6 < peak < 100_000
    del block
    assert peak_memory_mb() >= peak  # a peak does not fall
