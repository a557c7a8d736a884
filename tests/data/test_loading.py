"""The loader: what it gives depends on the step alone, errors come out, threads end."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_hf
from images import write_rows

from balcap_jax.config.sections import DataConfig
from balcap_jax.data import loading
from balcap_jax.data import photos as photos_module
from balcap_jax.data.caption_files import CaptionFile
from balcap_jax.data.loading import Loader
from balcap_jax.data.order import step_places
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.sources import open_sources
from balcap_jax.errors import UserError
from balcap_jax.models.padding import sizes_of

SIZES = ((16, 16), (48, 16), (16, 40), (37, 21))


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    tiny_hf.write_processor(folder)
    return Processor.load(folder, prefix_step=8, patch_step=16)


class Drawn:
    """`size` examples of four shapes, which take their time; notes which were asked for."""

    def __init__(self, size=10, *, broken=()):
        self.size, self.broken = size, broken
        self.asked, self.lock = [], threading.Lock()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        with self.lock:
            self.asked.append(index)
        if index in self.broken:
            raise UserError(f"image {index} is bad")
        time.sleep(0.001 * (index % 3))  # later ones are often ready first
        return tiny_hf.example(f"image-{index}", SIZES[index % 4], seed=index)


def loader(source, processor, **options):
    return Loader(source, processor, **{"count": 4, "seed": 0, "steps": 6, **options})


def ids(loaded):
    return [example.id for example in loaded.examples]


def same(one, other):
    assert ids(one) == ids(other)
    jax.tree.map(np.testing.assert_array_equal, one.prompts, other.prompts)


@pytest.mark.parametrize(("workers", "ahead"), [(1, 0), (1, 2), (7, 1)])
def test_steps_are_what_they_are_without_threads(processor, workers, ahead):
    source = Drawn()
    with loader(Drawn(), processor, workers=workers, ahead=ahead) as load:
        for step in range(6):
            examples, prompts = load.step(step)
            places = step_places(10, step=step, count=4, seed=0)
            assert [example.id for example in examples] == [f"image-{p}" for p in places]
            wanted = processor.prompts([source[p] for p in places])
            jax.tree.map(np.testing.assert_array_equal, prompts, wanted)


def test_a_resumed_run_goes_on_where_it_was(processor):
    with loader(Drawn(), processor) as load:
        straight = [load.step(step) for step in range(6)]
    with loader(Drawn(), processor) as load:
        for step in (3, 4, 5):
            same(load.step(step), straight[step])
    # 24 examples of 10: none comes a third time before all have come twice.
    seen = [id_ for loaded in straight for id_ in ids(loaded)]
    assert len(set(seen[:10])) == len(set(seen[10:20])) == 10


def test_a_caller_may_jump_and_come_back(processor):
    with loader(Drawn(), processor) as load:
        first, last = load.step(0), load.step(5)
        same(load.step(0), first)
        same(load.step(5), last)


def test_only_the_next_steps_are_prepared(processor):
    source = Drawn(100)
    with loader(source, processor, ahead=1) as load:
        load.step(0)
        _wait_for(lambda: len(source.asked) == 8)
        time.sleep(0.05)
        assert len(source.asked) == 8  # two steps of four
        load.step(1)
        _wait_for(lambda: len(source.asked) == 12)
    with loader(Drawn(100), processor, ahead=3, steps=2) as load:
        load.step(1)
        assert sorted(load.source.asked) == sorted(step_places(100, step=1, count=4, seed=0))


def test_a_step_is_prepared_while_the_one_before_is_used(processor):
    source = Drawn(100)
    with loader(source, processor, ahead=1) as load:
        load.step(0)
        wanted = set(step_places(100, step=1, count=4, seed=0))
        _wait_for(lambda: wanted <= set(source.asked))  # nobody has asked for step 1 yet


def test_hosts_share_a_step(processor):
    with loader(Drawn(), processor) as load:
        whole = [ids(load.step(step)) for step in range(3)]
    parts = []
    for rows in ((0, 3), (1, 2)):
        source = Drawn()
        with loader(source, processor, rows=rows, ahead=0) as load:
            parts.append([ids(load.step(step)) for step in range(3)])
            assert len(source.asked) == 6  # and opens no image of the other
    joined = [[a[0], *b, a[1]] for a, b in zip(*parts, strict=True)]
    assert joined == whole


def test_errors_of_threads_come_out_at_their_step(processor):
    bad = step_places(10, step=1, count=4, seed=0)[2]
    with loader(Drawn(broken=(bad,)), processor) as load:
        load.step(0)
        for _ in range(2):
            with pytest.raises(UserError, match=f"^image {bad} is bad$"):
                load.step(1)
    assert not _threads()


def test_closing_ends_all_threads_with_work_undone(processor):
    source = Drawn(1000)
    load = loader(source, processor, count=200, workers=2)
    started = load._start(0)
    load.close()
    assert not _threads()
    assert started.cancelled() or started.exception() is not None
    assert len(source.asked) < 200


def test_many_threads_may_tokenize_while_captions_are_decoded(processor):
    tokens = np.arange(4 * 6).reshape(4, 6) % 9
    words = processor.decode(tokens)
    with loader(Drawn(), processor, count=8, workers=8, steps=40) as load:
        for step in range(40):
            load.step(step)
            assert processor.decode(tokens) == words
            processor.encode_captions([["describe the image"]] * 3, 4)


def _threads():
    names = ("example", "prompts")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def _wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing was prepared ahead"
        time.sleep(0.002)


# By length ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 photos, every fifth of four times the size; one file is none."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    for i in range(40):
        side = 32 if i % 5 == 0 else 16
        tiny_hf.example("a", (side, side), seed=i).image.save(folder / f"{i}.png")
        rows.append({"id": i, "image": f"{i}.png", "caption": "Red."})
    (folder / "7.png").write_bytes(b"nothing")
    return write_rows(folder, rows)


def by_length(path, processor, monkeypatch, **options):
    monkeypatch.setattr(photos_module, "CHECKED", 10)  # others are opened when their turn comes
    monkeypatch.setattr(photos_module, "SAMPLED", 5)
    source = CaptionFile(path, max_bad_images=1)
    return loader(source, processor, **{"steps": 20, "group_by_length": 4} | options)


def test_photos_of_a_size_come_together_each_once(processor, photos, monkeypatch):
    with by_length(photos, processor, monkeypatch) as load:
        steps = [load.step(step) for step in range(20)]
    with by_length(photos, processor, monkeypatch, group_by_length=0) as load:
        plain = [load.step(step) for step in range(20)]
    for some in (slice(0, 10), slice(10, 20)):  # each an epoch; 8 stands for the bad 7 as well
        ours, theirs = ([i for loaded in x[some] for i in ids(loaded)] for x in (steps, plain))
        assert ours != theirs
        assert sorted(ours) == sorted(theirs)
        assert sorted(set(ours), key=int) == [str(i) for i in range(40) if i != 7]

    def padded(steps):
        return sum(loaded.prompts.images.pixels.size for loaded in steps)

    assert padded(steps) < 0.7 * padded(plain)
    sizes = {tuple(sizes_of(loaded.prompts)) for loaded in steps}
    assert len(sizes) == 2
    with by_length(photos, processor, monkeypatch) as load:  # resumed
        for step in (13, 14, 15):
            same(load.step(step), steps[step])


def test_hosts_share_a_step_by_length(processor, photos, monkeypatch):
    with by_length(photos, processor, monkeypatch) as load:
        whole = [ids(load.step(step)) for step in range(6)]
    parts = []
    for rows in ((0, 1), (2, 3)):
        with by_length(photos, processor, monkeypatch, rows=rows) as load:
            parts.append([load.step(step) for step in range(6)])
    assert [ids(a) + ids(b) for a, b in zip(*parts, strict=True)] == whole
    for a, b in zip(*parts, strict=True):  # and pad alike without a word to each other
        assert sizes_of(a.prompts) == sizes_of(b.prompts)


def test_hosts_that_see_other_files_are_refused(processor, photos, monkeypatch):
    monkeypatch.setattr(loading.processes, "is_alone", lambda: False)
    told = []

    def largest(sizes):
        told.append(sizes)
        other = sizes if len(told) < 3 else [5, -5]
        return [max(pair) for pair in zip(sizes, other, strict=True)]

    monkeypatch.setattr(loading.processes, "largest", largest)
    with by_length(photos, processor, monkeypatch) as load:
        load.step(0)
        load.step(1)
        with pytest.raises(UserError, match="other image files for step 3.*group-by-length 0"):
            load.step(2)
    assert len(told) == 3


def test_no_head_is_read_where_nothing_is_grouped(processor, photos, monkeypatch):
    def head(self, index):
        raise AssertionError

    with by_length(photos, processor, monkeypatch, group_by_length=0) as load:
        monkeypatch.setattr(photos_module.Photos, "image_sizes", head)
        load.step(0)


# Real data --------------------------------------------------------------------------------------


def shared_data() -> Path | None:
    """The folder of real data sets, which is not part of the project."""
    named = os.environ.get("BALCAP_DATA")
    beside = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    return next((p for p in ([Path(named)] if named else beside) if p.is_dir()), None)


def test_real_photos_are_loaded_in_order_and_processed(processor):
    folder = shared_data()
    if folder is None:
        pytest.skip("no folder of real data: set BALCAP_DATA to one that holds flickr8k")
    path = folder / "flickr8k"
    config = DataConfig(path=str(path / "train.jsonl"), heldout_path=str(path / "val.jsonl"))
    train, heldout = open_sources(config, seed=0)
    assert (len(train), len(heldout)) == (700, 150)
    small = dataclasses.replace(processor)
    with Loader(train, small, count=16, seed=3, steps=3) as load:
        steps = [load.step(step) for step in range(3)]
    seen = [example.id for examples, _ in steps for example in examples]
    assert len(set(seen)) == 48
    for examples, prompts in steps:
        assert all(len(example.references) >= 2 for example in examples)
        assert all(example.reference in example.references for example in examples)
        assert prompts.tokens.shape[0] == 16
        assert np.isfinite(prompts.images.pixels).all()


# A million rows ---------------------------------------------------------------------------------

OPEN = """
import json, sys
from balcap_jax.config.sections import (DataConfig)
from balcap_jax.data.order import step_places
from balcap_jax.data.sources import open_sources

