"""A run's folder is never overwritten, is written by one process, and holds whole files only."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from balcap_jax.errors import UserError
from balcap_jax.runs.folder import (
    RunLock,
    existing_run,
    read_jsonl,
    remove_half_written,
    run_folder,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)


def test_a_new_run_gets_its_folder(tmp_path):
    folder = run_folder(tmp_path / "runs", "first")
    assert folder == tmp_path / "runs" / "first"
    assert folder.is_dir()
    RunLock(folder).close()  # a start that failed right away leaves a lock, which is no run
    assert run_folder(tmp_path / "runs", "first") == folder


@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints", "notes.txt"])
def test_a_folder_with_anything_in_it_is_refused(tmp_path, left):
    folder = run_folder(tmp_path, "first")
    (folder / left).write_text("kept")
    with pytest.raises(UserError) as raised:
        run_folder(tmp_path, "first")
    for part in (str(folder), f"--resume {folder}", "--name"):
        assert part in str(raised.value)
    assert (folder / left).read_text() == "kept"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp", "../up"])
def test_a_name_is_one_folder(tmp_path, name):
    with pytest.raises(UserError, match="single folder name"):
        run_folder(tmp_path / "out", name)
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(UserError, match="cannot be made .*--out"):
        run_folder(tmp_path / "out", "first")
    assert (tmp_path / "out").read_text() == "kept"


def test_what_is_not_a_run_cannot_be_resumed(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        existing_run(tmp_path / "missing")
    with pytest.raises(UserError, match="it has no checkpoints"):
        existing_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert existing_run(str(tmp_path)) == tmp_path


def test_two_processes_cannot_write_one_run(tmp_path):
    """The lock of a process killed with -9 is free at once."""
    holds = (
        "import sys, time; from balcap_jax.runs.folder import RunLock\n"
        "lock = RunLock(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"being written by process {child.pid}"):
            RunLock(tmp_path)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    lock = RunLock(tmp_path)
    with pytest.raises(UserError, match=f"being written by process {os.getpid()}"):
        RunLock(tmp_path)
    lock.close()
    RunLock(tmp_path).close()


def test_json_is_strict_and_knows_arrays(tmp_path):
    path = tmp_path / "deep" / "summary.json"
    write_json_atomic(
        path,
        {
            "nan": float("nan"),
            "array": np.array([1.5, np.nan], np.float32),
            "scalar": jnp.float32(0.25),
            "bfloat16": jnp.bfloat16(0.5),
            "int": np.int64(3),
            "tuple": (1, "ä"),
            "path": Path("runs/a"),
            4: True,
        },
    )
    assert json.loads(path.read_text("utf-8"), parse_constant=pytest.fail) == {
        "nan": None,
        "array": [1.5, None],
        "scalar": 0.25,
        "bfloat16": 0.5,
        "int": 3,
        "tuple": [1, "ä"],
        "path": "runs/a",
        "4": True,
    }
    assert [entry.name for entry in path.parent.iterdir()] == ["summary.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_text_atomic(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"Cannot write .*summary\.json: No space left on device"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_jsonl_round_trip_drops_a_torn_row_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"a": 1, "text": "two\nlines\u2028"}, {"a": None}]
    write_jsonl_atomic(path, rows)
    assert read_jsonl(path) == rows
    with path.open("ab") as file:
        file.write('{"a": "ä'.encode()[:-1])  # torn within a character
    assert read_jsonl(path) == rows
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(UserError, match="line 3 is not JSON"):
        read_jsonl(path)


WRITE = """
import sys
from balcap_jax.runs.folder import written_beside
with written_beside(sys.argv[1]) as beside:
    (beside / "deep").mkdir()
    print(beside.name, flush=True)
    input()
"""


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / ".policy.123.partial" / "deep").mkdir(parents=True)  # of a version without locks
    command = [sys.executable, "-c", WRITE, str(tmp_path / "policy")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    killed, living = (subprocess.Popen(command, **pipes, text=True) for _ in range(2))
    left, written = (process.stdout.readline().strip() for process in (killed, living))
    killed.kill()
    killed.wait()
    remove_half_written(tmp_path, "polic")
    remove_half_written(tmp_path, "[p]olicy")
    assert (tmp_path / left / "deep").is_dir()
    remove_half_written(tmp_path, "policy")
    assert {path.name for path in tmp_path.iterdir()} == {"policy", written}
    assert (tmp_path / written / "deep").is_dir()
    living.communicate("\n")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    (tmp_path / left).mkdir()
    remove_half_written(tmp_path)  # whatever it was to become
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"step": ' + "9" * 5000 + "}", "{"])
def test_lines_that_no_reader_of_json_takes_are_a_sentence(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_jsonl(path)
