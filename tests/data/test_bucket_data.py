"""Files of captions and images in a bucket are read as those of a disk."""

import io
import json

import pytest
from PIL import Image

from balcap_jax.config.sections import DataConfig
from balcap_jax.data.images import BadImageError, open_image
from balcap_jax.data.sources import open_sources
from balcap_jax.errors import UserError
from balcap_jax.storage.paths import as_path


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12), (number, 7, 3)).save(file, "PNG")
    return file.getvalue()


def put_rows(bucket, *, images: str = "", count: int = 6) -> str:
    rows = [{"image": f"{images}{n}.png", "caption": f"caption {n}"} for n in range(count)]
    bucket.put("set/rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    for n in range(count):
        bucket.put(f"set/{n}.png", png(n))
    return f"{bucket.url}/set/rows.jsonl"


def test_images_start_from_the_file_in_the_bucket(bucket):
    train, heldout = open_sources(DataConfig(path=put_rows(bucket), heldout=2), seed=0)
    assert (len(train), len(heldout)) == (4, 2)
    examples = train.part(0, 4)
    assert [e.image.getpixel((0, 0))[0] for e in (examples[i] for i in range(4))] == [0, 1, 2, 3]
    assert examples[1].reference == "caption 1"
    assert examples[1].id == "rows-000002"  # as of a file of that name on a disk


def test_images_may_lie_in_another_folder_or_be_named_whole(bucket, tmp_path):
    path = put_rows(bucket, images=f"{bucket.url}/set/")
    (tmp_path / "rows.jsonl").write_bytes(bucket.objects["set/rows.jsonl"].data)
    for data in (path, str(tmp_path / "rows.jsonl")):
        train, _ = open_sources(DataConfig(path=data, heldout=2), seed=0)
        assert train.part(3, 4)[0].image.getpixel((0, 0))[0] == 3
    put_rows(bucket)
    (tmp_path / "rows.jsonl").write_bytes(bucket.objects["set/rows.jsonl"].data)
    settings = DataConfig(path=str(tmp_path / "rows.jsonl"), images=f"{bucket.url}/set", heldout=2)
    assert open_sources(settings, seed=0)[0].part(2, 3)[0].image.getpixel((0, 0))[0] == 2


def test_a_missing_image_is_bad_and_a_bucket_that_refuses_is_not(bucket):
    path = put_rows(bucket)
    del bucket.objects["set/1.png"]
    image = as_path(bucket.url) / "set" / "1.png"
    with pytest.raises(BadImageError, match="there is no such file"):
        open_image(image)
    train, _ = open_sources(DataConfig(path=path, heldout=2), seed=0)
    assert train.bad.reasons == {str(image): "there is no such file"}
    with (
        bucket.server.failing(forbidden=r"set/2\.png"),
        pytest.raises(PermissionError, match="Storage Object User"),
    ):
        open_image(as_path(bucket.url) / "set" / "2.png")


def test_missing_files_are_a_sentence(bucket):
    with pytest.raises(UserError, match=rf"gs://{bucket.name}/none.jsonl.*cannot be read"):
        open_sources(DataConfig(path=f"{bucket.url}/none.jsonl", heldout=1), seed=0)
    path = put_rows(bucket)
    with pytest.raises(UserError, match="is not a folder"):
        open_sources(DataConfig(path=path, images=f"{bucket.url}/none", heldout=1), seed=0)
