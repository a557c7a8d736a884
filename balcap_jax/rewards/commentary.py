"""Captions that talk of themselves: praise for the caption, and remarks in place of what is seen.

Judges have been won over by captions that call themselves accurate. These are counted in the
metrics, whatever the judge says, so that a drift is seen: a share that rises is a warning.
"""

import re

from balcap_jax.data.visible_text import visible

_PRAISE = r"(accurate|precise|detailed|thorough|comprehensive|complete|faithful|correct|verified)"
_CAPTION = r"(caption|description|answer|response|summary|account|text above)"
_SELF_PRAISE = re.compile(
    rf"""
      \b(this|the|my|above|following|provided)\s+{_CAPTION}\s+
      (is|was|provides|offers|gives|captures|covers|contains|accurately|fully|correctly|faithfully)
    | \b{_PRAISE}(ly)?\s+(and\s+\w+\s+)?{_CAPTION}\b
    | \b(all|every|each)\s+(of\s+)?(the\s+)?
      (assertions?|statements?|claims?|details?|facts?|units?)\s+
      (\w+\s+){{0,4}}({_PRAISE}|true|covered)\b
    | \b(highest|full|perfect|top|maximum)\s+(score|marks?|rating|points)\b
    | \b(ignore|disregard|forget)\s+(\w+\s+){{0,3}}(above|previous|prior|earlier|instructions?)\b
    | \b(as|dear|note\s+to(\s+the)?)\s+(an?\s+)?(judge|evaluator|grader|ai|language\s+model)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)

_SUBJECT = (
    r"(image|picture|photo(graph)?|scene|composition|arrangement|contrast|setting|atmosphere|"
    r"colou?rs|placement|elements?|details?|lighting|it|this|which)"
)
_MEANS = (
    r"(creates?|conveys?|evokes?|suggests?|invites?|adds?|gives?|draws?|contributes?|enhances?|"
    r"reflects?|captures?|emphasi[sz]es?|highlights?|feels?|has|creating|conveying|evoking|"
    r"adding|giving|inviting|suggesting|contributing|enhancing)"
)
_ABSTRACT = (
    r"(sense|feeling|mood|atmosphere|ambiance|ambience|depth|harmony|balance|attention|essence|"
    r"quality|style|beauty|story|narrative|tone|vibe|viewers?|observer|impression|interest|"
    r"calm|serenity|tranquil\w*)"
)
_COMMENTARY = re.compile(
    rf"""
      \b{_SUBJECT}\b[^.!?]{{0,60}}\b{_MEANS}\b[^.!?]{{0,40}}\b{_ABSTRACT}\b
    | \b{_MEANS}\b[^.!?]{{0,40}}\b{_ABSTRACT}\s+(of|to|for|in)\b
    | \b(overall|in\s+(summary|conclusion|essence)|it\s+(is|should\s+be)\s+(worth|noted?))\b
    | \b(feels?|seems?|looks?)\s+(\w+\s+){{0,2}}(calm|harmonious|peaceful|serene|lively|inviting)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def praises_itself(caption: str) -> bool:
    """Whether the caption speaks of its own quality, or to whoever judges it."""
    return _SELF_PRAISE.search(visible(caption)) is not None


def comments(caption: str) -> bool:
    """Whether the caption says what the image means or feels like, in place of what it shows."""
    return _COMMENTARY.search(visible(caption)) is not None
