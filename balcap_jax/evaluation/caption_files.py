"""Captions in files: those of the official repositories and ours."""

import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from balcap_jax.data.json_text import DuplicateKeyError, is_encodable, json_lines, read_json
from balcap_jax.errors import UserError

# Names of an image in the rows of DeCapBench, of ours and of others.
_NAMES = ("image_path", "id", "image_name", "image")
_SHOWN = 3  # names in a sentence


def read_captions(path: Path) -> dict[str, str]:
    """Captions by the name of their image.

    Args:
      path: a JSON object {name: caption}, as CaptionQA and CapArena have it, or JSONL rows with
        "caption" and a name ("image_path" in DeCapBench, "id" in ours).

    Raises:
      UserError: the file cannot be read or has another form, or names an image twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"captions={path} cannot be read ({reason}); name a file.") from None
    try:
        whole = read_json(text)
        pairs = list(whole.items()) if isinstance(whole, dict) and "caption" not in whole else None
        rows = whole if isinstance(whole, list) else [whole]
    except DuplicateKeyError as error:
        raise UserError(f"captions={path} names an image twice ({error}); keep one.") from None
    except ValueError:
        pairs, rows = None, _rows(path, text)
    if pairs is None:
        pairs = [_pair(path, number, row) for number, row in enumerate(rows, start=1)]
    found: dict[str, str] = {}
    for name, caption in pairs:
        if not isinstance(caption, str):
            raise UserError(
                f"captions={path}: the caption of {name!r} is no text; write a string for each "
                "image."
            )
        if not is_encodable(caption):
            raise UserError(
                f"captions={path}: the caption of {name!r} holds half of a character; write it "
                "anew."
            )
        if name in found:
            raise UserError(f"captions={path} names the image {name!r} twice; keep one.")
        found[name] = caption
    return found


def _rows(path: Path, text: str) -> list[Any]:
    return json_lines(
        text,
        name=f"captions={path}",
        remedy=(
            "give a JSON object {image: caption}, or a row with an id and a caption in each line"
        ),
    )


def _pair(path: Path, number: int, row: Any) -> tuple[str, Any]:
    if isinstance(row, Mapping) and "caption" in row:
        for name in _NAMES:
            if isinstance(row.get(name), str):
                return row[name], row["caption"]
    raise UserError(
        f"captions={path}, row {number} has no caption with the name of its image; give "
        '{"id": ..., "caption": ...} or {"image_path": ..., "caption": ...}.'
    )


def matched(
    captions: Mapping[str, str],
    wanted: Sequence[str],
    *,
    path: Path,
    data: Path,
    allow_missing: bool,
    passed_over: Collection[str] = (),
) -> dict[str, str]:
    """The captions of the images `wanted`, in their order.

    Args:
      path, data: of captions and benchmark, for messages.
      allow_missing: images without a caption are left out.
      passed_over: images of the data that are not asked about; they may have captions.

    Raises:
      UserError: a caption is of no such image, the names have another form, or images lack one.
    """
    known = {*wanted, *passed_over}
    unknown = [name for name in captions if name not in known]
    if forms := _other_forms(unknown, wanted):
        theirs, ours = forms
        raise UserError(
            f"captions={path} names images as {theirs} where {data} has {ours}; write the names as "
            "the benchmark has them."
        )
    if unknown:
        raise UserError(
            f"captions={path} has captions of {len(unknown)} images that {data} does not know "
            f"({_some(unknown)}); remove them, or give the data that they are of."
        )
    missing = [name for name in wanted if name not in captions]
    if missing and not allow_missing:
        raise UserError(
            f"captions={path} lacks the captions of {len(missing)} of {len(wanted)} images "
            f"({_some(missing)}); add them, or leave these images out with --allow-missing."
        )
    if len(missing) == len(wanted):
        raise UserError(f"captions={path} has no caption of an image of {data}; give another file.")
    return {name: captions[name] for name in wanted if name in captions}


def _other_forms(names: Sequence[str], wanted: Sequence[str]) -> tuple[str, str] | None:
    """The first of `names` that the benchmark has with another path, ending, percent sign or
    Unicode form, and its name there.
    """
    plain = {_plain(name): name for name in wanted}
    for name in names:
        if (known := plain.get(_plain(name))) is not None:
            alike = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", known)
            show = ascii if alike else repr  # what looks the same is told by its numbers
            return show(name), show(known)
    return None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", Path(unquote(name)).stem)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def as_json(captions: Mapping[str, str]) -> str:
    """Captions as CaptionQA and CapArena read them."""
    return json.dumps(dict(captions), ensure_ascii=False, indent=2) + "\n"
