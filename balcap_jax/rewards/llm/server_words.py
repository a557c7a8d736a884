"""What a server says of its errors, without the key: some repeat what they were sent."""

import html
import re
import urllib.parse
from typing import Any, NamedTuple

from balcap_jax.runs import safe_json

_SHOWN = 200  # characters
_READ = 20_000
_PIECE = 8  # characters of the key that are already a leak
_UNICODE_ESCAPE = re.compile(r"\\+u([0-9a-fA-F]{4})")


class ServerError(NamedTuple):
    """An error object.

    Attributes:
      words: its message, or the whole text where it has none.
      code: its kind: code, type and status as texts.
      status: the HTTP status that it names itself, or None.
      param: the field of the request that it is about, or "".
    """

    words: str
    code: str = ""
    status: int | None = None
    param: str = ""


def error_in(reply: Any) -> ServerError | None:
    """The error in a reply, in the forms that servers give it; None where there is none."""
    if not isinstance(reply, dict):
        return None
    choices = reply.get("choices")
    inner = choices[0] if isinstance(choices, list) and choices else None
    for found in (
        reply.get("error"),
        inner.get("error") if isinstance(inner, dict) else None,
        reply.get("errors"),
        # Old vLLM and FastAPI; not beside an answer.
        reply if "message" in reply and not choices else None,
        reply.get("detail") if not choices else None,
    ):
        if found and not _no_error(found):
            return _error(found)
    return None


def _no_error(found: Any) -> bool:
    """An error object that says that there is none, as gateways send it beside an answer."""
    return isinstance(found, dict) and (
        not any(found.values()) or str(found.get("code")).lower() in ("0", "ok", "success")
    )


def _error(found: Any) -> ServerError:
    if not isinstance(found, dict):
        return ServerError(found if isinstance(found, str) else repr(found)[:_READ])
    message = next((found[n] for n in ("message", "msg", "detail", "error") if found.get(n)), found)
    if isinstance(message, dict):  # an error within an error
        message = message.get("message") or message
    kinds = [found.get(name) for name in ("code", "type", "status")]
    statuses = [int(kind) for kind in kinds if re.fullmatch(r"[45]\d\d", str(kind))]
    return ServerError(
        words=message if isinstance(message, str) else repr(message)[:_READ],
        code=" ".join(str(kind)[:100] for kind in kinds if isinstance(kind, str | int)),
        status=statuses[0] if statuses else None,
        param=str(found.get("param") or "")[:100],
    )


def error_of(text: str) -> ServerError:
    """The error in the text of a reply with an HTTP status that says that there is one."""
    try:
        reply = safe_json.loads(text, strict=False)
    except ValueError:
        return ServerError(text[:_READ])
    return error_in(reply) or ServerError(text[:_READ])


def shown(words: str, *, key: str) -> str:
    """`words` short, on one line, printable, and without the key, however it is escaped."""
    text = _unescaped(words[:_READ])
    if key:
        text = _struck(text, _unescaped(key))
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())[:_SHOWN]


def _unescaped(text: str) -> str:
    """Without the escapes of JSON, URLs and HTML, also where one stands within another."""
    for _ in range(4):
        before = text
        text = _UNICODE_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
        text = html.unescape(urllib.parse.unquote(text.replace("\\", "")))
        if text == before:
            break
    return text


def _struck(text: str, key: str) -> str:
    """`text` with *** for every piece of the key in it, whatever its case."""
    text_, key = text.lower(), key.lower()
    if len(text_) != len(text):  # a letter whose small form is two
        text = text_
    size = min(_PIECE, len(key))
    pieces = {key[i : i + size] for i in range(len(key) - size + 1)}
    kept, end = [], 0  # the end of what was looked at and kept or struck
    for i in range(len(text) - size + 1):
        if text_[i : i + size] not in pieces:
            continue
        if i > end or not kept:
            kept += [text[end:i], "***"]
        end = i + size
    return "".join(kept) + text[end:]
