"""What is left of an evaluation: items, numbers with their intervals, and what they depend on.

Layout of a folder of results, one below it for each benchmark:

    dcscore/result.json     the numbers, and what they depend on
    dcscore/items.jsonl     one row per image
    dcscore/pictures/       small copies of the images that a report shows
    dcscore/captions.*      the captions, as the official code reads them
    dcscore/...             its results, as the official code reads them
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from balcap_jax.config.evaluation import OFFICIAL_JUDGES
from balcap_jax.data.images import BadImageError, Pixels, open_image
from balcap_jax.errors import UserError
from balcap_jax.evaluation import bcapscore, caparena, captionqa, dcscore
from balcap_jax.evaluation.asking import Spent, today
from balcap_jax.evaluation.prompts import Prompts
from balcap_jax.evaluation.statistics import Measure, interval
from balcap_jax.runs.folder import disk_errors, read_jsonl, write_json_atomic, write_jsonl_atomic

RESULT, ITEMS = "result.json", "items.jsonl"
TITLES = {
    "dcscore": "DCScore",
    "captionqa": "CaptionQA",
    "caparena": "CapArena-Auto",
    "bcapscore": "b-CapScore",
}
MEASURES: dict[str, Callable[[Sequence[Mapping[str, Any]]], dict[str, Measure]]] = {
    "dcscore": dcscore.measures,
    "captionqa": captionqa.measures,
    "caparena": caparena.measures,
    "bcapscore": bcapscore.measures,
}
FILLED: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "dcscore": dcscore.filled,
    "captionqa": captionqa.filled,
    "caparena": caparena.filled,
    "bcapscore": bcapscore.filled,
}
_PICTURE = Pixels(most=360 * 360)


class Results(NamedTuple):
    """A folder of results of one benchmark, read.

    Attributes:
      record: of result.json.
      items: one per image.
    """

    folder: Path
    record: dict[str, Any]
    items: list[dict[str, Any]]

    @property
    def measures(self) -> dict[str, Measure]:
        """The numbers as functions of images."""
        return MEASURES[self.record["benchmark"]](self.items)


def title_of(benchmark: str, *, judge: str, prompts: Prompts | None) -> str:
    """The name of a number: the bare one only with the official judge and the official prompts."""
    name = TITLES[benchmark]
    if benchmark not in OFFICIAL_JUDGES:
        return f"{name} (judge: {judge})"
    if prompts is None or not prompts.official:
        return f"{name} (balcap prompts, judge {judge})"
    return name if judge in OFFICIAL_JUDGES[benchmark] else f"{name} (judge: {judge})"


def record_of(
    benchmark: str,
    items: Sequence[Mapping[str, Any]],
    *,
    title: str,
    model: str,
    seed: int,
    counts: Mapping[str, int],
    spent: Spent | None,
    **told: Any,
) -> dict[str, Any]:
    """What result.json holds.

    Args:
      items: of the benchmark, with their `caption`.
      counts: of what is no plain item: planned, missing, invalid, unparsed, failed.
      told: what else the numbers depend on.
    """
    measures = MEASURES[benchmark](items)
    values = {}
    for name, measure in measures.items():
        low, high = interval(measure, seed=seed)
        values[name] = {"value": measure.value, "low": low, "high": high}
    captions = [item["caption"] for item in items]
    record = {
        "benchmark": benchmark,
        "title": title,
        "model": model,
        "date": today(),
        "images": len(items),
        "values": values,
        "counts": dict(counts),
        "words": {
            "split": _mean([len(caption.split()) for caption in captions]),
            "arena": _mean([caparena.arena_words(caption) for caption in captions]),
        },
        "seed": seed,
        **told,
        "balcap_jax": _version(),
    }
    if counts.get("failed"):
        # What the strict value would be, had every question without an answer got the least, and
        # the most.
        ends = [MEASURES[benchmark](FILLED[benchmark](items, best=best)) for best in (False, True)]
        record["strict_between"] = [end["strict"].value for end in ends]
    if spent is not None:
        record["spent"] = {
            **spent.ledger,
            "seconds": spent.seconds,
            "cpu_ms_per_call": spent.cpu_ms,
        }
    return record


def make_folder(folder: Path) -> None:
    """Makes sure that results can be written there, before anything is paid for.

    Raises:
      UserError: they cannot.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def captions_of(folder: Path) -> dict[str, Any] | None:
    """Where the captions come from whose results the folder has; None where it has none."""
    with suppress(OSError, ValueError, AttributeError):
        return json.loads((folder / RESULT).read_text(encoding="utf-8")).get("captions")
    return None


def write(
    folder: Path,
    record: Mapping[str, Any],
    items: Sequence[dict[str, Any]],
    images: Mapping[str, Any],
    *,
    shown: int,
) -> Path:
    """Writes the result, its items, and small copies of the images of the first `shown` items.

    Args:
      images: by the name of the item, its file or bytes.
    """
    for place, item in enumerate(items):
        name = f"pictures/{hashlib.sha256(item['id'].encode()).hexdigest()[:12]}.jpg"
        picture = place < shown and item["id"] in images
        item["picture"] = (
            name if picture and _write_picture(images[item["id"]], folder / name) else None
        )
    write_jsonl_atomic(folder / ITEMS, items)
    write_json_atomic(folder / RESULT, record)
    return folder / RESULT


def _write_picture(image: Any, path: Path) -> bool:
    if path.exists():
        return True
    try:
        small = open_image(image, pixels=_PICTURE)
    except BadImageError:
        return False
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        small.save(beside, "JPEG", quality=80)
        beside.replace(path)
    return True


def read(folder: Path) -> list[Results]:
    """The results below a folder, or of one benchmark.

    Raises:
      UserError: there are none, or they cannot be read.
    """
    places = [folder, *(folder / name for name in TITLES)]
    found = [_read(place) for place in places if (place / RESULT).is_file()]
    if not found:
        raise UserError(
            f"{folder} holds no results of `balcap eval`; give the folder that it printed, such as "
            "runs/NAME/eval."
        )
    return found


def _read(folder: Path) -> Results:
    path = folder / RESULT
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        items = read_jsonl(folder / ITEMS)
        found = Results(folder, record, items)
        for name, measure in found.measures.items():
            told = record["values"][name]["value"]  # of these items, all of them
            if not np.isclose(measure.value, np.nan if told is None else told, equal_nan=True):
                raise ValueError
        for name in ("title", "model", "values", "counts", "words", "date"):
            record[name]
        names = {item["id"] for item in items if isinstance(item["caption"], str)}
        if len(items) != record.get("images", len(items)) or len(names) != len(items):
            raise ValueError
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} and its {ITEMS} are not as `balcap eval` writes them; give the same command "
            "of `balcap eval` again, which asks nothing twice."
        ) from None


def check_images(files: Mapping[str, Path], *, folder: Path, of: str) -> None:
    """Refuses images that are missing or cannot be read, before anything is paid for.

    Args:
      files: by the name of the image.
      of: what names them.

    Raises:
      UserError: one cannot be used.
    """
    bad = []
    for name, path in files.items():
        try:
            with Image.open(path) as image:
                image.verify()
        except Exception as error:  # whatever Pillow meets
            bad.append((name, "no such file" if not path.exists() else str(error)))
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise UserError(
            f"images={folder} lacks the image {bad[0][0]}{more} of {of}, or it cannot be read "
            f"({bad[0][1]}); give the folder of all images as --images, with readable files."
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _version() -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("balcap_jax")
    return "not installed"
