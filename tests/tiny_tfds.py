"""A data set with the features and files of TFDS' `coco_captions`, made without TensorFlow."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NAMES = ["person", "dog"]


class CocoCaptions(tfds.core.GeneratorBasedBuilder):
    """Images of one grey each: the one with id i is 10 i grey."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014")]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "image/filename": tfds.features.Text(),
                    "image/id": np.int64,
                    "objects": tfds.features.Sequence(
                        {
                            "area": np.int64,
                            "bbox": tfds.features.BBoxFeature(),
                            "id": np.int64,
                            "is_crowd": np.bool_,
                            "label": tfds.features.ClassLabel(names=NAMES),
                        }
                    ),
                    "captions": tfds.features.Sequence({"id": np.int64, "text": np.str_}),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(0, 6), "val": self._generate_examples(20, 23)}

    def _generate_examples(self, first, last):
        for i in range(first, last):
            box = tfds.features.BBox(ymin=0.125, xmin=0.25, ymax=0.5, xmax=0.75)
            thing = {"area": 5, "bbox": box, "id": 1, "is_crowd": False, "label": "dog"}
            yield (
                i,
                {
                    "image": io.BytesIO(_jpeg(10 * i)),
                    "image/filename": f"{i}.jpg",
                    "image/id": i,
                    "objects": [thing, {**thing, "is_crowd": True}] if i else [],
                    "captions": [
                        {"id": 1, "text": f"Café {i}."},
                        {"id": 2, "text": f"A longer caption of image {i}."},
                    ],
                },
            )


class Unlabelled(CocoCaptions):
    """The same without captions."""

    def _info(self):
        features = {"image": tfds.features.Image(), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, {"image": io.BytesIO(_jpeg(i)), "text": str(i)}


def prepare(data_dir: Path, kind=CocoCaptions) -> Path:
    """Writes the data set below `data_dir` and returns the folder of its version."""
    builder = kind(data_dir=data_dir, file_format="array_record", config="2014")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _jpeg(grey):
    buffer = io.BytesIO()
    Image.new("L", (16, 12), grey).save(buffer, "JPEG", quality=100)
    return buffer.getvalue()
