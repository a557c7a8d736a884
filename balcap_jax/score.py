"""`balcap score`: precision, recall, linguistic quality and b-CapScore of captions from
anywhere.
"""

import json
from pathlib import Path
from typing import Any

from balcap_jax.config import ScoreConfig
from balcap_jax.data.caption_files import CaptionFile
from balcap_jax.errors import UserError
from balcap_jax.evaluate import score_captions
from balcap_jax.rewards.scene_judge import SceneJudge
from balcap_jax.runs import write_jsonl_atomic


def score(config: ScoreConfig) -> dict[str, Any]:
    """Judges the captions of `config.captions` against `config.data`.

    Returns:
      The scores over all captions (see `evaluation_summary`).

    Raises:
      UserError: a file cannot be read, a caption's id is not in the data or given twice, or an
        example has no scene.
    """
    captions = _read_captions(config.captions)
    source = CaptionFile(config.data)
    place = {source.row(index).id: index for index in range(len(source))}
    unknown = [id_ for id_ in captions if id_ not in place]
    if unknown:
        raise UserError(
            f"{config.captions} has a caption for {unknown[0]!r}, which {config.data} does not "
            "hold; give the data file that the captions were made of."
        )
    judge = SceneJudge()
    examples = [source[place[id_]] for id_ in captions]
    for example in examples:
        judge.reference_units(example)  # refuses an example that this judge cannot judge
    summary, rows = score_captions(judge, examples, list(captions.values()))
    if config.out is not None:
        write_jsonl_atomic(config.out, [{**row, "image": None} for row in rows])
    return summary


def _read_captions(path: Path) -> dict[str, str]:
    """Caption by id."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); check the path.") from error
    captions: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            id_, text = row["id"], row["caption"]
            assert isinstance(id_, str)
            assert isinstance(text, str)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise UserError(
                f'{path} line {number} is not a row like {{"id": "1", "caption": "A red ..."}}; '
                "write one JSON object per line."
            ) from None
        if id_ in captions:
            raise UserError(
                f"{path} line {number} gives a second caption of {id_!r}; keep one per image."
            )
        captions[id_] = text
    if not captions:
        raise UserError(f"{path} holds no captions; write one JSON object per line.")
    return captions
