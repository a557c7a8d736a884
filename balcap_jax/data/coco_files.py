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
from balcap_jax.data.rows import BadRowError, Row
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
        self._faults: dict[int, BadRowError] = {}  # the first of each image
        annotations = array("q")
        for section, number, values in _entries(path, ("images", "annotations")):
            where = f"{path}, {section} {number}"
            if section == "images":
                id_ = _whole(values, "id", where)
                if id_ in found:
                    raise _twice(path, "two images", id_)
                found[id_] = self._kept(id_, values, where)
            else:
                self._check_kind(values, where)
                if not rows.missing(values.get("id")):
                    annotations.append(_whole(values, "id", where))
                id_ = _whole(values, "image_id", where)
                captions.setdefault(id_, []).append(self._caption(id_, values, where))
        _check_unique(path, annotations)
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
        if self._instances is not None:
            self._check_boxes(boxes, self._instances)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """The image at `index` with its captions.

        Raises:
          BadRowError: its entry or one of its captions is not as it should be.
        """
        id_, image = self._rows[index]
        if id_ in self._faults:
            raise self._faults[id_]
        captions = rows.unique(caption.strip() for caption in self._captions[id_])
        return Row(
            id=str(id_),
            image=rows.image_path(self.images, image["file_name"]),
            prompt=PROMPT,
            reference=rows.longest(captions),
            references=captions if len(captions) > 1 else (),
            boxes=() if self._instances is None else _boxes(self._instances, id_, image),
        )

    def _check_boxes(self, path: Path | None, instances: Instances) -> None:
        """Refuses objects of other images alone, and tells of images whose boxes are lost."""
        known = np.isin([id_ for id_, _ in self._rows], instances.images)
        if not known.any():
            raise UserError(
                f"data.boxes={path} has no object of the {len(self._rows)} images of {self.path}; "
                "give the instances_*.json of the same images."
            )
        unsized = [not (image.get("width") and image.get("height")) for _, image in self._rows]
        self._skip("boxes of images without width and height", int((known & unsized).sum()))

    def _kept(self, id_: int, values: dict, where: str) -> dict[str, Any]:
        """What is kept of an entry of "images"."""
        try:
            rows.text(values.get("file_name"), name="file_name", where=where)
            for name in ("width", "height"):
                _side(values.get(name), name=name, where=where)
        except BadRowError as error:
            self._faults.setdefault(id_, error)
            return {}
        return {name: values.get(name) for name in ("file_name", "width", "height")}

    def _caption(self, id_: int, values: dict, where: str) -> str:
        try:
            return rows.words(values["caption"], name="caption", where=where)
        except BadRowError as error:
            self._faults.setdefault(id_, error)
            return ""

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
        if item.twice is not None:
            raise UserError(
                f"{path}, {item.key} {numbers[item.key]} has {rows.shown(item.twice)} twice, and "
                "one would take the place of the other; fix it or remove the entry."
            )
        if not isinstance(item.value, dict):
            raise UserError(
                f"{path}, {item.key} {numbers[item.key]} is {rows.shown(item.value)}, which must "
                "be an object; give a file of COCO's."
            )
        yield item.key, numbers[item.key], item.value


def _whole(values: dict, name: str, where: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise UserError(
            f'{where} has "{name}": {rows.shown(value)}, which must be a whole number; fix it or '
            "give a file of COCO's."
        )
    return value


def _side(value: Any, *, name: str, where: str) -> None:
    """Refuses a width or height that is none; it may be missing."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or (is_whole and 0 <= value < 2**31):
        return
    raise BadRowError(
        where,
        f'has "{name}": {rows.shown(value)}, which must be a number of pixels; fix it or leave it '
        "out.",
    )


def _twice(path: Path, what: str, id_: int) -> UserError:
    return UserError(
        f"{path} has {what} of the id {id_}, and one would take the place of the other; give each "
        "its own id."
    )


def _check_unique(path: Path, ids: array) -> None:
    """Refuses annotations of which two have one id."""
    found = np.sort(np.frombuffer(ids, np.int64)) if ids else np.zeros(0, np.int64)
    repeated = found[1:][found[1:] == found[:-1]]
    if len(repeated):
        raise _twice(path, "two annotations", int(repeated[0]))


def _read_instances(path: Path) -> Instances:
    """The objects of instances_*.json, without crowds.

    Raises:
      UserError: the file cannot be read, or an entry is not like COCO's.
    """
    images, labels, sides, objects = array("q"), array("q"), array("f"), array("q")
    names: dict[int, str] = {}
    for section, number, values in _entries(path, ("annotations", "categories")):
        where = f"{path}, {section} {number}"
        if section == "categories":
            name = rows.text(values.get("name"), name="name", where=where)
            id_ = _whole(values, "id", where)
            if id_ in names:
                raise _twice(path, "two categories", id_)
            names[id_] = name
            continue
        if not rows.missing(values.get("id")):
            objects.append(_whole(values, "id", where))
        if not values.get("iscrowd"):
            box = values.get("bbox")
            ok = isinstance(box, list) and len(box) == 4 and all(map(_is_length, box))
            if not ok or min(box[2:]) < 0:
                raise UserError(
                    f'{where} has "bbox": {rows.shown(box)}, which must be [x, y, width, height]; '
                    "give instances_*.json of COCO."
                )
            images.append(_whole(values, "image_id", where))
            labels.append(_whole(values, "category_id", where))
            sides.extend(box)
    _check_unique(path, objects)
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


def _is_length(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -1e30 < value < 1e30  # no NaN, and what a float32 holds


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
