"""Texts as people see them: what looks alike is equal."""

import re
import unicodedata

_UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff]")  # soft hyphen, spaces of no width
_SPACES = re.compile("[\u00a0\u2007\u202f]")  # that no line is broken at


def visible(text: str) -> str:
    """`text` with accents in one spelling (NFC), plain spaces, and nothing that has no width."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _SPACES.sub(" ", _UNSEEN.sub("", text)))
