"""What a judge that sees the image is asked of two captions, in our own words.

The forms of the answers are those of ClaimDiff-RL (arXiv:2605.20278); see `differences`.
"""

import re

from balcap_jax.rewards.llm.answer_text import BadAnswer, without_thoughts
from balcap_jax.rewards.llm.questions import DATA_RULE, Part
from balcap_jax.rewards.rivals.differences import NO_DIFFERENCES

_PLAIN = (
    "Answer in plain text in exactly this form, every name in capitals at the beginning of its "
    "line and what belongs to it on the same line, without markup or further words. Number the "
    f"differences 1, 2, 3 and so on. If there is none, write {NO_DIFFERENCES} in their place."
)
_CASES = (
    "A caption that tells less than the other about something that the image shows is wrong there, "
    "by omission. So is one that leaves open (“red or pink”, “possibly a dog”) what the image "
    "shows clearly, and one that tells the same thing again. Other words for the same fact are no "
    "difference."
)

_ERROR = "ERROR_TYPE: {type}\nERROR_DETAIL: {detail}\nSEVERITY_LEVEL: {level}"
_OPEN = _ERROR.format(
    type="<what kind, such as color_hallucination, text_omission, count_mismatch, "
    "spatial_relation_error, repetition_error; NONE for no error>",
    detail="<what is wrong, in a few words>",
    level="<1, 2, 3, or NA for no error>",
)

COMPARE = Part(
    "claim_diff",
    "You compare two captions of an image, caption A and caption B, with what the image shows.\n\n"
    f"{DATA_RULE}\n\n"
    "List every definite difference between what the two captions say of the image, one fact each. "
    "For each, look at the image: which caption does it support, A, B, both or neither? Then say "
    f"for each caption what is wrong with it there. {_CASES}\n\n"
    "Severity: 3 for the main subject, its identity, the action or something invented, 2 for "
    "details that matter, 1 for small things and style.\n\n"
    f"{_PLAIN}\n\n"
    "[DIFFERENCE 1]\n"
    "ASPECT: <what it is about>\n"
    "CAPTION_A_CLAIM: <what A says of it>\n"
    "CAPTION_B_CLAIM: <what B says of it>\n"
    "JUDGMENT: <A, B, both_wrong or both_supported>\n"
    f"CAPTION_A_ERROR:\n{_OPEN}\nCAPTION_B_ERROR:\n{_OPEN}\n\n"
    "[OVERALL_WINNER]\n"
    "<A, B or Tie: the caption that describes the image better>",
    {},
    frozenset({"image"}),
)

CHECK = Part(
    "claim_diff_hall_vs_miss",
    "You look for what caption A of an image invents and for what it leaves out. Caption B is a "
    "reference, which may be wrong itself.\n\n"
    f"{DATA_RULE}\n\n"
    "List every definite difference between the two captions, one fact each. TYPE is contradiction "
    "where A says another thing than B, extra_info where A says what B does not, missing_fact "
    "where A leaves out what B says. Then look at the image. VERIFICATION tells of what A claims: "
    "verified if the image shows it, false if the image shows that it is not so, ambiguous if it "
    "cannot be told; and missing for a missing_fact. Other words for the same fact are no "
    "difference.\n\n"
    f"{_PLAIN}\n\n"
    "[DIFFERENCE 1]\n"
    "TYPE: <contradiction, extra_info or missing_fact>\n"
    "CONTENT: <what A claims; what it leaves out, of a missing_fact>\n"
    "CATEGORY: <natural, or design for texts, layouts and logos>\n"
    "VERIFICATION: <verified, false, ambiguous or missing>\n"
    "REASON: <what the image shows>\n"
    "IS_HALLUCINATION: <true where the verification is false>",
    {},
    frozenset({"image"}),
)

HOLISTIC = Part(
    "claim_diff_holistic",
    "You rate caption A of an image with one whole number from 0 to 10.\n\n"
    f"{DATA_RULE}\n\n"
    "What counts: that all it says is true of the image, that it tells what matters there with "
    "attributes, counts, positions and texts, and that it is definite, without repetition. Caption "
    "B is a reference to compare with, neither complete nor always right: a true fact that B lacks "
    "costs nothing. Inventing is worse than leaving out. Neither length nor fine words count.\n\n"
    "Answer in plain text in exactly this form, without further words.\n\n"
    "SCORE: <0 to 10>\n"
    "RATIONALE: <one short sentence>",
    {},
    frozenset({"image"}),
)

_SCORE = re.compile(r"^[*#`>\s]*SCORE\**\s*:\s*\**\s*(\d{1,4})(?:\s*/\s*10)?[.*`]*\s*$", re.M)
_MOST = 10


def holistic_score(text: str) -> float:
    """The score in an answer to `HOLISTIC`, divided by 10.

    Raises:
      BadAnswer: there is not one score, or it is above 10.
    """
    found = _SCORE.findall(without_thoughts(text))
    if len(found) != 1 or int(found[0]) > _MOST:
        raise BadAnswer("not one score from 0 to 10")
    return int(found[0]) / _MOST
