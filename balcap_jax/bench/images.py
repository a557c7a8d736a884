"""`balcap bench images`: what padding costs where photos have many sizes, and how fast the host is.

A tenth of the photos is as large as a phone's; batches are formed as a run forms them, and counted.
No policy runs: captions have lengths as the base policy's, the rest is arithmetic of sizes.
"""

import json as json_text
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from balcap_jax.bench.step import table_of, versions
from balcap_jax.config.sections import DataConfig
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.examples import Example
from balcap_jax.data.images import Pixels, image_size, open_image
from balcap_jax.data.order import Extent, Order
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Row
from balcap_jax.models.padding import bucket, round_up
from balcap_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from balcap_jax.plan.models import PIXELS
from balcap_jax.plan.workloads.presets import PRESETS
from balcap_jax.plan.workloads.word_folder import write_processor_files
from balcap_jax.rl.balance import Parts
from balcap_jax.training.rooms import Rooms, least_room, real_share

OPENED = 1000  # photos of the file at most
PHONE, OTHERS = (4032, 3024), 500  # pixels of a phone's photo, and of the longer side of the others
TEXT = " ".join(f"w{i}" for i in range(24))  # of a prompt
# Tokens of the base policy's captions at these shares of all, the longest cut there.
SHARES, TOKENS = (0.0, 0.1, 0.5, 0.9, 1.0), (4, 13, 60, 112, 112)
GROUP, LENGTH = 8, 112
ROUNDS = 6
COUNTED = ("update_padded", "update_packed", "prefix", "patches", "shapes", "rooms")


@dataclass(frozen=True)
class Sizes:
    """What is counted and measured.

    Attributes:
      photos: a .jsonl of images.
      count: photos of an epoch; phones: share of these that is as large as a phone's.
      batch: photos of a step; shards: parts that the mesh splits it in; window: batches that
        `data.group_by_length` sorts among.
      steps: that are counted.
      side: the host is measured with images of about side x side pixels.
      measured: with so many of them; 0: not at all.
    """

    photos: Path
    count: int = 4096
    phones: float = 0.1
    batch: int = 64
    shards: int = 1
    window: int = 32
    steps: int = 100
    side: int = 896
    measured: int = 20


