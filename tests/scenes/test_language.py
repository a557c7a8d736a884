"""Sentences and lexemes: nothing of a caption gets lost, and phrases mean what the lexicon says."""

import random

import pytest

from balcap_jax.scenes import language
from balcap_jax.scenes.language import sentences, tags, words_in


def lexemes(text):
    return [(lexeme.tag, lexeme.value) for s in sentences(text) for lexeme in s.lexemes]


def test_longest_phrases_win():
    assert lexemes("to the left of the red discs on the left side.") == [
        ("RELATION", "left"),
        ("THE", None),
        ("COLOUR", "red"),
        ("SHAPES", "circle"),
        ("PLACE", (None, 0)),
    ]
    # "on the right" is a place, "on" alone is not.
    assert [tag for tag, _ in lexemes("on the heart")] == ["on", "THE", "SHAPE"]


@pytest.mark.parametrize(
    ("table", "tags_"),
    [
        (language.COLOUR_WORDS, {"COLOUR"}),
        (language.SIZE_WORDS, {"SIZE"}),
        (language.TEXTURE_WORDS, {"TEXTURE"}),
        (language.TEXTURE_PHRASES, {"TEXTURED"}),
        (language.PLACE_PHRASES, {"PLACE"}),
        (language.RELATION_PHRASES, {"RELATION", "RELATES"}),
        (language.BACKGROUND_PHRASES, {"BACKGROUND", "BACKGROUND_IS"}),
    ],
)
def test_every_phrase_is_one_lexeme_with_its_value(table, tags_):
    for value, phrases in table.items():
        for phrase in phrases:
            [(tag, read)] = lexemes(phrase)
            assert tag in tags_
            assert read == value


def test_numbers_and_pronouns():
    assert lexemes("a two several") == [("A", 1), ("NUMBER", 2), ("NUMBER", None)]
    assert lexemes("It they") == [("IT", 1), ("IT", 2)]
    assert lexemes("another one") == [("A", 1), ("A", 1)]


def test_unknown_words_stay_as_they_are():
    [sentence] = sentences("A glorp {red} 🦄 7 naïve.")
    unknown = [lexeme.text for lexeme in sentence.lexemes if lexeme.tag == "UNKNOWN"]
    assert unknown == ["glorp", "{", "}", "🦄", "7", "na", "ï", "ve"]


def test_ends_of_sentences():
    found = sentences("A circle is red. The star is blue! a heart")
    assert [s.closed for s in found] == [True, False, False]
    assert [s.capital for s in found] == [True, True, False]
    assert tags(found[0]) == ("<S>", "A", "SHAPE", "is", "COLOUR", ".")
    assert tags(found[2]) == ("<s>", "A", "SHAPE", "</s>")


def test_a_mark_that_ends_nothing_is_not_understood():
    assert [tag for tag, _ in lexemes("A circle is red..")] == [
        *("A", "SHAPE", "is", "COLOUR"),
        "UNKNOWN",
    ]


def test_capitals_belong_to_beginnings_and_signs():
    assert sentences('A sign reads "OPEN".')[0].capital
    assert not sentences("A Sign reads.")[0].capital
    assert not sentences("THE sign reads.")[0].capital


@pytest.mark.parametrize("text", ["", "   ", "\n\t "])
def test_nothing_is_no_sentence(text):
    assert sentences(text) == []
    assert words_in(text) == 0


def test_no_letter_gets_lost():
    rng = random.Random(0)
    alphabet = "ab cR.,!\"'-é🦄\n\0<{"
    for _ in range(300):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(40)))
        found = sentences(text)
        kept = sum(len(x.text.replace(" ", "")) for s in found for x in s.lexemes)
        ends = sum(text.count(mark) for mark in ".!?")
        total = len("".join(text.split()))
        assert total - ends <= kept <= total


def test_words_are_counted_as_the_method_does():
    assert words_in('A sign  reads "OPEN",\nred.') == 5
