"""Tar files of WebDataset are read as WebDataset reads them, in any order, here and in buckets."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from balcap_jax.commands.check_data import check_data
from balcap_jax.config.judge import CheckConfig
from balcap_jax.config.sections import DataConfig
from balcap_jax.data import tar_files
from balcap_jax.data.images import open_image
from balcap_jax.data.rows import BadRowError
from balcap_jax.data.sources import open_sources
from balcap_jax.data.tar_files import TarRows
from balcap_jax.errors import UserError
from balcap_jax.training.fingerprint import fingerprint


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (number, 7, 3)).save(file, "PNG")
    return file.getvalue()


def write_shards(folder: Path, shards: int = 3, samples: int = 4) -> str:
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"s-{shard:02d}.tar")) as writer:
            for number in range(shard * samples, (shard + 1) * samples):
                told = {"json": {"caption": f"caption {number}", "id": f"id{number}", "k": number}}
                if number % 2:
                    told = {"txt": f"caption {number}\n"}
                writer.write({"__key__": f"dir.x/{number:04d}", "png": png(number), **told})
    return str(folder / f"s-{{00..{shards - 1:02d}}}.tar")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BALCAP_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["disk", "bucket"])
def shards(request, tmp_path):
    pattern = write_shards(tmp_path)
    if request.param == "disk":
        return pattern
    bucket = request.getfixturevalue("bucket")
    for file in tmp_path.iterdir():
        bucket.put(f"set/{file.name}", file.read_bytes())
    return f"{bucket.url}/set/s-{{00..02}}.tar"


def test_samples_are_those_of_webdataset_in_any_order(shards, tmp_path):
    urls = str(tmp_path / "s-{00..02}.tar")
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    rows = TarRows(shards)
    assert len(rows) == len(theirs) == 12
    for index in np.random.default_rng(0).permutation(12):
        row, sample = rows[int(index)], theirs[index]
        assert row.image.read() == sample["png"]
        told = json.loads(sample["json"]) if "json" in sample else {}
        assert row.reference == (told or {"caption": sample["txt"].decode().strip()})["caption"]
        assert row.id == told.get("id", f"s-{index // 4:02d}/{sample['__key__']}")
        assert row.columns.get("k") == told.get("k")
    assert open_image(rows[5].image).getpixel((3, 3)) == (5, 7, 3)
    assert str(rows[5].image) == "s-01/dir.x/0005".replace("s-01/", "s-01.tar/")


def test_a_shard_is_read_once_for_each_version(shards, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        tar_files, "_read_index", lambda shard, inner=tar_files._read_index: (
            read.append(shard.path.name), inner(shard))[1])  # fmt: skip
    TarRows(shards)
    assert sorted(read) == ["s-00.tar", "s-01.tar", "s-02.tar"]
    read.clear()
    assert TarRows(shards)[11].reference == "caption 11"
    assert read == []


def test_a_run_reads_them_and_knows_them_again(shards):
    data = DataConfig(path=shards, heldout=3)
    train, heldout = open_sources(data, seed=0)
    assert (len(train), len(heldout)) == (9, 3)
    assert train.part(2, 3)[0].image.getpixel((0, 0)) == (2, 7, 3)
    facts = fingerprint(data, train, heldout, in_memory=False)
    assert facts == fingerprint(data, *open_sources(data, seed=0), in_memory=False)
    assert any(name.startswith("names and bytes of the shards") for name in facts)


def test_images_of_a_bucket_are_read_in_ranges(bucket, tmp_path):
    write_shards(tmp_path)
    bucket.put("s-00.tar", (tmp_path / "s-00.tar").read_bytes())
    rows = TarRows(f"{bucket.url}/s-00.tar")
    bucket.server.requests.clear()
    open_image(rows[2].image)
    assert len(bucket.server.requests) == 1  # its text is here


def bad_tar(folder: Path, *members: tuple[str, bytes], mode: str = "w") -> str:
    with tarfile.open(folder / "bad.tar", mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(folder / "bad.tar")


def test_what_is_no_sample_is_passed_over(tmp_path):
    path = bad_tar(
        tmp_path, ("a.png", png(1)), ("b.txt", b"alone"), ("c.JPG", png(3)), ("c.txt", b"c"),
        ("d.seg.png", png(4)), ("d.txt", b"d"), (".hidden", b""), ("README", b""),
    )  # fmt: skip
    rows = TarRows(path)
    assert [row.reference for row in rows] == ["c"]
    assert rows.incomplete == 3


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda f: bad_tar(f, ("a.png", b"x"), ("b.txt", b"x")), "no sample of an image and"),
        (lambda f: bad_tar(f, ("a.txt", b"x"), ("a.txt", b"y")), "holds a.txt twice"),
        (lambda f: bad_tar(f, ("a.txt", b"x"), mode="w:gz"), "without compression"),
        (lambda f: str(f / "s-{00..03}.tar"), "s-00.tar does not exist; upload it"),
        (lambda f: str(f / "s-{00..03.tar"), "has a brace without its other one"),
    ],
    ids=["no sample", "twice", "compressed", "missing", "braces"],
)
def test_bad_shards_are_a_sentence(tmp_path, make, sentence):
    with pytest.raises(UserError, match=sentence):
        TarRows(make(tmp_path))


def test_a_cut_off_shard_is_a_sentence(tmp_path):
    write_shards(tmp_path, shards=1)
    path = tmp_path / "s-00.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="no whole tar file"):
        TarRows(str(path))


def test_a_bad_text_is_a_bad_row(tmp_path):
    path = bad_tar(
        tmp_path, ("a.png", png(1)), ("a.json", b"{"), ("b.png", b"x"), ("b.json", b"{}")
    )
    rows = TarRows(path)
    for index in (0, 1):
        with pytest.raises(BadRowError, match=r"bad.tar, [ab]"):
            rows[index]


def test_settings_that_say_nothing_of_them_are_refused(shards, tmp_path):
    with pytest.raises(UserError, match="data.images.*has no effect on webdataset data"):
        open_sources(DataConfig(path=shards, images=str(tmp_path), heldout=1), seed=0)


def test_data_check_reads_them(shards):
    found = check_data(CheckConfig(file=shards))
    assert found.problems == []
    assert "12" in str(found.facts)