def run(sizes: Sizes) -> dict[str, Any]:
    """Everything counted and measured, as plain numbers.

    Raises:
      UserError: `sizes.photos` is no file of photos, or has too few.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        photos = _write_photos(sizes, folder)
        processor = _processor(folder / "policy")
        report: dict[str, Any] = {"versions": versions(None), "batches": []}
        for most in (DataConfig().max_pixels, PIXELS[1]):
            limited = processor.limited(min_pixels=0, max_pixels=most)
            seen = [image_size(path, pixels=Pixels(most=most)) for path in photos]
            extents = [limited.extent([size]) for size in seen]
            for window in (0, sizes.window):
                counted = count_batches(extents, limited, sizes, window=window)
                report["batches"].append({"max_pixels": most, "window": window} | counted)
        report["bytes"] = _bytes(processor, sizes)
        if sizes.measured:
            report["images_per_second"] = _rates(folder / "policy", photos, sizes)
        return report


def _write_photos(sizes: Sizes, folder: Path) -> list[Path]:
    """Copies of the photos, of the sizes that are asked for, again and again until they are enough;
    the large ones are two, which lie and stand.
    """
    rows = CaptionRows(sizes.photos)
    if sizes.count < 2 * sizes.batch:
        raise UserError(
            f"count={sizes.count} must be at least two batches of {sizes.batch}, of which groups "
            "are formed; raise --count or lower --batch."
        )

    def write(place: int, *size: int) -> Path:
        image = Image.open(str(rows[place].image)).convert("RGB")
        scale = OTHERS / max(image.size)
        of_others = (round(image.width * scale), round(image.height * scale))
        path = folder / f"{place:06d}-{'-'.join(map(str, size))}.jpg"
        image.resize(size or of_others, Image.Resampling.BILINEAR).save(path, quality=85)
        return path

    others = [write(place) for place in range(min(sizes.count, len(rows), OPENED))]
    phones = [write(0, *PHONE), write(0, *PHONE[::-1])]
    large = np.random.default_rng(0).permutation(sizes.count) < round(sizes.phones * sizes.count)
    return [
        phones[place % 2] if large[place] else others[place % len(others)]
        for place in range(sizes.count)
    ]


def _processor(folder: Path) -> Processor:
    """Of Qwen2.5-VL, whose tokens are words."""
    folder.mkdir()
    config = PRESETS["cpu-small"].config  # the sizes of patches are those of all
    assert isinstance(config, Qwen2_5_VLConfig)
    (folder / "config.json").write_text(json_text.dumps(config.to_hf()), encoding="utf-8")
    write_processor_files(folder, config, pixels=PIXELS)
    return Processor.load(folder)


def count_batches(
    extents: Sequence[Extent], processor: Processor, sizes: Sizes, *, window: int
) -> dict[str, Any]:
    """Real tokens and patches by those that are computed, over the steps of a run.

    Args:
      extents: of every photo.
    """
    order = Order(
        len(extents),
        count=sizes.batch,
        seed=0,
        window=window,
        extents=lambda at: [extents[i] for i in at],
    )
    tokens, windows = np.array(extents).T
    granule, rooms = processor.layout.granule, Rooms()
    vision = processor.config.vision
    slots = (vision.spatial_merge_size * vision.window) ** 2
    text = len(processor.tokenizer(TEXT)["input_ids"]) + 1  # the marks around an image
    rng = np.random.default_rng(0)
    real: Counter[str] = Counter()
    computed: Counter[str] = Counter()
    shapes = set()
    for step in range(sizes.steps):
        places, least = order.places(step), order.extent(step)
        own = tokens[places]
        prefix = own + text
        most = max(int(own.max()), least.tokens)
        P = bucket(most + text, processor.prefix_step)
        S = bucket(most * granule, processor.patch_step)
        step_of = round_up(S, 2 * slots) // (2 * slots)  # as `pad_windows`
        W = round_up(max(int(windows[places].max()), least.windows), step_of)
        shapes.add((P, S, W))
        counts = np.interp(rng.random((sizes.batch, GROUP)), SHARES, TOKENS).astype(np.int64)
        given = counts, np.ones(counts.shape, bool), prefix
        options = dict(length=LENGTH, prefix_length=P, parts=Parts(sizes.shards))
        least = least_room(*given, **options)
        room = None if least is None else rooms.choose(least)
        tokens_of_step = int(counts.sum() + prefix.sum())
        for name, taken in (("update_padded", None), ("update_packed", room)):
            real[name] += tokens_of_step
            computed[name] += tokens_of_step / real_share(*given, taken, **options)
        real["prefix"] += int(prefix.sum())
        computed["prefix"] += P * len(own)
        real["patches"] += int(own.sum()) * granule
        computed["patches"] += S * len(own)
    shares = {name: real[name] / computed[name] for name in real}
    return shares | {"shapes": len(shapes), "rooms": len(rooms.made)}


# Bytes --------------------------------------------------------------------------------------------


def _bytes(processor: Processor, sizes: Sizes) -> dict[str, int]:
    """Of the pixels of a step as they travel, and as they would as floats of every frame."""
    image = Image.new("RGB", (sizes.side, sizes.side))
    images = processor.row(Example("square", image, TEXT, "")).images
    levels = 0 if images.levels is None else images.levels.nbytes
    before = len(images.pixels) * processor.layout.patch_dim * 4
    return {"now": sizes.batch * (images.pixels.nbytes + levels), "before": sizes.batch * before}


# The host -----------------------------------------------------------------------------------------

_here: dict[str, Any] = {}  # of a process: what `_prepare` works with


def _rates(folder: Path, photos: list[Path], sizes: Sizes) -> dict[str, float]:
    """Images per second, from files to patches, by each way; in turns, the best of some, since
    other work on the machine can only slow them.
    """
    given = [photos[i % len(photos)] for i in range(sizes.measured)]
    _open(folder, sizes.side)
    pools: dict[str, Executor] = {}
    for count in (1, 2):
        pools[f"{count} thread{'s'[: count - 1]}"] = ThreadPoolExecutor(count)
        pools[f"{count} process{'es'[: 2 * count - 2]}"] = ProcessPoolExecutor(
            count, get_context("spawn"), initializer=_open, initargs=(folder, sizes.side)
        )
    best = dict.fromkeys(pools, 0.0)
    for pool in pools.values():
        list(pool.map(_prepare, given[:4]))  # imports, first of all
    for _ in range(ROUNDS):
        for way, pool in pools.items():
            start = time.perf_counter()
            for _row in pool.map(_prepare, given):
                pass
            best[way] = max(best[way], len(given) / (time.perf_counter() - start))
    for pool in pools.values():
        pool.shutdown()
    return best


def _open(folder: Path, side: int) -> None:
    pixels = side * side
    processor = Processor.load(folder)
    _here["processor"] = processor.limited(min_pixels=pixels, max_pixels=pixels)
    _here["pixels"] = Pixels(least=pixels, most=pixels)


def _prepare(path: Path) -> Row:
    image = open_image(path, pixels=_here["pixels"])
    return _here["processor"].row(Example(path.name, image, TEXT, ""))


# Report -------------------------------------------------------------------------------------------


def run_and_print(sizes: Sizes, *, json: bool = False) -> None:
    """`balcap bench images`: tables, or one line of JSON for programs."""
    report = run(sizes)
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    console = Console()
    table = table_of(
        f"real by computed, {sizes.batch} photos a step, {sizes.phones:.0%} of a phone's",
        ("max_pixels", "window", *(name.replace("_", " ") for name in COUNTED)),
    )
    for row in report["batches"]:
        shares = (f"{row[name]:.3f}" for name in COUNTED[:4])
        programs = (str(row[name]) for name in COUNTED[4:])
        table.add_row(f"{row['max_pixels']:,}", str(row["window"]), *shares, *programs)
    console.print(table)
    console.print(
        f"Pixels of {sizes.batch} images of {sizes.side} x {sizes.side}: "
        f"{report['bytes']['now']:,} bytes, and {report['bytes']['before']:,} as floats with all "
        "frames."
    )
    if rates := report.get("images_per_second"):
        told = ", ".join(f"{way} {rate:.1f}" for way, rate in rates.items())
        console.print(f"Such images made ready by the host, a second: {told}.")
    console.print("; ".join(f"{name} {value}" for name, value in report["versions"].items()))
