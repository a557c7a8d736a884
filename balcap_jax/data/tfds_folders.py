"""Data sets that TensorFlow Datasets has prepared as ArrayRecord files, such as `coco_captions`.

They are read with `tfds` data sources: random access, and no TensorFlow.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.examples import Box
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.data.seen_ids import SeenIds
from balcap_jax.errors import UserError

INFO = "dataset_info.json"
_REMEDY = "prepare the data set with file_format='array_record', see docs/data.md"


def find_folder(folder: Path) -> Path | None:
    """The folder of the one prepared data set at or below `folder`; None if there is none.

    Raises:
      UserError: there are several.
    """
    if (folder / INFO).is_file():
        return folder
    # NAME/VERSION or NAME/CONFIG/VERSION below a data_dir.
    found = [path.parent for depth in (1, 2, 3) for path in folder.glob("*/" * depth + INFO)]
    if len(found) > 1:
        names = ", ".join(sorted(str(path) for path in found)[:3])
        raise UserError(f"{folder} holds several data sets ({names}); give one of these folders.")
    return found[0] if found else None


class TfdsRows(Sequence[Row]):
    """The examples of one split, with the features of `coco_captions`: image, captions, objects."""

    def __init__(self, folder: Path, *, split: str):
        """
        Args:
          folder: what `find_folder` found.
          split: such as "train", also a part of one as TFDS writes it, "train[:90%]".

        Raises:
          UserError: the files are missing, of another format, without images and captions, or
            there is no such split.
        """
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(folder)
            features = builder.info.features
            if "image" not in features or "captions" not in features:
                raise UserError(
                    f"{folder} has the features {', '.join(sorted(features))}, where image and "
                    "captions are needed; give a data set such as coco_captions."
                )
            # Images stay as they were stored: ours are decoded by `open_image`, like all others.
            source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            self._length = len(source)
            source[0]
        except UserError:
            raise
        # tfds meets arbitrary files here and has no error of its own for them.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"The split {split!r} of the data set in {folder} cannot be read ({reason}); set "
                f"--data.split to one of its splits, or {_REMEDY}."
            ) from error
        self.folder, self.split, self._source = folder, split, source
        self._seen = SeenIds(f"The split {split!r} in {folder}")
        labelled = "objects" in features and "label" in features["objects"]
        label = features["objects"]["label"] if labelled else None
        self._names = label.names if isinstance(label, tfds.features.ClassLabel) else []

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Example `index`.

        Raises:
          BadRowError: it has no caption, or is damaged.
          UserError: another example had its id.
        """
        if not 0 <= index < self._length:
            raise IndexError(index)
        where = f"The example {index} of the split {self.split!r} in {self.folder}"
        try:
            values = self._source[index]
        except Exception as error:  # of damaged files, for which tfds has no error of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadRowError(where, f"cannot be read ({reason}); {_REMEDY}.") from error
        values = values if isinstance(values, Mapping) else {}
        captions = rows.unique(
            rows.words(caption, name="captions", where=where)
            for text in _column(values.get("captions"), "text", where)
            if (caption := _text(text, where)).strip()
        )
        if not captions:
            raise BadRowError(
                where,
                "has no caption, which every one must have; give a data set such as coco_captions.",
            )
        image = values.get("image")
        if not isinstance(image, bytes | np.ndarray):
            raise BadRowError(where, f"has no image; {_REMEDY}.")
        id_ = values.get("image/id")
        id_ = rows.identity(_text(id_, where) if isinstance(id_, bytes) else id_, where=where)
        name = f"{self.split}-{index:06d}" if id_ is None else id_
        self._seen.check(name, index)
        return Row(
            id=name,
            image=image,
            prompt=PROMPT,
            reference=rows.longest(captions),
            references=captions if len(captions) > 1 else (),
            boxes=self._boxes(values.get("objects"), where),
        )

    def _boxes(self, objects: Any, where: str) -> tuple[Box, ...]:
        if objects is None or not self._names:
            return ()
        labels, places = (_column(objects, name, where) for name in ("label", "bbox"))
        crowds = [False] * len(places)
        if "is_crowd" in objects:
            crowds = _column(objects, "is_crowd", where)
        if not len(labels) == len(places) == len(crowds):
            raise BadRowError(
                where, f"has {len(places)} boxes of {len(labels)} objects; {_REMEDY}."
            )
        return tuple(
            self._box(label, place, where)
            for label, place, crowd in zip(labels, places, crowds, strict=True)
            if not crowd
        )

    def _box(self, label: Any, place: Any, where: str) -> Box:
        place = rows.listed(place)
        # tfds stores [ymin, xmin, ymax, xmax], and -1 for an object without a label.
        ok = isinstance(place, list) and len(place) == 4 and all(map(_is_share, place))
        ok = ok and place[0] <= place[2] and place[1] <= place[3]
        ok = ok and isinstance(label, int | np.integer) and 0 <= label < len(self._names)
        if not ok:
            raise BadRowError(
                where,
                f"has the box {rows.shown(place)} of the label {rows.shown(label)}, which must be "
                f"[top, left, bottom, right] in shares from 0 to 1 and from 0 to "
                f"{len(self._names) - 1}; {_REMEDY}.",
            )
        return Box(self._names[int(label)], *(float(place[side]) for side in (1, 0, 3, 2)))


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and 0 <= value <= 1  # and no NaN


def _column(values: Any, name: str, where: str) -> list[Any]:
    """All values of one feature of a sequence.

    Raises:
      BadRowError: there is no such list.
    """
    found = rows.listed(values.get(name)) if isinstance(values, Mapping) else None
    if not isinstance(found, list):
        raise BadRowError(where, f'has no list of "{name}"; {_REMEDY}.')
    return found


def _text(value: Any, where: str) -> str:
    """A text, which tfds gives as bytes.

    Raises:
      BadRowError: it is none.
    """
    try:
        found = value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise BadRowError(
            where, f"has the text {rows.shown(repr(value))}, which is not UTF-8; {_REMEDY}."
        ) from error
    if not isinstance(found, str):
        raise BadRowError(where, f"has {rows.shown(found)} in place of a text; {_REMEDY}.")
    return found.strip()
