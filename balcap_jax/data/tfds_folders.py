"""Data sets that TensorFlow Datasets has prepared as ArrayRecord files, such as `coco_captions`.

They are read with `tfds` data sources: random access, and no TensorFlow.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
            captions = rows.unique(_words(text) for text in values["captions"]["text"])
        except Exception as error:  # of damaged files, for which tfds has no error of its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadRowError(where, f"cannot be read ({reason}); {_REMEDY}.") from error
        captions = tuple(caption for caption in captions if caption)
        if not captions:
            raise BadRowError(
                where,
                "has no caption, which every one must have; give a data set such as coco_captions.",
            )
        for caption in captions:
            rows.words(caption, name="captions", where=where)
        id_ = values.get("image/id")
        name = f"{self.split}-{index:06d}" if id_ is None else _id(id_)
        self._seen.check(name, index)
        return Row(
            id=name,
            image=bytes(values["image"]),
            prompt=PROMPT,
            reference=rows.longest(captions),
            references=captions if len(captions) > 1 else (),
            boxes=self._boxes(values.get("objects")),
        )

    def _boxes(self, objects: Any) -> tuple[Box, ...]:
        if not objects or not self._names:
            return ()
        crowds = objects.get("is_crowd", [False] * len(objects["bbox"]))
        return tuple(
            # tfds stores [ymin, xmin, ymax, xmax].
            Box(self._names[int(label)], *(float(box[side]) for side in (1, 0, 3, 2)))
            for label, box, crowd in zip(objects["label"], objects["bbox"], crowds, strict=True)
            if not crowd
        )


def _id(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _words(text: bytes | str) -> str:
    return (text.decode("utf-8") if isinstance(text, bytes) else text).strip()
