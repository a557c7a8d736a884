"""Mutated rows, the same ones each time: each is used or is one sentence, never a traceback."""

import json
import random

import numpy as np
import pytest
from images import red
from PIL import Image

from balcap_jax.commands.score import score
from balcap_jax.config.commands import ScoreConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.coco_files import CocoRows
from balcap_jax.data.examples import iterate
from balcap_jax.data.llava_files import LlavaRows
from balcap_jax.data.memory_rows import MemoryRows
from balcap_jax.data.photos import Photos
from balcap_jax.data.rows import listed
from balcap_jax.data.seen_ids import SeenIds
from balcap_jax.data.sources import open_sources
from balcap_jax.data.tfds_folders import TfdsRows
from balcap_jax.errors import UserError
from balcap_jax.scenes.world import make_scene

pytestmark = pytest.mark.slow
COUNT = 300


def deep(levels):
    return json.loads("[" * levels + "]" * levels)


NASTY = [
    None, True, False, 0, -1, 5, 1.5, 10**400, -(10**400), 2**63, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "a\0b", "\ud83d", "half \udc00", "\u202e", "e\u0301", "a" * 5000, "<image>",
    "<|im_end|>", "{}", "../../etc/passwd", "/dev/zero", "/dev/stdin", "//", ".", "~", "red.png\n",
    [], {}, [[]], [None], [{}], {"": {}}, [1, "a", None], {"a": deep(50)}, deep(90), deep(600),
    ["a"] * 1000, {"label": "a"}, {"bytes": None}, {"role": "user", "content": None},
]  # fmt: skip


def places(value, path=()):
    """The way to each part of a value."""
    yield path
    if isinstance(value, dict | list) and len(path) < 6:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items):
            yield from places(inner, (*path, key))


def copied(value):
    """`copy.deepcopy` goes not deep enough."""
    return json.loads(json.dumps(value))


def mutated(value, rng):
    """`value` with one to three of its parts replaced, removed, doubled or wrapped."""
    value = copied(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        way = rng.choice(list(places(value))[1:] or [()])
        if not way:
            return rng.choice(NASTY)
        inner = value
        for key in way[:-1]:
            inner = inner[key]
        change = rng.randrange(5)
        if change == 0:
            del inner[way[-1]]
        elif change == 1:
            inner[way[-1]] = [inner[way[-1]]]
        elif change == 2 and isinstance(inner, list):
            inner.append(inner[way[-1]])
        elif change == 2:
            inner[str(way[-1]) + rng.choice(("s", "_", "\ud83d"))] = rng.choice(NASTY)
        else:
            inner[way[-1]] = copied(rng.choice(NASTY))
    return value


def written(value, rng):
    """`value` as JSON, one time in four with broken bytes or a key twice."""
    data = bytearray(json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "replace"))
    change = rng.randrange(12)
    if change == 0 and data:
        data[rng.randrange(len(data))] = rng.randrange(256)
    elif change == 1:
        del data[rng.randrange(len(data) + 1) :]
    elif change == 2 and data[-1:] == b"}" and len(data) > 2:
        data[-1:] = b', "image": "b.png", "image": "red.png"}'
    return bytes(data).replace(b"\n", b" ")


BOX = {"label": "dog", "box": [0, 0, 0.5, 1]}
ROW = {
    "id": "m",
    "image": "red.png",
    "caption": "A red wall.",
    "references": ["A wall.", "A red wall."],
    "boxes": [BOX, ["dog", 0, 0, 1, 1]],
    "units": ["a wall", {"text": "red", "covered": True}],
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
    "scene": make_scene(0, "train", 3).to_json(),
    "note": {"a": [1, {"b": 2}]},
}
TALK = {
    "id": "m",
    "image": "red.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A wall."},
        {"from": "human", "value": "Sure?"},
        {"from": "gpt", "value": "Yes."},
    ],
}
COCO = {
    "images": [{"id": i, "file_name": "red.png", "width": 16, "height": 12} for i in (1, 2)],
    "annotations": [{"id": i, "image_id": i, "caption": "A wall."} for i in (1, 2)],
}
INSTANCES = {
    "images": [],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "iscrowd": 0}],
    "categories": [{"id": 1, "name": "dog"}],
}


