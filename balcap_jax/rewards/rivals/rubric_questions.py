"""What models are asked about rubrics, in our own words: to write one, and to judge by it.

RubiCap's own prompts are not published.
"""

from collections.abc import Sequence

from balcap_jax.rewards.llm.answer_text import BadAnswer, parse_object, without_thoughts
from balcap_jax.rewards.llm.prompts import clean
from balcap_jax.rewards.llm.questions import DATA_RULE, Part
from balcap_jax.rewards.rivals.marks import FORM, SCHEMA
from balcap_jax.rewards.rivals.rubric_files import SEVERITIES
from balcap_jax.rewards.rivals.rubrics import Criterion

VERSION = "1"  # of the texts below, beside every rubric that a model wrote

JUDGE = Part(
    "rubric",
    "You judge the caption of an image by a list of criteria, from its words alone: you do not see "
    "the image, and the criteria tell what is true of it.\n\n"
    f"{DATA_RULE}\n\n"
    "A criterion is met (1) only if the words of the caption meet it in full, whatever words they "
    "are; one that is met in part, or only likely, is not met (0).\n\n"
    f"Answer with one JSON object {FORM} that marks every criterion once, and nothing else.",
    SCHEMA,
    frozenset(),
)

WRITE = Part(
    "rubric_writer",
    "You write criteria by which later captions of an image are judged.\n\n"
    f"{DATA_RULE}\n\n"
    "You see the image, the caption of a student and those of several teachers, each with an id. "
    "Compare the student's caption with the image and with what the teachers agree on, and list "
    "what it fails: what it gets wrong, invents or leaves out. Make each such failure one "
    "criterion: a short sentence on a caption that is either true or false of it, can be decided "
    "from its words without the image, and is about one fact, such as “Says that the bus is "
    "yellow.” or “Names no person on the roof.”. Make none for what the student gets right.\n"
    'Give "severity": 3 for the main subject, what happens, or something invented; 2 for details '
    'that matter; 1 for the rest. Give "teachers": the ids of the teachers whose captions meet the '
    "criterion.\n\n"
    'Answer with one JSON object {"criteria": [{"text": TEXT, "severity": 3, "teachers": ["t1", '
    '"t2"]}]}, the list empty where the student fails nothing, and nothing else.',
    {
        "type": "object",
        "properties": {
            "criteria": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "text": {"type": "string"},
                        "severity": {"type": "integer", "enum": list(SEVERITIES)},
                        "teachers": {"type": "array", "items": {"type": "string"}},
                    },
                    "required": ["text", "severity", "teachers"],
                    "additionalProperties": False,
                },
            }
        },
        "required": ["criteria"],
        "additionalProperties": False,
    },
    frozenset({"image"}),
)

TEACH = Part(
    "rubric_teacher",
    "Describe the image in detail, in plain prose: what it shows, with attributes, counts, "
    "positions, actions and legible texts. Say nothing that it does not show. Answer with the "
    "description alone.",
    {},
    frozenset({"image"}),
)


def teacher_id(place: int) -> str:
    """The id of the teacher at `place`, from 0, in the request to the writer."""
    return f"t{place + 1}"


def agreed_criteria(text: str, *, teachers: int) -> tuple[Criterion, ...]:
    """The criteria in an answer to `WRITE` that at least half of the teachers' captions meet.

    Raises:
      BadAnswer: a criterion breaks the form, or names a teacher that there is none of.
    """
    listed = parse_object(text, ("criteria",)).get("criteria")
    if not isinstance(listed, list):
        raise BadAnswer("no list 'criteria'")
    ids = {teacher_id(place) for place in range(teachers)}
    kept: dict[str, Criterion] = {}
    for item in listed:
        criterion, by = _read(item)
        if not by <= ids:
            raise BadAnswer("a teacher that does not exist")
        if 2 * len(by) >= teachers:
            kept.setdefault(criterion.text, criterion)
    return tuple(kept.values())


def _read(item: object) -> tuple[Criterion, set[str]]:
    if not isinstance(item, dict):
        raise BadAnswer("a criterion that is no object")
    text, severity, by = item.get("text"), item.get("severity"), item.get("teachers")
    if not isinstance(text, str) or not clean(text):
        raise BadAnswer("a criterion without a text")
    if type(severity) is not int or severity not in SEVERITIES:
        raise BadAnswer("a severity that is not 1, 2 or 3")
    if not isinstance(by, list) or not all(isinstance(id_, str) for id_ in by):
        raise BadAnswer("teachers that are no list of ids")
    return Criterion(clean(text), float(severity)), {id_.strip().lower() for id_ in by}


def description(text: str) -> str:
    """The caption in an answer to `TEACH`.

    Raises:
      BadAnswer: it is empty.
    """
    found = clean(without_thoughts(text))
    if not found:
        raise BadAnswer("an empty description")
    return found


def told(student: str, teachers: Sequence[str]) -> dict[str, object]:
    """What the writer is told, beside the image."""
    listed = [
        {"id": teacher_id(place), "caption": clean(caption)}
        for place, caption in enumerate(teachers)
    ]
    return {"student": clean(student), "teachers": listed}