train, heldout = open_sources(DataConfig(path=sys.argv[1]), seed=0)
places = step_places(len(train), step=10_000, count=64, seed=0)
ids = [train[place].id for place in places]
# Not getrusage, which counts the process that this one was forked from.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak = int(status["VmHWM"].split()[0]) // 1024
print(json.dumps({"train": len(train), "heldout": len(heldout), "ids": ids, "peak": peak}))
"""


@pytest.mark.slow
def test_a_million_rows_stay_on_disk(tmp_path):
    from images import red

    red(tmp_path)
    red(tmp_path, "heldout.png")  # an image is on one side only
    row = json.dumps({"image": "red.png", "captions": ["A red wall.", "All of it is red. " * 10]})
    path = tmp_path / "million.jsonl"
    with path.open("w") as file:
        for _ in range(100):
            file.write((row + "\n") * 9_998)
        file.write((row.replace("red.png", "heldout.png") + "\n") * 200)
    command = [sys.executable, "-c", OPEN, str(path)]
    # The limit is for what never ends: beside other tests a second becomes a minute.
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    path.unlink()  # 250 MB, which pytest would keep for three sessions
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert (found["train"], found["heldout"]) == (999_800, 200)
    numbers = [int(id_.removeprefix("million-")) for id_ in found["ids"]]
    assert len(set(numbers)) == 64
    assert max(numbers) > 900_000 > 100_000 > min(numbers)  # from all over the file
    assert found["peak"] < 300  # MB, all of Python included; it is 150, whatever else runs
