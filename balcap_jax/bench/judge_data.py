"""Human labels that a judge is measured on: THumB 1.0 and FaithScore, as folders of JSONL files.

A folder holds what there is of

    thumb/mscoco_THumB-1.0.jsonl     {"seg_id", "SYS", "hyp", "P", "R", ...} per caption
    thumb/references.jsonl           {"seg_id", "refs"} per image
    faithscore/annotation.jsonl      {"id", "answer", "stage 1", "stage 2"} per answer
    coco20/captions_boxes.jsonl      {"id", "captions", "instances"} per image of FaithScore

In FaithScore's files 1 means descriptive (stage 1) and correct (stage 2).
"""

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import Box, Example
from balcap_jax.errors import UserError

_NO_IMAGE = Image.new("RGB", (1, 1))  # judges of words do not look


class Rated(NamedTuple):
    """A caption by `system` with human marks from 1 to 5."""

    example: Example
    system: str
    caption: str
    precision: float
    recall: float


class Labelled(NamedTuple):
    """A piece of text about an image with a yes or no from people."""

    example: Example
    text: str
    label: bool


class HumanLabels(NamedTuple):
    """All labels of a folder.

    Attributes:
      captions: of THumB.
      facts: of FaithScore; is it true of the image.
      sentences: sub-sentences of FaithScore; does it describe (and not analyse).
    """

    captions: tuple[Rated, ...]
    facts: tuple[Labelled, ...]
    sentences: tuple[Labelled, ...]


def read_labels(folder: Path) -> HumanLabels:
    """Reads `folder`.

    Raises:
      UserError: a file is missing or not as described above.
    """
    try:
        facts, sentences = _faithscore(folder)
        return HumanLabels(_thumb(folder / "thumb"), facts, sentences)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be read ({error.strerror}); give a folder with thumb/, "
            "faithscore/ and coco20/ as docs/judges.md lists them."
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder} holds a row that is not as docs/judges.md describes it "
            f"({type(error).__name__}: {error}); get the files anew."
        ) from error


def photo(id_: str, references: list[str], boxes: tuple[Box, ...] = ()) -> Example:
    """An example without pixels."""
    return Example(id_, _NO_IMAGE, PROMPT, references[0], None, tuple(references), boxes)


def _rows(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _thumb(folder: Path) -> tuple[Rated, ...]:
    examples = {
        row["seg_id"]: photo(row["seg_id"], row["refs"])
        for row in _rows(folder / "references.jsonl")
    }
    return tuple(
        Rated(examples[row["seg_id"]], row["SYS"], row["hyp"], row["P"], row["R"])
        for row in _rows(folder / "mscoco_THumB-1.0.jsonl")
    )


def _faithscore(folder: Path) -> tuple[tuple[Labelled, ...], tuple[Labelled, ...]]:
    examples = {
        row["id"]: photo(
            row["id"],
            row["captions"],
            tuple(Box(item["category"], *item["bbox"]) for item in row["instances"]),
        )
        for row in _rows(folder / "coco20" / "captions_boxes.jsonl")
    }
    answers = _rows(folder / "faithscore" / "annotation.jsonl")

    def labelled(stage: str) -> tuple[Labelled, ...]:
        return tuple(
            Labelled(examples[row["id"]], text.strip(), bool(label))
            for row in answers
            for text, label in row[stage].items()
        )

    return labelled("stage 2"), labelled("stage 1")
