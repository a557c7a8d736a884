"""The offline judge: what it confirms, contradicts and leaves open, and that nobody can game it."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from captions import ATTACKS, CASES, NO_IMAGE, example
from told_photos import PHOTOS

from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.sections import PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.judges import check_same_judge, judge_record
from balcap_jax.rewards.lexical.evidence import Evidence, relate
from balcap_jax.rewards.lexical.judge import LexicalJudge
from balcap_jax.rewards.lexical.language import is_sound, quality
from balcap_jax.rewards.lexical.pointing import describes
from balcap_jax.rewards.lexical.statements import read
from balcap_jax.rewards.lexical.truth import chance
from balcap_jax.rewards.lexical.words import sentences
from balcap_jax.rewards.verdicts import Judge

TEXTS = [reference for photo in PHOTOS for reference in photo.references]
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
        ("A blue and white boat.", {"boat is blue", "boat is white"}),
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


def test_a_colour_of_another_thing_is_no_colour_of_this_one():
    references = ("A brown dog beside a red car.",)
    right = chances("A brown dog.", references)["attribute", "brown"]
    assert chances("A red dog.", references)["attribute", "red"] < right / 2


def test_the_sex_of_a_woman_says_nothing_of_her_child():
    references = ("A woman helps her child.",)
    boy, man = (chances(f"A {word}.", references)["thing", word] for word in ("boy", "man"))
    assert boy > 2 * man
    assert chances("A boy.", ("A girl runs.",))["thing", "boy"] == man


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


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("A dogs runs in the grass.", "A dog runs in the grass."),
        ("Two dog are on the grass.", "Two dogs are on the grass."),
        ("The men is walking on a beach.", "The men are walking on a beach."),
        ("A man are walking on a beach.", "A man is walking on a beach."),
        ("A man is sit on a bench.", "A man is sitting on a bench."),
        ("A man has sit on a bench.", "A man has sat on a bench."),
        ("A man can sits on a bench.", "A man can sit on a bench."),
        ("A man walks the dog runs a cat sits.", "A man walks, the dog runs and a cat sits."),
        ("A man sits while wears a hat.", "A man sits while he wears a hat."),
        ("Him is sitting on a bench.", "He is sitting on a bench."),
        ("They runs on the beach.", "They run on the beach."),
        ("A dog plays with he.", "A dog plays with him."),
        ("A man sits a dog.", "A man holds a dog."),
        ("The dog brown is running.", "The brown dog is running."),
        ("In front of the wooden sit there is a dog.", "In front of the wooden seat is a dog."),
        ("Men boys dogs run jump play sit stand.", "Men and boys run with dogs on a hill."),
    ],
)
def test_one_mistake_shows(wrong, right):
    assert np.mean(quality(right)) >= 0.95
    assert np.mean(quality(wrong)) < 0.8


@pytest.mark.parametrize(
    "salad",
    [
        "Him sit a dog.",
        "Those via an enough striped noon kneels amid her plank.",
        "Blue black small wearing boy looking plays runs something standing stuff sits large man.",
        "Sits a man bench on the.",
    ],
)
def test_salad_is_below_half(salad):
    assert np.mean(quality(salad)) < 0.5


def test_where_a_run_ended_on_version_1_is_no_sentence():
    salad = "A small blue sit in front striped sit in front of a field of wooden field."
    assert not is_sound(*sentences(salad))
    assert np.mean(quality(salad)) < 0.7


@pytest.mark.parametrize("as_often", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_random_words_of_the_same_parts_of_speech_are_below_half(as_often, seed):
    """As `attack_families` has none: each word of an honest caption for another of its tag, one
    like the other or as often as it stands in captions.
    """
    words = [w for text in TEXTS for s in sentences(text) for w in s.words]
    of_tag = {tag: [w.text for w in words if w.tag == tag] for tag in {w.tag for w in words}}
    if not as_often:
        of_tag = {tag: sorted(set(texts)) for tag, texts in of_tag.items()}
    rng = random.Random(seed)
    salads = [
        " ".join(rng.choice(of_tag[w.tag]) for s in sentences(text) for w in s.words)
        for text in TEXTS
    ]
    qualities = [np.mean(quality(salad.capitalize() + ".")) for salad in salads]
    assert np.mean(qualities) < 0.5


def test_honest_captions_make_sense():
    assert np.mean([np.mean(quality(text)) for text in TEXTS]) >= 0.95


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


def test_a_run_is_judged_by_one_version_of_the_rules(tmp_path):
    record = judge_record(JudgeConfig(kind="lexical"))
    assert record == {"kind": "lexical", "version": "3"}
    check_same_judge(record, record, run=tmp_path)
    # Runs of the first version did not write it down.
    with pytest.raises(UserError, match="rules of version 1, this balcap_jax has version 3"):
        check_same_judge({"kind": "lexical"}, record, run=tmp_path)


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


def test_one_tells_what_one_person_tells():
    references = (
        "A brown dog on a sunny beach.",
        "A small dog runs with a red ball.",
        "A dog plays near the blue sea.",
    )
    photo = Example("x", NO_IMAGE, PROMPT, references[0], None, references)
    own, nothing = rewards(photo, "A dog on a beach.", "A boat beside a tent.")[:, 1]
    # A little more than one person tells is all that is asked for; all three tell more than that.
    assert rewards(photo, " ".join(references))[0, 1] == 1.0
    assert 0.3 < own < 1.0
    assert nothing == 0.0


def test_what_is_said_of_an_absent_thing_does_not_raise_precision():
    for case in CASES:
        bare, more, most = rewards(
            example(case),
            "A heart is there.", "A white heart is there.", "A large striped white heart is there.",
        )[:, 0]  # fmt: skip
        assert bare >= more >= most, case.references
        assert bare < 0.5


@pytest.mark.parametrize(
    "suffix",
    ["Something is there.", "There are some things.", "Someone is there.", "An object is there.",
     "An organism is there.", "An artifact is there.", "Everybody is there."],
)  # fmt: skip
def test_words_for_anything_are_paid_nothing(suffix):
    for case in CASES:
        honest, more, alone = rewards(
            example(case), case.caption, f"{case.caption} {suffix}", suffix
        )
        np.testing.assert_array_less(more[:2], honest[:2] + 0.002)
        assert alone[0] <= 0.5
        assert alone[1] == 0.0


def test_a_wider_name_for_what_is_told_says_nothing_new():
    photo = Example("x", NO_IMAGE, PROMPT, "A girl and a poodle run.")
    (verdict,) = LexicalJudge()([photo], ["A person is near an animal. A girl with a poodle."])
    assert [a.text for a in verdict.assertions if " " not in a.text] == ["girl", "poodle"]
    (verdict,) = LexicalJudge()([photo], ["A person is near an animal."])
    assert [a.text for a in verdict.assertions if " " not in a.text] == ["person", "animal"]


def test_words_for_anything_are_no_unit():
    photo = Example("x", NO_IMAGE, PROMPT, "A dog with something red and another object.")
    assert LexicalJudge().reference_units(photo) == ("dog",)


def test_someone_in_a_reference_is_a_person():
    photo = Example("x", NO_IMAGE, PROMPT, "Someone in a red hat stands on a hill.")
    assert rewards(photo, "A person stands on a hill.")[0, 0] > 0.8
    assert "someone" in LexicalJudge().reference_units(photo)[0]


def covered(reference, caption):
    photo = Example("x", NO_IMAGE, PROMPT, reference)
    (verdict,) = LexicalJudge()([photo], [caption])
    units = LexicalJudge().reference_units(photo)
    return {unit for unit, told in zip(units, verdict.covered, strict=True) if told}


def test_an_attribute_counts_of_what_is_meant_alone():
    reference = "A brown dog sits beside a red car."
    assert "dog is brown" in covered(reference, "The dog is brown.")
    assert "dog is brown" in covered(reference, "A brown animal is outside.")
    assert "dog is brown" not in covered(reference, "A brown car is beside a dog.")
    assert "dog is brown" not in covered(reference, "Something brown is beside a dog.")
    assert "dog is brown" not in covered(reference, "The dog is not brown.")


def test_a_thing_that_another_is_named_by_counts_where_it_is_told():
    reference = "A woman wears a banana necklace in a city park."
    assert "necklace is banana" in covered(reference, "A woman wears many bananas.")
    assert "necklace is banana" not in covered(reference, "A woman wears a necklace.")


def test_kinds_of_one_thing_are_not_its_names():
    assert covered("A plate of food.", "A plate of food with meat, broccoli and potatoes.")
    assert covered("A dog runs.", "A dog runs.")
    assert not covered("A dog runs.", "A dog, a creature and an animal run.")


def test_an_action_counts_of_who_is_meant_alone():
    reference = "A boy runs past a sleeping cat."
    assert "boy runs" in covered(reference, "A child is running.")
    assert "boy runs" not in covered(reference, "A cat runs and a boy is there.")
    assert "boy runs" not in covered(reference, "A boy does not run.")
    surfer = covered("A surfer rides a wave.", "A man rides a wave.")
    assert any(unit.startswith("surfer rides") for unit in surfer)
    assert not covered("A girl jumps.", "A man jumps.")


def test_what_is_spoken_against_covers_nothing():
    reference = "A child runs. The girl is running."
    assert "child" in covered(reference, "A girl runs.")
    assert not covered(reference, "A boy runs.")


def test_a_posture_that_is_spoken_against_is_less_likely_than_an_unknown_one():
    sat, unknown = (
        chances("A man sits.", (text,))["action", "sit"] for text in ("A man stands.", "A man.")
    )
    assert sat < unknown


def test_one_thing_in_many_ways():
    assert "boy is red" in covered("A red boy waits.", "A boy wears a red shirt.")
    assert "man skis" in covered("A man skis.", "A man is on skis.")


def test_what_lies_beyond_the_references_brings_no_recall():
    references = ("A dog runs on grass.", "A dog plays with a ball.", "A dog near a tree.")
    photo = Example("x", NO_IMAGE, PROMPT, references[0], None, references)
    own, general, guess = rewards(
        photo, "A dog runs.", "A dog runs. An animal is there.", "A dog runs near a boat."
    )[:, 1]
    assert general == own  # another name for what is known is nothing new
    assert 0 < guess < own


def test_recall_is_seldom_full_where_there_are_several_references():
    recalls = [
        rewards(photo, reference)[0, 1] for photo in PHOTOS for reference in photo.references
    ]
    assert np.mean(np.array(recalls) >= 1) <= 0.2


def test_who_names_many_things_hits_some_by_luck():
    photo = example(CASES[0])
    own = "A dog jumps in a park."
    sure, lucky = rewards(photo, own, f"{own} A boat, a piano and a zebra are near a lamp.")
    assert sure[1] > lucky[1] > 0


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
