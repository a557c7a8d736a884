"""JSON of others: whatever the text, a value or a ValueError."""

import json

import pytest

from balcap_jax.runs.safe_json import MAX_DEPTH, loads


def nested(depth: int, opening="[", closing="]") -> str:
    return opening * depth + closing * depth


@pytest.mark.parametrize("text", [nested(MAX_DEPTH), '{"a": [1, {"b": null}]}', b"[1]", "3"])
def test_what_is_json_is_read(text):
    assert loads(text) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        nested(MAX_DEPTH + 1),
        nested(MAX_DEPTH + 1, '{"a":', "}").replace(":}", ":1}"),
        nested(600),
        nested(100_000),
        '{"a":' * 100_000,
        "[" * 100_000,
        "9" * 5000,
        "{",
        "",
        '"a\nb"',
        b"\xff\xfe\x00",
        b"\x80",
    ],
)
def test_what_is_not_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"^.{1,200}$"):
        loads(text)


def test_raw_newlines_are_read_where_they_may_be():
    assert loads('"a\nb"', strict=False) == "a\nb"


def test_wide_is_not_deep():
    wide = json.dumps([[{"a": [i]}] for i in range(10_000)])
    assert len(loads(wide)) == 10_000
