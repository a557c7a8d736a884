"""What is read of a file for its digest."""

import pytest

from balcap_jax.runs import contents
from balcap_jax.runs.contents import pieces


@pytest.mark.parametrize("size", [0, 1, 10, 35, 40])
def test_a_file_is_read_whole(size, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "PIECE", 10)
    text = bytes(range(size))
    (tmp_path / "file").write_bytes(text)
    assert b"".join(pieces(tmp_path / "file", most=4)) == text
    assert b"".join(pieces(tmp_path / "file", most=1, whole=size)) == text


def test_a_large_one_here_and_there_with_both_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "PIECE", 10)
    (tmp_path / "file").write_bytes(bytes(range(100)))
    found = list(pieces(tmp_path / "file", most=3))
    assert found == [bytes(range(start, start + 10)) for start in (0, 45, 90)]
