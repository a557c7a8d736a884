"""Which words stand beside each other: the asset as it ships, and its builder on files by hand."""

import numpy as np
import pytest

from balcap_jax.rewards.lexical import collocations
from balcap_jax.rewards.lexical.build_collocations import build
from balcap_jax.rewards.lexical.collocations import association, is_intransitive, meant


def test_known_pairs_are_meant_and_unknown_pairs_of_frequent_words_are_not():
    assert meant("little", "girl") > 0
    assert meant("soccer", "ball") > meant("soccer", "spoon")
    assert meant("on", "the") > 0 > meant("the", "is")
    assert meant("the", "is") < -1
    # Of words that are rare or new, the absence of a pair says little.
    assert -0.5 < meant("chartreuse", "zibble") < 0


def test_commas_part_and_capitals_do_not():
    assert association("The dog runs") == (meant("the", "dog"), meant("dog", "runs"))
    assert association("dog, the") == ()
    assert association("a dog’s") == (meant("a", "dog's"),)
    assert association("") == ()


@pytest.mark.parametrize(("verb", "expected"), [("arrive", True), ("hold", False), ("zib", False)])
def test_verbs_without_object(verb, expected):
    assert is_intransitive(verb) == expected


def test_builder_by_hand(tmp_path):
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text("  1 the licence\n")
    (tmp_path / "data.noun").write_text(
        '  1 the licence\n00000001 05 n 01 dog 0 000 | a brown animal; "the dog (or cat) runs"\n'
    )
    (tmp_path / "data.verb").write_text(
        "00000002 38 v 01 run 0 001 @ 00000003 v 0000 02 + 01 00 + 02 00 | move fast\n"
        "00000003 38 v 01 move 0 000 01 + 08 00 | go\n"
    )
    (tmp_path / "index.verb").write_text(
        "  1 the licence\nrun v 1 1 @ 1 0 00000002\nmove v 1 0 1 0 00000003\n"
        "run_on v 1 0 1 0 00000002\n"
    )
    (tmp_path / "frequency_dictionary_en_82_765.txt").write_text(
        "a 900\nbrown 90\nanimal 9\ndog 1\nthe 0900\nmove 50\nfast 50\n", encoding="utf-8-sig"
    )
    (tmp_path / "frequency_bigramdictionary_en_243_342.txt").write_text(
        "the animal 90\nthe unheard 90\nthe a 50\n", encoding="utf-8-sig"
    )
    arrays = build(tmp_path, tmp_path)
    words = arrays["words"].tobytes().decode().split("\n")
    keys = np.cumsum(arrays["steps"].astype(np.int64))
    pairs = {(words[k // len(words)], words[k % len(words)]) for k in keys}
    assert pairs == {
        ("a", "brown"), ("brown", "animal"), ("the", "dog"), ("the", "animal"), ("move", "fast")
    }  # fmt: skip
    # 900 of 2000: a decadic logarithm of -0.347, 5.5 steps of 1/16
    assert arrays["rarity"][words.index("a")] in (5, 6)
    assert arrays["intransitive"].tobytes().decode() == "run"


def test_the_asset_is_whole():
    places, rarity, pairs = collocations._table()
    assert len(places) == len(rarity) > 30_000
    assert len(pairs) > 300_000
    assert max(pairs) < len(places) ** 2
