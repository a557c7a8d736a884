"""Requests: instructions, image, reference units and, last, the caption.

What the captions of a group share stands first, so that a server computes it once. Captions and
references are data: they travel as JSON strings in which no character that a chat template, a
markup or a JSON text gives a meaning to is left, and of limited length.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from balcap_jax.rewards.llm.questions import Part

MAX_CHARACTERS = 8000  # of a caption or a reference; the rest is not sent

# The characters that JSON, markup and the chat templates of servers give a meaning to; some servers
# would read "<|im_end|>" in a message as the end of the message.
_MEANINGFUL = re.compile(r"[<>\[\]{}|`&\\]")
_OPENING = re.compile(r'(^|(?<=[\s(\[{<“]))"')  # a quotation mark before which nothing stands


def clean(text: str) -> str:
    """`text` as the model sees it: no control or invisible characters, composed letters (NFC), of
    limited length.

    The cut is at a space where there is one.
    """
    head = text[: 8 * MAX_CHARACTERS]  # what is dropped below should not shorten what is sent
    kept = "".join(_visible(character) for character in head)
    kept = " ".join(unicodedata.normalize("NFC", kept).split())
    if len(kept) <= MAX_CHARACTERS:
        return kept
    return kept[:MAX_CHARACTERS].rpartition(" ")[0] or kept[:MAX_CHARACTERS]


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Cf", "Cn", "Co"):  # joiners, direction marks, tags, unassigned, private
        return ""
    if category == "Cs":  # half a character, which cannot be sent
        return "\ufffd"
    return " " if category in ("Cc", "Zl", "Zp") else character


def quoted(value: Any) -> str:
    """`value` as JSON on one line in which the texts hold no meaningful character."""
    if isinstance(value, str):
        inner = _MEANINGFUL.sub(lambda match: f"\\u{ord(match[0]):04x}", typographic(value))
        return f'"{inner}"'
    if isinstance(value, list):
        return "[" + ", ".join(quoted(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(k)}: {quoted(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def typographic(text: str) -> str:
    """`text` with “ and ” in place of straight quotation marks, which would have to be escaped:
    some models copy an escape as it stands.
    """
    return _OPENING.sub("“", text).replace('"', "”")


def unit_id(place: int) -> str:
    """The id of the reference unit at `place`, from 0: no number, flag or count looks like it."""
    return f"u{place + 1:02d}"


def messages(
    part: Part, *, text: str, label: str = "caption", image_url: str = "", units: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The request of `part` about `text`, in the order in which requests of a group differ, or with
    the units last where the part wants it.

    Args:
      text: the caption or reference, cleaned here.
      image_url: of the image, where the part sees it.
      units: the reference units, where the part sees them.
    """
    content: list[dict[str, Any]] = []
    if "image" in part.sees:
        content.append({"type": "image_url", "image_url": {"url": image_url}})
    content.append({"type": "text", "text": quoted({label: clean(text)})})
    if "units" in part.sees:
        listed = [{"id": unit_id(i), "unit": clean(unit)} for i, unit in enumerate(units)]
        told = {"type": "text", "text": f"Reference units: {quoted(listed)}"}
        content.insert(len(content) if part.units_last else -1, told)
    return [
        {"role": "system", "content": part.instructions},
        {"role": "user", "content": content},
    ]


def response_format(part: Part, *, structured: str) -> dict[str, Any] | None:
    """How the form of the answer is asked for; `structured` is the setting. A part without a schema
    has an answer of any form.
    """
    if structured == "none" or not part.schema:
        return None
    if structured == "json_object":
        return {"type": "json_object"}
    schema = {"name": part.name, "strict": True, "schema": part.schema}
    return {"type": "json_schema", "json_schema": schema}
