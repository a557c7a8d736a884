"""The wandb logger, offline and for real: what is in wandb's own file of the run."""

import json
import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from balcap_jax.errors import UserError
from balcap_jax.reporting.rows import caption_row
from balcap_jax.runs import wandb_logger
from balcap_jax.runs.loggers import make_loggers
from balcap_jax.runs.wandb_logger import ID_FILE, WandbLogger

wandb = pytest.importorskip("wandb", reason="wandb is not installed; it is in the extra 'test'")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "balcap"
    folder.mkdir()
    return folder


def records(run):
    """All records of the offline files of a run."""
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
    deadline = time.monotonic() + 30
    found = [_records(file) for file in files]
    # wandb's own process writes them, and may still do so when `finish` returns.
    while not all(any(record.HasField("exit") for record in part) for part in found):
        assert time.monotonic() < deadline, "wandb does not end its file"
        time.sleep(0.05)
        found = [_records(file) for file in files]
    return [record for part in found for record in part]


def _records(file):
    """What is whole in a file of LevelDB's log format behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, whole, found, size = file.read_bytes(), 7, b"", [], 32768  # of a block
    while offset + 7 <= len(data):
        if size - offset % size < 7:  # too little for a header: the block ends
            offset += size - offset % size
            continue
        length = int.from_bytes(data[offset + 4 : offset + 6], "little")
        kind = data[offset + 6]  # 1 whole, 2 first part, 3 middle, 4 last
        part = data[offset + 7 : offset + 7 + length]
        if len(part) < length:
            break
        whole += part
        offset += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(whole))
            whole = b""
    return found


def history(run):
    """The logged rows, as wandb holds them, without its own fields."""
    rows = []
    for record in records(run):
        if record.WhichOneof("record_type") == "history":
            row = {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            rows.append({name: row[name] for name in row if not name.startswith("_")})
    return rows


def test_rows_settings_and_name(run):
    (logger,) = make_loggers(["wandb"], run, config={"rl": {"kl_coef": 0.1}, "out": run})
    hist = [0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3]
    logger.log(5, {"loss": 0.5, "kl": float("nan"), "words": 41, "rho/hist": hist})
    logger.log(10, {"loss": 0.25})
    logger.close()
    logger.close()
    first, second = history(run)
    assert {name: first[name] for name in ("step", "loss", "words")} == {
        "step": 5, "loss": 0.5, "words": 41,
    }  # fmt: skip
    assert math.isnan(first["kl"])
    assert first["rho/hist.values"] == hist
    assert first["rho/hist.bins"] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 3, 4, 8]
    assert second == {"step": 10, "loss": 0.25}
    (started,) = [record.run for record in records(run) if record.HasField("run")]
    assert started.display_name == "balcap"
    assert started.project == "balcap_jax"
    assert started.run_id == (run / ID_FILE).read_text().strip()
    config = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert config["rl"] == {"kl_coef": 0.1}
    assert config["out"] == str(run)
    axes = [record.metric for record in records(run) if record.HasField("metric")]
    assert ("*", "step") in [(metric.glob_name, metric.step_metric) for metric in axes]


def test_a_resumed_run_is_the_same_wandb_run(run):
    for steps in ((1, 2), (2, 3)):  # killed after 2, saved at 1
        logger = WandbLogger(run, name="balcap", config={})
        for step in steps:
            logger.log(step, {"loss": step / 2})
        logger.close()
    assert {record.run.run_id for record in records(run) if record.HasField("run")} == {
        (run / ID_FILE).read_text().strip()
    }
    assert [(row["step"], row["loss"]) for row in history(run)] == [
        (1, 0.5), (2, 1.0), (2, 1.0), (3, 1.5),
    ]  # fmt: skip


def test_two_runs_in_one_process_stay_apart(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    loggers = [WandbLogger(folder, name=folder.name, config={}) for folder in folders]
    for step, logger in enumerate(loggers, start=1):
        logger.log(step, {"loss": float(step)})
    for logger in loggers:
        logger.close()
    assert [history(folder) for folder in folders] == [
        [{"step": 1, "loss": 1.0}], [{"step": 2, "loss": 2.0}],
    ]  # fmt: skip


def test_tables_with_pictures(run):
    rows = [
        caption_row(
            id=id, caption=caption, reference="A star.", verdict=None, units=(), rho=1.5,
            rewards={"precision": precision},
        )
        for id, caption, precision in (
            ("a", "A | circle.", 0.5), ("a", "Red.", float("nan")), ("b", "Blue.", 1.0),
        )
    ]  # fmt: skip
    logger = WandbLogger(run, name="balcap", config={})
    logger.log(4, {"loss": 1.0})
    logger.log_samples(4, rows, [Image.new("RGB", (1024, 8), "red"), Image.new("L", (8, 8))])
    logger.close()
    numbers, samples = history(run)
    assert numbers == {"step": 4, "loss": 1.0}
    assert samples["step"] == 4
    (manifest,) = [r.artifact.manifest for r in records(run) if r.HasField("artifact")]
    files = {entry.path: entry.local_path for entry in manifest.contents}
    table = json.loads(Path(files["samples.table.json"]).read_text())
    assert table["columns"] == ["image", "id", "caption", "precision", "words", "rho", "reference"]
    assert [row[1:4] for row in table["data"]] == [
        ["a", "A | circle.", 0.5], ["a", "Red.", None], ["b", "Blue.", 1.0],
    ]  # fmt: skip
    shown = [Image.open(files[row[0]["path"]]) for row in table["data"]]
    assert [image.size for image in shown] == [(512, 4), (512, 4), (8, 8)]
    assert [image.getpixel((1, 1)) for image in shown] == [(255, 0, 0), (255, 0, 0), (0, 0, 0)]


def test_no_key_is_one_sentence_and_never_a_question(run, tmp_path):
    """With a real terminal, at which wandb would otherwise ask."""
    code = (
        "from balcap_jax.runs.wandb_logger import WandbLogger; import sys\n"
        "try: WandbLogger(sys.argv[1], name='x', config={})\n"
        "except ValueError as error: print('REFUSED', error)\n"
        "print('TERMINAL', sys.stdin.isatty())"
    )
    main, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(run)], stdin=terminal, stderr=terminal,
            stdout=subprocess.PIPE, text=True, timeout=60, cwd=tmp_path,
            env=os.environ | {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": "/dev/null"},
        )  # fmt: skip
    finally:
        os.close(main)
        os.close(terminal)
    assert done.returncode == 0, done
    refused, after = done.stdout.splitlines()[-2:]
    assert refused.startswith("REFUSED wandb cannot start (")
    assert "set WANDB_API_KEY to a valid key or run `wandb login` once, or set" in refused
    assert after == "TERMINAL True"
    assert not (run / ID_FILE).exists()


def test_a_network_that_is_down_at_the_start(run, monkeypatch):
    def down(**_):
        raise wandb.errors.CommError("timed out")

    monkeypatch.setattr(wandb, "init", down)
    with pytest.raises(UserError, match=r"wandb cannot start \(timed out\); .*WANDB_MODE=offline"):
        WandbLogger(run, name="x", config={})


def test_a_key_that_is_none(run, tmp_path):
    code = "from balcap_jax.runs.wandb_logger import *; WandbLogger('.', name='x', config={})"
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60, cwd=run,
        env=os.environ | {"WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_API_KEY": "short"},
    )  # fmt: skip
    assert "UserError: wandb cannot start (" in done.stderr
    assert "set WANDB_API_KEY to a valid key" in done.stderr


def test_without_the_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'balcap_jax\[wandb\]'"):
        make_loggers(["wandb"], run, config={})


def test_failures_after_the_start_warn_once_and_end_nothing(run, monkeypatch):
    printed = []
    monkeypatch.setattr(
        wandb_logger, "console", SimpleNamespace(print=lambda text, **_: printed.append(text))
    )
    logger = WandbLogger(run, name="balcap", config={})

    def fail(*_, **__):
        raise wandb.errors.CommError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(logger._run, "log", fail)
        logger.log(1, {"loss": 1.0})
        logger.log(2, {"loss": 1.0})
        logger.log_samples(2, [], [])
    assert printed == [
        "wandb failed (CommError: gone); the run goes on, its numbers are in metrics.jsonl"
    ]
    logger.log(3, {"loss": 1.0})
    logger.close()
    assert [row["step"] for row in history(run)] == [3]
