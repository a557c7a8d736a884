"""`balcap bench images`: what is counted is what a run would compute."""

import json

import numpy as np
import pytest
import tiny_hf
from images import write_rows
from PIL import Image

from balcap_jax.bench import images
from balcap_jax.bench.images import Sizes, count_batches
from balcap_jax.cli import main as cli
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.models.padding import sizes_of

SMALL = ["--count", "24", "--batch", "4", "--steps", "12", "--measured", "0", "--side", "56"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "PHONE", (800, 600))
    for i, size in enumerate([(50, 40), (40, 50), (60, 40)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.jpg")
    return write_rows(tmp_path, [{"image": f"{i}.jpg", "caption": "a"} for i in range(3)])


def test_groups_leave_less_padding(photos, capsys, monkeypatch):
    assert cli.main(["bench", "images", str(photos), "--phones", "0.2", *SMALL, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    plain, grouped = report["batches"][:2]
    assert (plain["window"], grouped["window"]) == (0, 32)
    for name in ("update_padded", "prefix", "patches"):
        assert 0 < plain[name] < grouped[name] < 1
    assert report["bytes"]["before"] == 4 * (56 // 14) ** 2 * 3 * 2 * 14**2 * 4
    assert report["bytes"]["now"] == 4 * (16 * 3 * 14**2 + 3 * 256 * 4)
    monkeypatch.setattr(images, "run", lambda sizes: report | {"images_per_second": {"1 way": 2}})
    assert cli.main(["bench", "images", str(photos), *SMALL]) == 0
    assert "real by computed" in capsys.readouterr().out


def test_shares_are_those_of_batches_that_are_padded_in_full(tmp_path):
    tiny_hf.write_processor(tmp_path)
    processor = Processor.load(tmp_path)
    sizes = [(16, 16)] * 6 + [(32, 32)] * 2
    extents = [processor.extent([size]) for size in sizes]
    counted = count_batches(extents, processor, Sizes(tmp_path, batch=4, steps=2), window=2)
    examples = [tiny_hf.example("a", size, prompt=images.TEXT) for size in sizes]
    rows = [processor.row(example) for example in examples]
    # Sorted, the large ones come with two small ones.
    batches = [processor.pad(rows[:4]), processor.pad(rows[4:])]
    real = sum(int((batch.images.image_ids >= 0).sum()) for batch in batches)
    assert counted["patches"] == real / sum(b.images.image_ids.size for b in batches)
    assert counted["shapes"] == len({tuple(sizes_of(batch)) for batch in batches}) == 2
    assert np.isclose(counted["prefix"], _prefix_share(batches, processor), rtol=0.05)


def _prefix_share(batches, processor):
    return sum(b.mask.sum() for b in batches) / sum(b.mask.size for b in batches)
