"""Training on photos with human references: both judges, through the command line, killed.

The photos are drawn here; where Flickr8k is, the same is done on real ones.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import smollm2
from judge_server import JudgeServer
from PIL import Image

from balcap_jax.runs.folder import read_jsonl
from balcap_jax.runs.logs import without_wall_clock

DATA = Path(os.environ.get("BALCAP_DATA", Path(__file__).parents[2] / "../shared/data"))
STEPS = 4
LEXICAL = ["--judge.kind", "lexical"]
# Kinds of photos: colours from top to bottom and what two people might have said.
KINDS = (
    (("skyblue", "seagreen"), ["A dog runs on grass .", "A brown dog in a field ."]),
    (("skyblue", "sandybrown"), ["Two people walk along the beach .", "People on the sand ."]),
    (("dimgray", "firebrick"), ["A red car in the street .", "A car is parked by a wall ."]),
)
RESULTS = (
    "config.json", "metrics.jsonl", "samples.jsonl", "summary.json", "curves.png", "lengths.png",
    "captions.html", "captions.md", "captions.jsonl", "evaluation/before.jsonl",
    "evaluation/after.jsonl", "evaluation/images/000.png", "policy/model.safetensors",
)  # fmt: skip


def draw_photos(folder: Path, *, count: int = 9) -> Path:
    """A .jsonl file of photos with two references each."""
    folder.mkdir(parents=True)
    width, height, rows = 128, 96, []
    for i in range(count):
        colours, references = KINDS[i % len(KINDS)]
        photo = Image.new("RGB", (width, height), colours[0])
        photo.paste(Image.new("RGB", (width, height // 2), colours[1]), (0, height // 2))
        noise = np.random.default_rng(i).normal(0, 12, (height, width, 3))
        pixels = np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
        rows.append({"image": f"{i}.jpg", "captions": references})
    path = folder / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags(data: Path, out: Path, judge: list[str]) -> list[str]:
    """Of a run of a few short captions."""
    return [
        "train", "--data.path", str(data), "--out", str(out), "--steps", str(STEPS),
        "--prompts-per-step", "2", "--data.heldout", "2", "--rollout.group-size", "2",
        "--rollout.max-new-tokens", "12", "--checkpoint.every", "2", "--sample-every", "2",
        *judge,
    ]  # fmt: skip


def asked(server: JudgeServer, folder: Path) -> list[str]:
    """The flags of the LLM judge at this server, ahead of which the device samples."""
    return [
        "--judge.kind", "llm", "--judge.model", "m", "--judge.base-url", server.url,
        "--judge.cache", str(folder / "cache.sqlite"), "--rollout.overlap-steps", "1",
    ]  # fmt: skip


def start(*arguments: str) -> subprocess.Popen:
    """`balcap` as a process on one device."""
    return subprocess.Popen(
        [sys.executable, "-m", "balcap_jax", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def finish(process: subprocess.Popen) -> None:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said


def kill(process: subprocess.Popen, run: Path, *, rows: int) -> None:
    """Kills it once `rows` rows of metrics are written."""
    deadline = time.monotonic() + 240
    path = run / "metrics.jsonl"
    while not (path.exists() and path.read_text().count("\n") >= rows):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (run / "summary.json").exists()


def assert_same_run(a: Path, b: Path) -> None:
    """Metrics but for times and costs, every caption with its verdict, and every weight."""
    rows = [
        [
            {k: v for k, v in without_wall_clock(row).items() if not k.startswith("judge/")}
            for row in read_jsonl(run / "metrics.jsonl")
        ]
        for run in (a, b)
    ]
    assert rows[0] == rows[1]
    for name in ("samples.jsonl", "captions.jsonl", "policy/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def assert_whole(run: Path, *, steps: int) -> None:
    """All that a default run leaves is there, and the rewards are of the photos."""
    assert [name for name in RESULTS if not (run / name).exists()] == []
    rows = read_jsonl(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert all(row["no_signal"] == 0 and np.isfinite(row["loss"]) for row in rows)
    assert max(row["grad_norm"] for row in rows) > 0
    samples = read_jsonl(run / "samples.jsonl")
    assert all(s["verdict"]["units"] and s["rewards"]["recall"] is not None for s in samples)
    assert len(read_jsonl(run / "captions.jsonl")) == 2
    assert (run / "captions.html").read_text().count("data:image") == 2


@pytest.fixture(scope="module")
def server():
    with JudgeServer() as server:
        yield server


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("data") / "photos")


def flickr8k() -> Path:
    path = DATA / "flickr8k" / "train.jsonl"
    if not path.exists():
        pytest.skip("needs photos of Flickr8k; set BALCAP_DATA to the folder that holds flickr8k")
    return path


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("kind", ["lexical", "llm", "flickr8k"])
def test_a_killed_run_on_photos_equals_one_that_was_not(kind, drawn, server, tmp_path):
    data = flickr8k() if kind == "flickr8k" else drawn
    commands = []
    for name in ("broken", "whole"):  # each with a cache of its own
        judge = asked(server, tmp_path / name) if kind == "llm" else LEXICAL
        commands.append(flags(data, tmp_path / name, judge))
    broken, whole = (tmp_path / name / "balcap" for name in ("broken", "whole"))
    kill(start(*commands[0]), broken, rows=3)
    finish(start("train", "--resume", str(broken)))
    finish(start(*commands[1]))
    for run in (broken, whole):
        assert_whole(run, steps=STEPS)
    assert_same_run(whole, broken)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(smollm2.why_absent() is not None, reason=str(smollm2.why_absent()))
def test_real_weights_learn_from_photos(drawn, tmp_path):
    """A LLaVA whose decoder is SmolLM2-135M; 20 steps of it took five minutes on one core."""
    llava, _, tokenizer = smollm2.write(tmp_path)
    smollm2.write_processor(llava, tokenizer)
    command = [*flags(drawn, tmp_path / "runs", LEXICAL), "--model.path", str(llava)]
    finish(start(*command, "--optim.learning-rate", "1e-5", "--checkpoint.keep", "1"))
    assert_whole(tmp_path / "runs" / "balcap", steps=STEPS)
    words = " ".join(row["caption"] for row in read_jsonl(tmp_path / "runs/balcap/samples.jsonl"))
    assert sum(word in words.lower().split() for word in ("the", "a", "of", "and", "is")) >= 2
