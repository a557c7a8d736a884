"""Rows of `balcap score`: lines of its input, what is known of their images, and their scores."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from balcap_jax.config.commands import ScoreConfig
from balcap_jax.config.sections import PROMPT, REWARDS, DataConfig
from balcap_jax.data import rows
from balcap_jax.data.examples import Example
from balcap_jax.data.images import BadImageError, ImageLike, Pixels, open_image
from balcap_jax.data.json_text import is_encodable, read_json
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.data.sources import open_rows
from balcap_jax.errors import UserError
from balcap_jax.reporting.rows import assertion_row
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.judges import judge_record, judge_settings
from balcap_jax.rewards.verdicts import Judge, MeteredJudge, Verdict
from balcap_jax.runs.folder import plain, to_json

_NO_IMAGE = Image.new("RGB", (1, 1))  # these judges read and do not look
_REFERENCES = ("captions", "reference", "references")  # "caption" is the one that is judged
# The fields of the judge, by their names in its record.
JUDGE_FIELDS = {
    "kind": "judge",
    "version": "judge_version",
    "model": "judge_model",
    "prompts": "judge_prompts",
    "settings": "judge_settings",
}
_SCORES = frozenset({*REWARDS, "b_capscore", "assertions", "units", "error"})
_WRITTEN = _SCORES | frozenset(JUDGE_FIELDS.values()) | {"data_digest"}
# Judges shrink images to `judge.image_side` themselves: this only bounds the memory of a batch.
_PIXELS = Pixels(most=2048 * 2048)
_LONGEST_ERROR = 300  # characters


class Line(NamedTuple):
    """A line of the input: its row, or why it is invalid."""

    row: dict[str, Any]
    error: str | None


class Input:
    """The lines of a file or a pipe, once.

    Attributes:
      done: bytes that have been read.
      size: bytes of the file; None for a pipe.
    """

    def __init__(self, file: BinaryIO, path: Path):
        self._file = file
        self.done = 0
        self.size = path.stat().st_size if path.is_file() else None

    def lines(self) -> Iterator[Line]:
        """Every line that is not blank."""
        for number in itertools.count(1):
            raw = self._file.readline()
            if not raw:
                return
            self.done += len(raw)
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                yield _line(raw, number)


def _line(raw: bytes, number: int) -> Line:
    try:
        row = read_json(raw.decode("utf-8"))
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:  # UnicodeDecodeError is one
        return Line({"line": number}, f"line {number} cannot be read ({error})")
    # As it will be read from the output: NaN is null there.
    row = plain(row)
    if not isinstance(row.get("caption"), str):
        return Line(row, f'line {number} has no text "caption"')
    if not is_encodable(row["caption"]):
        return Line(row, f'line {number} has a "caption" with half of a character')
    return Line(row, None)


def own(row: Mapping[str, Any]) -> list[str]:
    """The fields of an input row that its scored row still has: it may be a scored row itself."""
    return [name for name in row if name not in _WRITTEN]


class Known:
    """The rows of a data file by their id; rows that are none are passed over."""

    def __init__(self, path: Path):
        """
        Raises:
          UserError: the file cannot be read, has an id twice, or no row that can be used.
        """
        self._rows = open_rows(DataConfig(path=str(path)), path, split="train")
        self._places: dict[str, int] = {}
        self._faults: dict[int, str] = {}
        for place in range(len(self._rows)):
            try:
                self._places[self._rows[place].id] = place
            except BadRowError as error:
                self._faults[place] = str(error)
        if not self._places:
            raise UserError(
                f"{path} has no row that can be used: {next(iter(self._faults.values()))}"
            )

    def row(self, id_: str) -> Row:
        """
        Raises:
          ValueError: there is no row of this id; the message says so.
        """
        if id_ not in self._places:
            lost = f", and {len(self._faults)} rows that cannot be used" if self._faults else ""
            raise ValueError(f"the data file has no id {id_!r}{lost}")
        return self._rows[self._places[id_]]


class Scorer:
    """Judges lines of the input.

    Args:
      known: the data file, where one is given.
      folder: that the paths of images start from.
    """

    def __init__(self, judge: Judge, config: ScoreConfig, known: Known | None, folder: Path):
        self._judge, self.config, self._known = judge, config, known
        record = judge_record(config.judge)
        if settings := judge_settings(config.judge):
            record["settings"] = to_json(settings)
        self.judge = {field: record[name] for name, field in JUDGE_FIELDS.items() if name in record}
        self._folder = folder

    def scored(self, lines: Sequence[Line]) -> list[dict[str, Any]]:
        """The output rows of a batch."""
        examples = [self._example(line) for line in lines]
        good = [i for i, example in enumerate(examples) if isinstance(example, Example)]
        captions = [lines[i].row["caption"] for i in good]
        verdicts = self._judge([examples[i] for i in good], captions)  # type: ignore[misc]
        found: dict[int, Verdict | None] = dict(zip(good, verdicts, strict=True))
        why = self._judge.last_failures if isinstance(self._judge, MeteredJudge) else ""
        return [
            {
                **{name: line.row[name] for name in own(line.row)},
                **self.judge,
                **self.told(line),
                **_scores(self._judge, example, found.get(i), why),
            }
            for i, (line, example) in enumerate(zip(lines, examples, strict=True))
        ]

    def told(self, line: Line) -> dict[str, str | None]:
        """A digest of what the data file tells of the row, by which a changed file is noticed."""
        if self._known is None:
            return {}
        try:
            row = self._truth(line.row) if line.error is None else None
        except ValueError:
            row = None
        if row is None:
            return {"data_digest": None}
        scene = None if row.scene is None else row.scene.to_json()
        told = [row.reference, row.references, row.boxes, row.units, scene, self._shown(row.image)]
        return {"data_digest": hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]}

    def _shown(self, image: ImageLike) -> str:
        looks = self.config.judge.kind == "llm" and isinstance(image, str | PurePath)
        return str(image) if looks else ""

    def _example(self, line: Line) -> Example | str:
        """What is known of the image of a line, or why it cannot be judged."""
        if line.error is not None:
            return line.error
        try:
            row = self._truth(line.row)
            image = _NO_IMAGE if self.config.judge.kind != "llm" else self._opened(row.image)
        except ValueError as error:
            return str(error)
        return Example(
            row.id, image, PROMPT, row.reference, row.scene, row.references, row.boxes, row.units
        )

    def _truth(self, values: Mapping[str, Any]) -> Row:
        """What a row says of its image, and for all that it does not say what the data file does.

        Raises:
          ValueError: a field is not as it should be, the id is unknown, or there is nothing to
            judge by; the message says so.
        """
        try:
            id_ = rows.identity(values.get("id"), where="the row")
            given = {
                name: values[name] for name in _REFERENCES if values.get(name) not in (None, [])
            }
            references = rows.captions(given, names=_REFERENCES, where="the row")
            boxes = rows.boxes(values.get("boxes"), where="the row")
            units = rows.units(values.get("units"), where="the row")
            known = None
            if self._known is not None:
                if id_ is None:
                    raise ValueError('there is no "id" to find in the data file')
                known = self._known.row(id_)
            image = self._image(values, known)
        except UserError as error:
            raise ValueError(str(error)) from None
        reference = references[0] if references else ""
        if known is not None and not references:
            references, reference = known.all_references, known.reference
        scene = None if known is None else known.scene
        if not reference.strip() and scene is None:
            raise ValueError("there is no reference to judge by")
        return Row(
            id=id_ or "",
            image=image,
            prompt=PROMPT,
            reference=reference,
            scene=scene,
            references=references,
            boxes=boxes or (() if known is None else known.boxes),
            units=units or (() if known is None else known.units),
        )

    def _image(self, values: Mapping[str, Any], known: Row | None) -> ImageLike:
        """The image of a row; its path is relative to the input, that of the data file to that."""
        given = values.get("image")
        if isinstance(given, str) and given:
            try:
                return rows.image_path(
                    self._folder, rows.text(given, name="image", where="the row")
                )
            except UserError as error:  # in a store that is not read
                raise ValueError(str(error)) from None
        if known is not None:
            return known.image
        if self.config.judge.kind == "llm":
            raise ValueError('there is no "image" for the judge to look at')
        return b""

    def _opened(self, image: ImageLike) -> Image.Image:
        try:
            return open_image(image, pixels=_PIXELS)
        except BadImageError as error:
            name = image if isinstance(image, str | PurePath) else ""
            raise ValueError(f"the image {name} cannot be used: {error}") from None


def _scores(
    judge: Judge, example: Example | str, verdict: Verdict | None, why: str
) -> dict[str, Any]:
    """Scores in [0, 1] with their reasons; null, and an error, where there is no signal."""
    if isinstance(example, str) or verdict is None:
        none = "the judge gave no verdict" + (f" ({why})" if why else "")
        error = example if isinstance(example, str) else none
        nothing = dict.fromkeys((*REWARDS, "b_capscore"))
        return {**nothing, "assertions": [], "units": [], "error": error[:_LONGEST_ERROR]}
    rewards = rewards_of([verdict], REWARDS)[0]
    texts = judge.reference_units(example)
    assert len(texts) == len(verdict.covered)
    missing = [name for name, value in zip(REWARDS, rewards, strict=True) if np.isnan(value)]
    return {
        **{name: float(value) for name, value in zip(REWARDS, rewards, strict=True)},
        "b_capscore": float(harmonic_mean(rewards)),
        "assertions": [assertion_row(a) for a in verdict.assertions],
        "units": [
            {"text": text, "covered": covered}
            for text, covered in zip(texts, verdict.covered, strict=True)
        ],
        "error": f"no signal in {', '.join(missing)}" if missing else None,
    }
