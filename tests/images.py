"""Image files, good and bad, and data files that name them."""

import json
import zlib

import numpy as np
from PIL import Image

RED = (220, 30, 40)


def write_rows(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def red(folder, name="red.png", *, mode="RGB", size=(16, 12), **options):
    path = folder / name
    Image.new("RGB", size, RED).convert(mode).save(path, **options)
    return path


def truncated(folder):
    rng = np.random.default_rng(0)
    path = folder / "truncated.jpg"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def truncated_png(folder):
    path = folder / "truncated.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def text_file(folder):
    path = folder / "text.jpg"
    path.write_text("no picture")
    return path


def empty(folder):
    path = folder / "empty.png"
    path.touch()
    return path


def bomb(folder):
    """A PNG whose header promises 40,000 x 40,000 pixels."""
    path = red(folder, "bomb.png")
    data = bytearray(path.read_bytes())
    data[16:24] = (40_000).to_bytes(4, "big") * 2
    # The header's checksum must fit, or the file is broken in another way.
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def animated(folder, suffix="gif"):
    path = folder / f"moving.{suffix}"
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path
