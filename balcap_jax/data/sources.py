"""From settings to sources of examples."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.sections import MEMORY, DataConfig
from balcap_jax.data.caption_files import CaptionRows
from balcap_jax.data.claimdiff_files import ClaimDiffRows
from balcap_jax.data.coco_files import CocoRows
from balcap_jax.data.examples import Source
from balcap_jax.data.images import Pixels
from balcap_jax.data.json_text import read_json
from balcap_jax.data.llava_files import LlavaRows
from balcap_jax.data.memory_rows import MemoryRows
from balcap_jax.data.photos import Photos
from balcap_jax.data.row_index import head
from balcap_jax.data.rows import CAPTIONS, Row
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.data.tar_files import TarRows, is_tars
from balcap_jax.data.tfds_folders import TfdsRows, find_folder
from balcap_jax.errors import UserError
from balcap_jax.storage.local import fetched
from balcap_jax.storage.paths import as_path, is_remote

SCENES = "scenes"
# Scenes are drawn when asked for, so the split can be as large as any run is long.
_ENDLESS = 10**9
_log = logging.getLogger(__name__)
_PARQUET = b"PAR1"  # how every such file begins
# How the annotation files of COCO begin.
_COCO = re.compile(rb'\{\s*"(info|images|annotations|licenses|categories)"\s*:')


def open_sources(
    data: DataConfig,
    *,
    seed: int,
    train: Any = None,
    heldout: Any = None,
    conversations: bool = False,
) -> tuple[Source, Source]:
    """(train, held-out) examples.

    Scenes come from two splits that never share a scene; the held-out ones do not depend on `seed`,
    so that runs are compared on the same images. Data are cut: the last `data.heldout` examples are
    held out, unless `data.heldout_path` or `data.heldout_split` names others.

    Args:
      train, heldout: rows in memory in place of what the settings name; see `MemoryRows`.
      conversations: rows may have several turns and images; for supervised training.

    Raises:
      UserError: the data are missing, unreadable, of another kind or too short, or too many of
        their images are bad.
    """
    kept = None
    if heldout is not None:
        kept = _in_memory(data, heldout, name="eval_dataset", conversations=conversations).part(
            0, data.heldout, verify=True
        )
    if train is None and data.path == SCENES:
        scenes = SceneSource("heldout", data.heldout) if kept is None else kept
        return SceneSource("train", _ENDLESS, seed=seed), scenes
    if train is not None:
        source = _in_memory(data, train, name="train_dataset", conversations=conversations)
    elif data.path == MEMORY:
        raise UserError(
            "The rows of this run were given to a Trainer in Python, where the command line cannot "
            "find them; go on there: Trainer(resume=RUN, train_dataset=rows)."
        )
    else:
        source = _open(data, data.path, split=data.split, conversations=conversations)
    if kept is not None:
        return _telling_shared(source, kept), kept
    if data.heldout_path or data.heldout_split:
        path = data.heldout_path or data.path
        split = data.heldout_split or data.split
        heldout = _open(data, path, split=split, conversations=conversations)
        kept = heldout.part(0, data.heldout, verify=True)
        return _telling_shared(source, kept), kept
    count = len(source) - data.heldout
    if count < 1:
        raise UserError(
            f"{source.bad.name} has {len(source)} usable examples, which leaves none to train on "
            f"beside data.heldout={data.heldout}; set --data.heldout below {len(source)}."
        )
    kept = source.part(count, len(source), verify=True)
    return source.part(0, count).without(kept), kept


def _telling_shared(source: Photos, heldout: Photos) -> Photos:
    """Tells of held-out images that are trained on, where the user has named both: now, or of long
    data when the first one is met.
    """
    if not source.verified:
        return source.telling(heldout)
    if count := source.shared(heldout):
        _log.warning(
            "%d of the %d examples to train on have images that are held out as well",
            count,
            len(source),
        )
    return source


def _in_memory(data: DataConfig, rows: Any, *, name: str, conversations: bool) -> Photos:
    read = MemoryRows(rows, name=name, conversations=conversations)
    return _photos(data, read, name=name)


def _open(data: DataConfig, path: str, *, split: str, conversations: bool) -> Photos:
    rows = open_rows(data, as_path(path), split=split, conversations=conversations)
    return _photos(data, rows, name=path)


def _photos(data: DataConfig, rows: Sequence[Row], *, name: str) -> Photos:
    return Photos(rows, name=name, max_bad_images=data.max_bad_images, pixels=pixels_of(data))


def pixels_of(data: DataConfig) -> Pixels:
    """The sizes of images that the settings ask for."""
    return Pixels(least=data.min_pixels, most=data.max_pixels, in_file=data.max_file_pixels)


def open_rows(
    data: DataConfig, path: Path, *, split: str, conversations: bool = False
) -> Sequence[Row]:
    """The rows of a file or folder, of the kind `data.format` says or the content shows.

    Raises:
      UserError: it is missing or of another kind, or a setting does not belong to its kind.
    """
    if data.format == "webdataset" or (data.format == "auto" and is_tars(str(path))):
        _check_settings(data, "webdataset")
        return TarRows(str(path))
    images = as_path(data.images) if data.images else None
    if images is not None and not images.is_dir():
        raise UserError(
            f"data.images={data.images!r} is not a folder; give the folder that the paths of "
            f"images in {path} start from."
        )
    if is_remote(path):
        images, named, path = path.parent if images is None else images, path, fetched(path)
        if is_remote(path):
            raise UserError(
                f"The data file {named} cannot be read (there is no such object or bucket); check "
                "the path, or upload it."
            )
    kind = data.format if data.format != "auto" else detect(path)
    _check_settings(data, kind)
    if kind == "tfds":
        folder = find_folder(path)
        if folder is None:
            holds = "holds no data set of TFDS" if path.exists() else "does not exist"
            raise UserError(
                f"{path} {holds}, where a folder with a dataset_info.json is needed; give the "
                "data_dir of a data set of TFDS or the folder of one version."
            )
        return TfdsRows(folder, split=split)
    if kind == "coco":
        boxes = fetched(data.boxes) if data.boxes else None
        return CocoRows(path, images=images, boxes=boxes)
    if kind == "llava":
        return LlavaRows(path, images=images, conversations=conversations)
    if kind == "claimdiff":
        return ClaimDiffRows(path, images=images)
    return CaptionRows(path, images=images, conversations=conversations)


def detect(path: Path) -> str:
    """The kind of data at `path`: "tfds", "llava", "coco", "claimdiff" or "jsonl".

    Raises:
      UserError: it is missing, or a folder without a data set of TFDS.
    """
    if path.is_dir():
        if find_folder(path) is None:
            raise UserError(
                f"{path} is a folder without a data set of TFDS; give a .jsonl or .json file, and "
                "the folder of its images as --data.images."
            )
        return "tfds"
    begin = head(path)
    if begin.startswith(_PARQUET):
        return "claimdiff"
    if begin.startswith(b"["):
        return "llava"
    if _COCO.match(begin) and not _is_row(begin.split(b"\n", 1)[0]):
        return "coco"
    one_line = begin.split(b"\n", 1)[0].rstrip().endswith(b"}")
    if begin.startswith(b"{") and path.suffix == ".json" and not one_line:
        raise UserError(
            f"{path} is one JSON object without the images and annotations of COCO captions; give "
            "an array of rows as LLaVA and ShareGPT4V have it, or one object per line as .jsonl."
        )
    return "llava" if _is_conversation(begin.split(b"\n", 1)[0]) else "jsonl"


def _is_row(line: bytes) -> bool:
    """Whether a line is a row of its own that only begins as files of COCO do, with "images"."""
    try:
        values = read_json(line.decode("utf-8", "replace"))
    except ValueError:  # the beginning of a file of COCO, in one line or in many
        return False
    fields = {"image", "messages", "conversations", "questions", *CAPTIONS}
    return isinstance(values, dict) and bool(fields & values.keys())


def _is_conversation(line: bytes) -> bool:
    """Whether a line is a row of LLaVA's; of a longer line only the beginning is given."""
    try:
        values = read_json(line.decode("utf-8", "replace"))
    except ValueError:
        return b'"conversations"' in line
    return isinstance(values, dict) and "conversations" in values and "caption" not in values


def _check_settings(data: DataConfig, kind: str) -> None:
    """Refuses settings that data of this kind would not read."""
    readers = {
        "images": ("jsonl", "llava", "coco", "claimdiff"),
        "boxes": ("coco",),
        "split": ("tfds",),
        "heldout_split": ("tfds",),
    }
    for name, kinds in readers.items():
        value = getattr(data, name)
        if value and value != getattr(DataConfig(), name) and kind not in kinds:
            raise UserError(
                f"data.{name}={value!r} has no effect on {kind} data, only on {', '.join(kinds)}; "
                f"leave out --data.{name.replace('_', '-')}."
            )
