"""Rows of large files by their place, however the pieces that are read fall."""

import json

import pytest

from balcap_jax.data import row_index
from balcap_jax.data.row_index import RowTexts, index_lines, json_items
from balcap_jax.errors import UserError

PIECES = [1, 2, 3, 7, 64, 1 << 24]
BOM = "\ufeff"


@pytest.fixture(params=PIECES)
def pieces(request, monkeypatch):
    monkeypatch.setattr(row_index, "_PIECE", request.param)


def written(folder, text):
    path = folder / "data.json"
    path.write_bytes(text.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "{1}\n{22}\n{333}\n",
        "{1}\n{22}\n{333}",
        "\n\n{1}\r\n \t\n\r\n{22}\r\n\n[3] \n  {4}\n\n",
        BOM + "{\u00e9}\n" + "{\u65e5\u672c}",
        BOM + "\n {\u2028}",
        "",
        "\n \n",
    ],
)
def test_lines_are_those_of_python(tmp_path, pieces, text):
    path = written(tmp_path, text)
    texts = RowTexts(path, index_lines(path))
    lines = text.removeprefix(BOM).split("\n")
    wanted = [(i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    found = [(int(texts.index.numbers[i]), texts[i]) for i in range(len(texts))]
    assert found == wanted


VALUES = [
    {"a": [1, {"b": "]}, [{"}], "c": '\u00e9\u65e5 \\ " \u2028'},
    "plain",
    "",
    12345,
    -1.5e10,
    None,
    True,
    [],
    {},
    [[["x"]]],
    7,
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_elements_of_an_array(tmp_path, pieces, indent, ascii_only):
    text = BOM + " " + json.dumps(VALUES, indent=indent, ensure_ascii=ascii_only) + "\n"
    path = written(tmp_path, text)
    items = list(json_items(path))
    assert [item.value for item in items] == VALUES
    data = path.read_bytes()
    assert [json.loads(data[item.start : item.stop]) for item in items] == VALUES
    assert {item.key for item in items} == {None}


def test_the_arrays_and_entries_of_an_object(tmp_path, pieces):
    values = {"info": {"year": 2017}, "images": VALUES, "none": [], "n": 12, "\u00e9": [1]}
    path = written(tmp_path, json.dumps(values, ensure_ascii=False))
    found = [(item.key, item.value) for item in json_items(path)]
    images = [("images", value) for value in VALUES]
    assert found == [("info", {"year": 2017}), *images, ("n", 12), ("\u00e9", 1)]


@pytest.mark.parametrize("text", ["[]", " [ ] ", "{}", BOM + "{ }"])
def test_nothing_is_in_what_is_empty(tmp_path, pieces, text):
    assert list(json_items(written(tmp_path, text))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither [ nor {"),
        ("7", "neither [ nor {"),
        ("[1, 2", "] is missing at byte 5"),
        ("[1 2]", "] is missing at byte 3"),
        ('[1, "ab', "Unterminated string"),
        ("[1, {'a': 2}]", "double quotes at byte 5"),
        ('{"a" [1]}', ": is missing at byte 5"),
        ('{"a": [1] "b": 2}', "} is missing at byte 10"),
        ("[1, ]", "Expecting value at byte 4"),
        ("[" + '{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_json_says_where(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        list(json_items(path))
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_mistake_far_from_the_end_is_told_without_reading_on(tmp_path, monkeypatch):
    monkeypatch.setattr(row_index, "_PIECE", 100)
    monkeypatch.setattr(row_index, "_CUT_OFF", 50)
    path = written(tmp_path, "[1, nonsense" + " " * 10_000 + "]")
    reader = json_items(path)
    assert next(reader).value == 1
    with pytest.raises(UserError, match="Expecting value at byte 4"):
        next(reader)


def test_text_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "data.json"
    path.write_bytes('["\u00e9"]'.encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text .* at byte 2"):
        list(json_items(path))
    path.write_bytes("{\u00e9}".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text .* at byte 1"):
        RowTexts(path, index_lines(path))[0]
