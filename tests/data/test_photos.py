"""Rows to examples: bad images are left out or replaced, counted, and too many stop."""

import logging

import pytest
from images import empty, red, text_file, truncated, truncated_png, write_rows

from balcap_jax.data import photos
from balcap_jax.data.caption_files import CaptionFile, CaptionRows
from balcap_jax.data.examples import iterate
from balcap_jax.data.photos import Photos
from balcap_jax.errors import UserError


def missing(folder):
    return folder / "missing.png"


def mixed_file(folder):
    """Good and bad images in turn: good ids are "0", "2", "4" ..."""
    rows = []
    for index, make in enumerate((truncated, truncated_png, text_file, empty, missing)):
        red(folder, f"good{index}.png")
        rows.append({"id": 2 * index, "image": f"good{index}.png", "caption": "Red."})
        rows.append({"id": 2 * index + 1, "image": str(make(folder)), "caption": "Bad."})
    return write_rows(folder, rows)


def test_bad_images_are_skipped_up_to_the_limit(tmp_path, caplog):
    path = mixed_file(tmp_path)
    with caplog.at_level(logging.WARNING):
        source = CaptionFile(path, max_bad_images=5)
    assert [example.id for example in iterate(source)] == ["0", "2", "4", "6", "8"]
    names = [image.removeprefix(f"{tmp_path}/") for image in source.bad.reasons]
    assert names == ["truncated.jpg", "truncated.png", "text.jpg", "empty.png", "missing.png"]
    assert sum("skipped the image" in message for message in caplog.messages) == 5


def test_more_bad_images_than_the_limit_stop(tmp_path):
    path = mixed_file(tmp_path)
    with pytest.raises(UserError) as error:
        CaptionFile(path, max_bad_images=4)
    sentence = str(error.value)
    assert "5 bad images of 10, more than data.max_bad_images=4" in sentence
    assert "text.jpg (it is not an image), ..." in sentence  # the first three
    assert "empty.png" not in sentence
    assert "--data.max-bad-images 5" in sentence


def test_a_file_without_a_good_image_stops(tmp_path):
    path = write_rows(tmp_path, [{"image": "missing.png", "caption": "A cat."}])
    said = "no image that can be read.*missing.png.*start from as --data.images"
    with pytest.raises(UserError, match=said):
        CaptionFile(path, max_bad_images=1)


def test_an_image_that_goes_bad_later_stops(tmp_path):
    image = red(tmp_path)
    source = CaptionFile(write_rows(tmp_path, [{"image": "red.png", "caption": "Red."}]))
    assert len(source) == 1
    image.unlink()
    with pytest.raises(UserError, match=r"red\.png was good .* no such file"):
        source[0]


# Files that are too long to open every image at the start --------------------------------------


@pytest.fixture
def long(monkeypatch):
    """Files of more than 4 images are long; their first 2 are looked at."""
    monkeypatch.setattr(photos, "CHECKED", 4)
    monkeypatch.setattr(photos, "SAMPLED", 2)


def test_a_bad_image_gives_its_place_to_the_next_good_one(tmp_path, long, caplog):
    path = mixed_file(tmp_path)
    source = CaptionFile(path, max_bad_images=5)
    assert len(source) == 10
    assert list(source.bad.reasons) == [str(tmp_path / "truncated.jpg")]  # among the first two
    with caplog.at_level(logging.WARNING):
        ids = [example.id for example in iterate(source)]
    assert ids == ["0", "2", "2", "4", "4", "6", "6", "8", "8", "0"]
    assert len(source.bad.reasons) == 5
    assert sum("skipped the image" in message for message in caplog.messages) == 5  # each once
    # Whoever asks again, in whatever order, gets the same.
    again = CaptionFile(path, max_bad_images=5)
    assert [again[index].id for index in reversed(range(10))] == ids[::-1]


def test_too_many_bad_images_stop_when_they_are_met(tmp_path, long):
    source = CaptionFile(mixed_file(tmp_path), max_bad_images=2)
    assert [source[index].id for index in (0, 1, 3)] == ["0", "2", "4"]
    with pytest.raises(UserError, match="3 bad images so far, more than data.max_bad_images=2"):
        source[5]


def test_a_wrong_folder_is_told_at_once(tmp_path, long):
    rows = [{"image": f"{index}.png", "caption": "Red."} for index in range(10)]
    with pytest.raises(
        UserError, match="no image that can be read among the first 2.*--data.images"
    ):
        CaptionFile(write_rows(tmp_path, rows), max_bad_images=1)


def test_a_part_wraps_around_in_itself(tmp_path, long):
    source = CaptionFile(mixed_file(tmp_path), max_bad_images=5)
    train, heldout = source.part(0, 6), source.part(6, 10, verify=True)
    assert train[5].id == "0"  # not "6", which is held out
    assert [example.id for example in iterate(heldout)] == ["6", "8"]  # left out, not replaced
    assert source.bad is train.bad is heldout.bad
    for index in (-1, 6):
        with pytest.raises(IndexError):
            train[index]


def test_a_part_without_a_good_image_stops(tmp_path, long):
    source = CaptionFile(mixed_file(tmp_path), max_bad_images=5)
    with pytest.raises(UserError, match="no image that can be read"):
        source.part(3, 4)[0]


def test_images_in_memory_are_named_by_their_row(tmp_path, long):
    rows = CaptionRows(mixed_file(tmp_path))
    stored = [row._replace(image=b"no picture" if "." in row.id else b"") for row in rows]
    with pytest.raises(UserError, match="of 0 .the file is empty."):
        Photos(stored, name="folder")
