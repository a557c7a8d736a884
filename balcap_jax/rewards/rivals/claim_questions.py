"""What judges are asked about the claims of a caption, in our own words: to split it, and to verify
each unit by the image.
"""

from balcap_jax.rewards.llm.answer_text import BadAnswer, parse_object
from balcap_jax.rewards.llm.prompts import clean
from balcap_jax.rewards.llm.questions import DATA_RULE, Part
from balcap_jax.rewards.rivals.marks import FORM, SCHEMA

SPLIT = Part(
    "claims_split",
    "You split the caption of an image into its primitive units of information.\n\n"
    f"{DATA_RULE}\n\n"
    "A unit is one statement that is true or false by itself: that a thing is there, one "
    "attribute, one count, one relation, one action, one text, or one remark of any other kind. "
    "Write each as a short sentence that is understood alone, with names in place of pronouns. "
    "Leave nothing out that the caption states, add nothing, and list what it repeats once.\n\n"
    'Answer with one JSON object with the field "units", a list of strings, and nothing else.',
    {
        "type": "object",
        "properties": {"units": {"type": "array", "items": {"type": "string"}}},
        "required": ["units"],
        "additionalProperties": False,
    },
    frozenset(),
)

VERIFY = Part(
    "claims_verify",
    "You verify statements on an image by looking at it.\n\n"
    f"{DATA_RULE}\n\n"
    "Mark a statement 1 only if the image shows that it is true; if it is false, or cannot be told "
    "from the image, 0. Judge each by itself.\n\n"
    f"Answer with one JSON object {FORM} that marks every statement once, and nothing else.",
    SCHEMA,
    frozenset({"image"}),
)


def units(text: str) -> tuple[str, ...]:
    """The units in an answer to `SPLIT`, each once.

    Raises:
      BadAnswer: it is no list of texts, or empty, though the caption has words.
    """
    listed = parse_object(text, ("units",)).get("units")
    if not isinstance(listed, list) or not all(isinstance(unit, str) for unit in listed):
        raise BadAnswer("no list of texts 'units'")
    found = dict.fromkeys(cleaned for unit in listed if (cleaned := clean(unit)))
    if not found:
        raise BadAnswer("no units of a caption that has words")
    return tuple(found)
