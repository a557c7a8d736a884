"""What examples/real_parts/measure_fluency.py prints, beside values computed here."""

import measure_fluency
import numpy as np
import pytest

from balcap_jax.rewards.lexical.language import quality

TRAIN = [{"captions": [f"A {c} dog runs on the grass .", f"Two {c} birds sit in a tree ."]}
         for c in ("red", "brown", "black", "white", "small", "big", "old", "wet", "grey", "young",
                   "tall")]  # fmt: skip
VAL = [{"captions": ["A brown dog sits on the grass ."]}, {"captions": ["A bird runs in a tree ."]}]


def by_length(texts):
    """A model that finds long words unlikely."""
    return [-np.array([len(word) for word in text.split()], float) for text in texts]


def test_the_table_has_the_means_of_each_way():
    table = measure_fluency.measure(by_length, TRAIN, VAL, count=2)
    columns = {str(c.header): list(c.cells) for c in table.columns}
    at = dict(zip(columns["captions"], zip(*list(columns.values())[1:], strict=True), strict=True))
    rules = np.mean([np.mean(quality(row["captions"][0])) for row in VAL])
    assert float(at["people's"][0]) == pytest.approx(rules, abs=0.006)
    # The three times said is no likelier, and what is long is less likely than level.
    assert at["people's, three times"][1] <= at["people's"][1]
    for name, (_, model, both) in at.items():
        assert 0 <= float(both) <= float(model) + 0.006, name
    assert {"in random order", "one word by chance"} < set(at)
    spoiled = measure_fluency.spoiled(["A dog runs ."], ["A cat sits ."])
    assert sorted(spoiled["in random order"][0].split()) == [".", "A", "dog", "runs"]
    assert len(spoiled["all words by chance, same parts of speech"][0].split()) == 3
