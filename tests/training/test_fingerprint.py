"""Sizes of images decide which photos share a batch, so a resumed run must find them again."""

import pytest
from images import empty, red, write_rows

from balcap_jax.config.sections import DataConfig
from balcap_jax.data.caption_files import CaptionFile
from balcap_jax.training.fingerprint import INVALID, UNSIZED, differences, fingerprint

SIZES = "sizes of training images"


@pytest.fixture
def path(tmp_path):
    names = [red(tmp_path, f"{i}.png", size=(16 + i, 12)).name for i in range(5)]
    return write_rows(tmp_path, [{"id": n, "image": n, "caption": "Red."} for n in names])


def facts(path, *, group_by_length=32, **options):
    data = DataConfig(path=str(path), group_by_length=group_by_length)
    return fingerprint(data, CaptionFile(path, max_bad_images=2), [], **options)


def test_an_image_of_another_size_is_told(path):
    before = facts(path)
    assert differences(before, facts(path)) == []
    red(path.parent, "3.png", size=(30, 12))
    assert differences(before, facts(path)) == [SIZES]
    plain = facts(path, group_by_length=0)  # as an older run, too
    assert SIZES not in plain
    red(path.parent, "3.png", size=(31, 12))
    assert differences(plain, facts(path, group_by_length=0)) == []


def test_an_image_that_was_bad_may_be_fixed(path, monkeypatch):
    from balcap_jax.data import photos

    monkeypatch.setattr(photos, "CHECKED", 2)  # it is found when its turn comes
    monkeypatch.setattr(photos, "SAMPLED", 2)
    empty(path.parent).rename(path.parent / "4.png")
    before = facts(path)
    assert (before[UNSIZED], before[INVALID]) == ([4], [])
    red(path.parent, "4.png")
    assert differences(before, facts(path)) == [SIZES]
    after = facts(path, unsized=before[UNSIZED])
    assert differences(before, after) == []
    assert after[UNSIZED] == [4]
