"""Captions of COCO's annotation files, such as captions_train2017.json: one JSON object of

    {"images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}],
     "annotations": [{"image_id": 9, "caption": "A plate of ..."}]}

and the boxes of instances_train2017.json, where that file is given too.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.examples import Box
from balcap_jax.data.row_index import json_items
from balcap_jax.data.rows import Row
from balcap_jax.errors import UserError

_log = logging.getLogger(__name__)


class Instances(NamedTuple):
    """The objects of all images, sorted by image.

    Attributes:
      images: the image of each object.
      labels: its category, as a place in `names`.
      sides: x, y, width and height in pixels.
    """

    names: list[str]
    images: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    sides: Float[np.ndarray, "n 4"]


class CocoRows(Sequence[Row]):
    """The images with captions, in the order of "images"; those without are counted in `skipped`.

    Attributes:
      skipped: how many entries are of no use here, by reason.
    """

    def __init__(self, path: Path, *, images: Path | None = None, boxes: Path | None = None):
        """Reads the file once, in pieces; captions and names stay in memory.

        Args:
          boxes: an instances file of the same images; boxes around crowds are left out.

        Raises:
          UserError: a file cannot be read, is of another kind, or no image has a caption.
        """
        self.path = path
        self.images = path.parent if images is None else images
        self.skipped: Counter[str] = Counter()
        found: dict[int, dict] = {}
        captions: dict[int, list[str]] = {}
        for section, number, values in _entries(path, ("images", "annotations")):
            where = f"{path}, {section} {number}"
            if section == "images":
                found[_whole(values, "id", where)] = _image(values, where)
            else:
                self._check_kind(values, where)
                caption = rows.text(values["caption"], name="caption", where=where)
                captions.setdefault(_whole(values, "image_id", where), []).append(caption)
        self._rows = [(id_, image) for id_, image in found.items() if id_ in captions]
        self._captions = captions
        self._skip("images without a caption", len(found) - len(self._rows))
        self._skip("captions of images that are not listed", len(captions.keys() - found.keys()))
        if not self._rows:
            raise UserError(
                f"{path} has no image with a caption ({len(found)} images, captions of "
                f"{len(captions)}); give captions_*.json of COCO."
            )
        self._instances = None if boxes is None else _read_instances(boxes)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        id_, image = self._rows[index]
        captions = tuple(dict.fromkeys(caption.strip() for caption in self._captions[id_]))
        return Row(
            id=str(id_),
            image=self.images / image["file_name"],
            prompt=PROMPT,
            reference=rows.longest(captions),
            references=captions if len(captions) > 1 else (),
            boxes=() if self._instances is None else _boxes(self._instances, id_, image),
        )

    def _check_kind(self, values: dict, where: str) -> None:
        if "caption" not in values:
            raise UserError(
                f'{where} has no "caption", which every annotation must have; give captions_*.json '
                "as --data.path, and instances_*.json as --data.boxes."
            )

    def _skip(self, reason: str, count: int) -> None:
        if count:
            self.skipped[reason] = count
            _log.warning("%s: skipped %d %s", self.path, count, reason)


def _entries(path: Path, sections: tuple[str, ...]) -> Iterator[tuple[str, int, dict]]:
    """(section, number from 1, entry) of these sections of a file of COCO's."""
    numbers: Counter[str] = Counter()
    for item in json_items(path):
        if item.key is None:
            raise UserError(
                f"{path} is a JSON array, where COCO files are an object of images and "
                "annotations; give one of these, or --data.format llava for conversations."
            )
        if item.key not in sections:
            continue
        numbers[item.key] += 1
        if not isinstance(item.value, dict):
            raise UserError(
                f"{path}, {item.key} {numbers[item.key]} is {rows.shown(item.value)}, which must "
                "be an object; give a file of COCO's."
            )
        yield item.key, numbers[item.key], item.value


def _whole(values: dict, name: str, where: str) -> int:
    value = values.get(name)
    if not isinstance(value, int):
        raise UserError(
            f'{where} has "{name}": {rows.shown(value)}, which must be a whole number; fix it or '
            "give a file of COCO's."
        )
    return value


def _image(values: dict, where: str) -> dict[str, Any]:
    """What is kept of an entry of "images"."""
    rows.text(values.get("file_name"), name="file_name", where=where)
    return {name: values.get(name) for name in ("file_name", "width", "height")}


def _read_instances(path: Path) -> Instances:
    """The objects of instances_*.json, without crowds.

    Raises:
      UserError: the file cannot be read, or an entry is not like COCO's.
    """
    images, labels, sides = array("q"), array("q"), array("f")
    names: dict[int, str] = {}
    for section, number, values in _entries(path, ("annotations", "categories")):
        where = f"{path}, {section} {number}"
        if section == "categories":
            name = rows.text(values.get("name"), name="name", where=where)
            names[_whole(values, "id", where)] = name
        elif not values.get("iscrowd"):
            box = values.get("bbox")
            if not isinstance(box, list) or len(box) != 4:
                raise UserError(
                    f'{where} has "bbox": {rows.shown(box)}, which must be [x, y, width, height]; '
                    "give instances_*.json of COCO."
                )
            images.append(_whole(values, "image_id", where))
            labels.append(_whole(values, "category_id", where))
            sides.extend(box)
    known = sorted(names)
    unknown = sorted(set(labels) - names.keys())
    if unknown:
        raise UserError(
            f"{path} has objects of category {unknown[0]}, which it does not name; give "
            "instances_*.json of COCO."
        )
    order = np.argsort(np.frombuffer(images, np.int64), kind="stable")
    return Instances(
        names=[names[id_] for id_ in known],
        images=np.frombuffer(images, np.int64)[order],
        labels=np.searchsorted(known, np.frombuffer(labels, np.int64)[order]),
        sides=np.frombuffer(sides, np.float32).reshape(-1, 4)[order],
    )


def _boxes(instances: Instances, id_: int, image: dict[str, Any]) -> tuple[Box, ...]:
    """The objects of an image in shares of its size; none where the size is not known."""
    if not image["width"] or not image["height"]:
        return ()
    first, last = np.searchsorted(instances.images, [id_, id_ + 1])
    size = np.array([image["width"], image["height"]] * 2, np.float64)
    sides = instances.sides[first:last].astype(np.float64)
    sides[:, 2:] += sides[:, :2]
    sides = np.clip(sides / size, 0.0, 1.0)
    return tuple(
        Box(instances.names[label], *side.tolist())
        for label, side in zip(instances.labels[first:last], sides, strict=True)
    )
