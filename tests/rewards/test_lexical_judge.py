"""The offline judge: what it confirms, contradicts and leaves open, and that nobody can game it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from captions import ATTACKS, CASES, NO_IMAGE, example

from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.lexical.evidence import Evidence, relate
from balcap_jax.rewards.lexical.judge import LexicalJudge
from balcap_jax.rewards.lexical.language import quality
from balcap_jax.rewards.lexical.pointing import describes
from balcap_jax.rewards.lexical.statements import read
from balcap_jax.rewards.lexical.truth import chance
from balcap_jax.rewards.verdicts import Judge

NAMES = ("precision", "recall", "linguistic")
DATA = Path(os.environ.get("BALCAP_DATA", Path(__file__).parents[2] / "../shared/data"))


def rewards(case_example, *captions):
    return rewards_of(LexicalJudge()([case_example] * len(captions), captions), NAMES)


def score(case_example, caption):
    return float(harmonic_mean(rewards(case_example, caption)[0]))


def statements(text):
    return [s for reading in read(text) for s in reading.statements]


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A young boy wears a blue tie.", {"boy", "boy is young", "tie is blue"}),
        ("Two dogs run through tall grass.", {"2 dog", "dog run", "grass is tall"}),
        ("A group of people stand on a beach.", {"many person", "person stand"}),
        ("The clock is on a street corner.", {"clock on street corner"}),
        ("The clock is large.", {"clock is large"}),
        ("A table topped with plates.", {"table with plate"}),
        ("The boy isn't wearing a hat.", {"boy not wear hat"}),
        ("There are shorts.", {"short"}),
        ("A bear walks in a field.", {"bear walk", "bear in field"}),
        ("A man skis down a snow covered slope.", {"snow", "slope"}),
        ("A man looks at the camera.", {"man look"}),
    ],
)
def test_statements(text, expected):
    found = {
        " ".join(filter(None, (
            s.value if s.kind == "number" else s.head,
            "is" if s.kind == "attribute" else "",
            "not" if s.negated else "",
            s.head if s.kind == "number" else s.value,
            s.other,
        )))
        for s in statements(text)
    }  # fmt: skip
    assert expected <= found


def test_the_picture_itself_is_no_thing():
    heads = {s.head for s in statements("A photo of a dog in the background of the image.")}
    assert heads == {"dog"}


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("dog", "dog", "same"),
        ("person", "woman", "general"),
        ("animal", "dog", "general"),
        ("poodle", "dog", "specific"),
        ("skier", "ski", "derived"),
        ("clock tower", "tower", "part"),
        ("zebra", "giraffe", "none"),
        ("person", "cat", "none"),  # WordNet's gossip is a cat, too
    ],
)
def test_how_words_relate(word, known, expected):
    assert relate(word, known) == expected


# Truth --------------------------------------------------------------------------------------------


def chances(caption, references, labels=()):
    evidence = Evidence(references, labels)
    return {(s.kind, s.value or s.head): chance(s, evidence) for s in statements(caption)}


def test_confirmed_above_open_above_contradicted():
    references = ("A man in a red shirt holds a bat.", "A man holding a baseball bat.")
    found = chances("A man and a zebra.", references)
    assert found["thing", "man"] > 0.9 > 0.5 > found["thing", "zebra"]
    assert chances("A woman.", references)["thing", "woman"] < 0.2
    red = chances("A red shirt.", references)["attribute", "red"]
    open_ = chances("A striped shirt.", references)["attribute", "striped"]
    blue = chances("A blue shirt.", references)["attribute", "blue"]
    assert red > open_ > blue


def test_two_witnesses_are_better_than_one():
    one = chances("A dog.", ("A dog runs.", "A field of grass."))["thing", "dog"]
    two = chances("A dog.", ("A dog runs.", "A dog in grass."))["thing", "dog"]
    assert two > one > 0.8


def test_boxes_confirm_count_and_deny():
    references = ("Something is on the street.",)
    labels = ("car", "car", "dog")
    found = chances("Two cars and a bicycle.", references, labels)
    assert found["thing", "car"] > 0.8
    assert found["number", "2"] == found["thing", "car"]
    # All labels are COCO's, whose classes are all drawn: no box, no bicycle. Without boxes: open.
    assert found["thing", "bicycle"] < chances("A bicycle.", references)["thing", "bicycle"]
    assert chances("Five cars.", references, labels)["number", "5"] < 0.5


def test_negation_turns_the_chance():
    references = ("A shirtless man without a hat.", "A man on a beach.")
    assert chances("There is no hat.", references)["thing", "hat"] > 0.9
    assert chances("There is no man.", references)["thing", "man"] < 0.2


# Pointing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "analysis"),
    [
        ("A red car is parked on the left.", "This adds depth to the scene."),
        ("The boy is wearing a green shirt.", "The boy is likely enjoying the experience."),
        ("Two plates are on the table.", "It suggests a relaxed atmosphere."),
        ("A dog sits beside a bench.", "Umbrellas are important because it might rain."),
    ],
)
def test_descriptions_point_and_analyses_do_not(description, analysis):
    assert describes(description) > 0.5 > describes(analysis)


# Language -----------------------------------------------------------------------------------------


def test_quality_of_good_sentences_is_high_and_of_nothing_is_zero():
    for case in CASES:
        assert min(quality(case.caption)) > 0.9
        assert min(quality(case.references[0])) > 0.9
    assert quality("") == quality(" \n.") == (0, 0, 0)


def test_order_and_repetition_matter():
    caption = CASES[0].caption
    salad = " ".join(sorted(caption.replace(".", "").split()))
    assert quality(salad).fluency < quality(caption).fluency - 0.3
    assert quality(f"{caption} {caption}").coherency < quality(caption).coherency - 0.5


# Verdicts -----------------------------------------------------------------------------------------


def test_it_is_a_judge_and_a_pure_function():
    assert isinstance(LexicalJudge(), Judge)
    photos = [example(case, i) for i, case in enumerate(CASES)]
    captions = [case.caption for case in CASES]
    first = LexicalJudge()(photos, captions)
    again = LexicalJudge()(photos[::-1], captions[::-1])[::-1]
    assert first == again
    for photo, verdict in zip(photos, first, strict=True):
        units = LexicalJudge().reference_units(photo)
        assert len(units) == len(verdict.covered) == len(verdict.unit_weights)


def test_no_reference_is_no_signal():
    photo = Example("x", NO_IMAGE, PROMPT, "  ")
    assert LexicalJudge()([photo], ["A dog."]) == [None]
    with pytest.raises(UserError, match="has no reference"):
        LexicalJudge().reference_units(photo)


def test_stored_units_take_the_place_of_references():
    photo = example(CASES[0])._replace(units=("a brown dog", "a blue bicycle", "the dog jumps"))
    (verdict,) = LexicalJudge()([photo], ["A brown dog jumps."])
    assert LexicalJudge().reference_units(photo) == photo.units
    assert verdict.covered == (True, False, True)


def test_a_reference_covers_itself_and_nothing_covers_nothing():
    photo = Example("x", NO_IMAGE, PROMPT, CASES[0].references[0])
    found = rewards(photo, CASES[0].references[0], "")
    assert found[0, 0] > 0.8
    assert found[0, 1] == 1.0
    assert found[1].tolist() == [0, 0, 0]


def test_one_tells_what_one_person_tells_and_a_likely_detail_counts():
    references = (
        "A brown dog on a sunny beach.",
        "A small dog runs with a red ball.",
        "A dog plays near the blue sea.",
    )
    photo = Example("x", NO_IMAGE, PROMPT, references[0], None, references)
    captions = ("A dog on a beach.", "A dog on a beach beside a boat.", "A boat beside a tent.")
    own, more, nothing = rewards(photo, *captions)[:, 1]
    # As much as one person tells is all that is asked for; all three tell more than one.
    assert rewards(photo, " ".join(references))[0, 1] == 1.0
    assert 0.3 < own < more <= 1.0
    # Who covers nothing gains nothing by what may be there.
    assert nothing == 0.0
    verdict = LexicalJudge()([photo], [captions[1]])[0]
    assert verdict.covered[-1]
    assert LexicalJudge().reference_units(photo)[-1].startswith("what no")


def test_what_is_said_of_a_thing_counts_as_far_as_it_is_there():
    photo = Example("x", NO_IMAGE, PROMPT, "A dog runs on grass.")
    (verdict,) = LexicalJudge()([photo], ["A striped zebra stands."])
    thing, *about = verdict.assertions
    assert about
    assert all(a.weight == thing.chance and not a.verified for a in about)


def test_wrong_captions_score_below_right_ones():
    for i, case in enumerate(CASES):
        other = CASES[(i + 1) % len(CASES)]
        right, wrong = rewards(example(case, i), case.caption, other.caption)
        assert right[0] > wrong[0] + 0.2
        assert right[1] > wrong[1] + 0.3


# Gaming -------------------------------------------------------------------------------------------


def test_there_are_enough_attacks():
    assert len(ATTACKS) >= 30


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_attack_scores_above_the_honest_caption(attack):
    for i, case in enumerate(CASES):
        photo = example(case, i)
        assert score(photo, ATTACKS[attack](case.caption)) <= score(photo, case.caption), i


def test_attacks_on_real_captions():
    path = DATA / "flickr8k" / "val.jsonl"
    if not path.exists():
        pytest.skip(f"needs the real captions of {path.name}; set BALCAP_DATA to their folder")
    rows = [json.loads(line)["captions"] for line in path.read_text().splitlines()[:60]]
    gains = {name: [] for name in ATTACKS}
    for i, (*references, last) in enumerate(rows):
        photo = Example(str(i), NO_IMAGE, PROMPT, references[0], None, tuple(references))
        caption = last.replace(" .", "").strip()
        caption = caption[0].upper() + caption[1:] + "."
        honest = score(photo, caption)
        # People's captions differ, and some share nothing with the other four.
        if honest < 0.2:
            continue
        for name, attack in ATTACKS.items():
            try:
                attacked = attack(caption)
            except IndexError:  # no noun to attack with
                continue
            gains[name].append(score(photo, attacked) - honest)
    for name, gain in gains.items():
        assert len(gain) > 40
        assert np.mean(gain) < 0, name
        assert np.mean(np.array(gain) > 0) <= 0.25, name
