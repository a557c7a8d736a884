"""Settings to sources: splits of scenes and of files."""

import pytest

from balcap_jax.config import DataConfig
from balcap_jax.data import scenes
from balcap_jax.data.examples import Source, iterate
from balcap_jax.data.sources import Part, open_sources
from balcap_jax.errors import UserError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return scenes.export(tmp_path_factory.mktemp("scenes"), split="train", count=5)


def test_scenes_train_by_seed_and_hold_out_the_same():
    train, heldout = open_sources(DataConfig(heldout=3), seed=1)
    train2, heldout2 = open_sources(DataConfig(heldout=3), seed=2)
    assert isinstance(train, Source)
    assert train[0].scene == scenes.make_scene(1, "train", 0) != train2[0].scene
    assert [e.id for e in iterate(heldout)] == [e.id for e in iterate(heldout2)]
    assert [e.scene for e in iterate(heldout)] == [e.scene for e in iterate(heldout2)]
    assert len(heldout) == 3
    assert train[10**6].scene is not None  # as long as any run


def test_a_file_is_cut_at_its_end(file):
    train, heldout = open_sources(DataConfig(path=str(file), heldout=2), seed=0)
    ids = [f"train-0-{i:06d}" for i in range(5)]
    assert [example.id for example in iterate(train)] == ids[:3]
    assert [example.id for example in iterate(heldout)] == ids[3:]


@pytest.mark.parametrize("heldout", [5, 6])
def test_something_must_be_left_to_train_on(file, heldout):
    with pytest.raises(UserError, match=f"5 usable.*heldout={heldout}.*below 5"):
        open_sources(DataConfig(path=str(file), heldout=heldout), seed=0)


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_sources(DataConfig(path=str(tmp_path / "nowhere.jsonl"), heldout=1), seed=0)


def test_a_part_has_borders():
    part = Part(scenes.SceneSource("train", 10), 4, 6)
    assert [part[0].id, part[1].id] == ["train-0-000004", "train-0-000005"]
    for index in (-1, 2):
        with pytest.raises(IndexError):
            part[index]