def check_source(rows, *, least):
    """The examples of rows of which some are bad: at least the good ones, each whole."""
    source = Photos(rows, name="rows", max_bad_images=5)
    found = list(iterate(source))
    assert len(found) >= least
    for example in found:
        assert example.image.mode == "RGB"
        for text in (example.id, example.prompt, example.reference, *example.references):
            text.encode()
        assert all(0 <= side <= 1 for box in example.boxes for side in box[1:])
    for name, reason in source.bad.reasons.items():
        f"{name} {reason}".encode()
        assert "\n" not in reason


def sentence(error):
    text = str(error)
    text.encode()
    assert "\n" not in text.replace("red.png\n", "")


def test_lines_of_a_file(tmp_path):
    rng = random.Random(1)
    red(tmp_path)
    path = tmp_path / "data.jsonl"
    good = [json.dumps({**ROW, "id": i}).encode() for i in (1, 2)]
    for _ in range(COUNT):
        path.write_bytes(b"\n".join([good[0], written(mutated(ROW, rng), rng), good[1]]))
        check_source(CaptionRows(path), least=2)


@pytest.mark.parametrize("lines", [True, False])
def test_conversations(tmp_path, lines):
    rng = random.Random(2)
    red(tmp_path)
    path = tmp_path / "share.json"
    good = json.dumps(TALK).encode()
    for _ in range(COUNT):
        rows = [good, written(mutated(TALK, rng), rng), good]
        path.write_bytes(b"\n".join(rows) if lines else b"[" + b",".join(rows) + b"]")
        try:
            check_source(LlavaRows(path), least=2)
        except UserError as error:
            assert not lines  # a broken array has no rows
            sentence(error)


def test_annotations(tmp_path):
    rng = random.Random(3)
    red(tmp_path)
    path, boxes = tmp_path / "coco.json", tmp_path / "instances.json"
    for i in range(COUNT):
        change = (COCO, INSTANCES)[i % 2]
        texts = [written(mutated(part, rng) if part is change else part, random.Random(9))
                 for part in (COCO, INSTANCES)]  # fmt: skip
        for file, text in zip((path, boxes), texts, strict=True):
            file.write_bytes(text)
        try:
            check_source(CocoRows(path, boxes=boxes), least=0)
        except UserError as error:
            sentence(error)


def test_rows_in_memory():
    rng = random.Random(4)
    images = [Image.new("RGB", (16, 12), (i, 0, 0)) for i in range(3)]
    good = [{**ROW, "id": i, "image": images[i]} for i in (1, 2)]
    nasty = [
        np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8), np.zeros(4, np.uint8), b"", b"\xff\xd8",
        {"bytes": b"x", "path": None}, [images[0]], [images[0]] * 2, np.array(["a", None], object),
        np.float32("nan"), np.int64(3), (), {1: 2}, object(),
    ]  # fmt: skip
    for _ in range(COUNT):
        row = mutated({**ROW, "image": "red.png"}, rng)
        if isinstance(row, dict):
            if row.get("image") == "red.png":
                row["image"] = images[0]
            if rng.random() < 0.4:
                row[rng.choice(list(ROW))] = rng.choice(nasty)
            if rng.random() < 0.3:
                row = {k: np.array(v, object) if isinstance(v, list) else v for k, v in row.items()}
        try:
            check_source(MemoryRows([good[0], row, good[1]], name="rows"), least=2)
        except UserError as error:
            sentence(error)
            if " twice" not in str(error):
                raise


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")
    import tiny_tfds

    return tiny_tfds.prepare(tmp_path_factory.mktemp("tfds"))


