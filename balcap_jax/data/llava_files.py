"""Conversations about images as LLaVA and ShareGPT4V publish them: one JSON array of

    {"id": "1", "image": "coco/train2017/000000000009.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nDescribe the image."},
        {"from": "gpt", "value": "A plate of ..."}]}

The first question, without its image tag, is the prompt and the first answer the reference.
"""

import json
import logging
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balcap_jax.config.sections import PROMPT
from balcap_jax.data import rows
from balcap_jax.data.row_index import RowTexts, json_items, row_index
from balcap_jax.data.rows import Row
from balcap_jax.errors import UserError

TAG = "<image>"
_HUMAN, _MODEL = ("human", "user"), ("gpt", "assistant")
_log = logging.getLogger(__name__)


class LlavaRows(Sequence[Row]):
    """The rows with one image and an answer; the others are counted in `skipped`.

    The file is parsed once at the start; then only the places of its rows are in memory, and each
    is parsed again when it is asked for.

    Attributes:
      skipped: how many rows are of no use here, by reason.
    """

    def __init__(self, path: Path, *, images: Path | None = None):
        """
        Raises:
          UserError: the file cannot be read, is no array of such rows, or none can be used.
        """
        self.path = path
        self.images = path.parent if images is None else images
        self.skipped: Counter[str] = Counter()
        starts, stops, numbers = array("q"), array("q"), array("q")
        for number, item in enumerate(json_items(path), start=1):
            if item.key is not None:
                raise UserError(
                    f"{path} is a JSON object, where LLaVA and ShareGPT4V files are an array of "
                    "rows; give one of these, or --data.format coco for captions of COCO."
                )
            reason = _why_unused(item.value, where=f"{path}, row {number}")
            if reason is not None:
                self.skipped[reason] += 1
                continue
            starts.append(item.start)
            stops.append(item.stop)
            numbers.append(number)
        if not numbers:
            told = ", ".join(f"{count} rows {reason}" for reason, count in self.skipped.items())
            raise UserError(
                f"{path} has no row that can be used ({told or 'it is empty'}); give rows with an "
                "image and an answer."
            )
        for reason, count in self.skipped.items():
            _log.warning("%s: skipped %d rows %s", path, count, reason)
        self._texts = RowTexts(path, row_index(starts, stops, numbers))

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Row `index`.

        Raises:
          UserError: the file has changed since the start.
        """
        number = int(self._texts.index.numbers[index])
        try:
            values = json.loads(self._texts[index])
            question, answer = _turns(values["conversations"])
            image = values["image"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} has changed since the start of the run (row {number} is not where it "
                "was); restore it and resume the run."
            ) from error
        return Row(
            # Published files have ids twice, and ids that are missing.
            id=f"{values.get('id', self.path.stem)}#{number}",
            image=self.images / image,
            prompt=question.replace(TAG, "").strip() or PROMPT,
            reference=answer.strip(),
        )


def _why_unused(values: Any, *, where: str) -> str | None:
    """Why a row has nothing to train on, in words that fit behind "rows"; None if it has.

    Raises:
      UserError: it is no row at all.
    """
    if not isinstance(values, dict) or not isinstance(values.get("conversations"), list):
        raise UserError(
            f'{where} is {rows.shown(values)}, which has no "conversations"; give a file of LLaVA '
            "or ShareGPT4V, or one JSON object with image and caption per line as .jsonl."
        )
    image = values.get("image")
    if image is None or image == []:
        return "without an image"
    if isinstance(image, list):
        return "with a list of images"
    rows.text(image, name="image", where=where)
    try:
        question, answer = _turns(values["conversations"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} has the conversation {rows.shown(values['conversations'])}, whose turns must "
            'be like {"from": "human", "value": "..."}; fix or remove the row.'
        ) from error
    if not answer.strip():
        return "without an answer"
    if TAG not in question:
        raise UserError(
            f"{where} has the image {image} and the first question {rows.shown(question)}, which "
            f"must hold {TAG} before or after its words; add the tag or remove the row."
        )
    if question.count(TAG) > 1:
        return "with several image tags"
    return None


def _turns(conversations: list[dict[str, str]]) -> tuple[str, str]:
    """The first question and the answer to it; an empty text for what is missing."""
    asked: str | None = None
    for turn in conversations:
        speaker, words = turn["from"].lower(), turn["value"] or ""
        if asked is None and speaker in _HUMAN:
            asked = words
        elif asked is not None and speaker in _MODEL:
            return asked, words
    return asked or "", ""