EXAMPLE = {
    "image": "the image",
    "image/filename": "m.jpg",
    "image/id": 77,
    "objects": {
        "area": [5, 5],
        "bbox": [[0.125, 0.25, 0.5, 0.75], [0, 0, 1, 1]],
        "id": [1, 2],
        "is_crowd": [False, True],
        "label": [1, 0],
    },
    "captions": {"id": [1, 2], "text": ["A wall.", "A longer caption of a wall."]},
}


def stored(value, image, levels=20):
    """A JSON value as tfds gives it: texts are bytes, but far down."""
    if isinstance(value, dict) and levels:
        return {name: stored(item, image, levels - 1) for name, item in value.items()}
    if isinstance(value, list) and levels:
        return [stored(item, image, levels - 1) for item in value]
    if isinstance(value, str):
        return image if value == "the image" else value.encode("utf-8", "surrogatepass")
    return value


def test_examples_of_tfds(prepared):
    """What its decoders could give for a damaged file, or for other features of these names."""
    rng = random.Random(7)
    nasty = [
        b"", b"\xff\xd8", "\xe9".encode("latin-1"), np.zeros(0), np.zeros((3, 4)), np.array(5), (),
        np.array([b"\xff"], object), np.float32("nan"), np.int64(-1), np.int64(99), "a text",
    ]  # fmt: skip
    rows = TfdsRows(prepared, split="train")
    examples = [rows._source[i] for i in range(len(rows))]
    used = 0
    for _ in range(COUNT):
        values = stored(mutated(EXAMPLE, rng), bytes(examples[0]["image"]))
        if isinstance(values, dict) and values and rng.random() < 0.4:
            inner = values[rng.choice(list(values))]
            inner = inner if isinstance(inner, dict) and inner else values
            inner[rng.choice(list(inner))] = rng.choice(nasty)
        rows._source, rows._seen = [*examples[1:], values], SeenIds("the split")
        try:
            check_source(rows, least=len(examples) - 1)
            used += 1
        except UserError as error:
            sentence(error)
            if " twice" not in str(error):
                raise
    assert used > COUNT * 0.8


def test_the_split_of_mutated_files(tmp_path):
    rng = random.Random(5)
    red(tmp_path)
    red(tmp_path, "b.png", size=(32, 24))
    path = tmp_path / "data.jsonl"
    good = [json.dumps({**ROW, "id": i, "image": "b.png" if i == 3 else "red.png"}).encode()
            for i in (1, 2, 3)]  # fmt: skip
    for _ in range(COUNT // 3):
        path.write_bytes(b"\n".join([*good[:2], written(mutated(ROW, rng), rng), good[2]]))
        train, heldout = open_sources(DataConfig(path=str(path), heldout=1), seed=0)
        assert len(train) >= 2
        assert len(heldout) == 1


@pytest.mark.parametrize("known", [False, True])
def test_rows_to_score(tmp_path, known):
    rng = random.Random(6)
    row = {name: value for name, value in ROW.items() if name != "scene"}
    good = json.dumps({**row, "id": "g"}).encode()
    lines = [good, *(written(mutated(row, rng), rng) or b"-" for _ in range(COUNT)), good]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines))
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"\n".join([good, json.dumps({**row, "id": "m"}).encode()]))
    config = ScoreConfig(
        input=source, output=tmp_path / "out.jsonl", data=data if known else None, batch_size=7
    )
    summary = score(config)
    read = [json.loads(line) for line in config.output.read_text().splitlines()]
    assert len(read) == summary["rows"] >= COUNT * 0.9  # blank lines are none
    assert read[0]["b_capscore"] == read[-1]["b_capscore"] > 0
    assert all(row["error"] or row["b_capscore"] is not None for row in read)
    assert COUNT // 5 < summary["scored"] < COUNT
    whole = config.output.read_bytes()
    for cut in (len(whole), len(whole) // 3):
        config.output.write_bytes(whole[:cut])
        assert score(config) == summary
        assert config.output.read_bytes() == whole


def test_arrays_are_lists():
    assert listed(np.array([1, 2])) == listed((1, 2)) == [1, 2]
