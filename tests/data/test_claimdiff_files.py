"""Parquet rows of ClaimDiff-RL as data to train on."""

import json

import pytest
from images import red

from balcap_jax.config.sections import PROMPT, DataConfig
from balcap_jax.data.claimdiff_files import ClaimDiffRows
from balcap_jax.data.rows import BadRowError
from balcap_jax.data.sources import detect, open_sources
from balcap_jax.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="tensorflow-datasets brings it")


def row(i, **changes):
    asked = [{"role": "user", "content": "<image> Please describe this image."}]
    return {
        "images": json.dumps([f"{i}.png"]),
        "data_source": "caption_3k_diff",
        "prompt": json.dumps(asked),
        "reward_model": json.dumps({"ground_truth": f"Image {i}.", "verifier_parm": {}}),
        "extra_info": json.dumps({"id": f"photos/{i}", "split": "train"}),
        "max_image_token": 8192,
    } | changes


def write(folder, *rows):
    from pyarrow import parquet

    path = folder / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def test_rows_become_examples(tmp_path):
    for i in range(3):
        red(tmp_path, f"{i}.png", size=(20 + i, 20))
    path = write(tmp_path, *map(row, range(3)))
    assert detect(path) == "claimdiff"
    train, heldout = open_sources(DataConfig(path=str(path), heldout=1), seed=0)
    assert [e.id for e in (train[0], train[1], heldout[0])] == [f"photos/{i}" for i in range(3)]
    assert train[1].image.width == 21
    assert train[1].prompt == "Please describe this image."
    assert train[1].reference == "Image 1."


def test_columns_may_be_objects_and_ids_and_prompts_missing(tmp_path):
    plain = {"images": ["a.png"], "reward_model": {"ground_truth": "A."}}
    path = write(tmp_path, row(0, prompt="[]", extra_info="{}", **{
        name: json.dumps(value) for name, value in plain.items()
    }))  # fmt: skip
    found = ClaimDiffRows(path, images=tmp_path / "other")[0]
    assert (found.id, found.prompt) == ("train-000001", PROMPT)
    assert found.image == tmp_path / "other" / "a.png"
    assert ClaimDiffRows(write(tmp_path, row(0) | plain))[0].reference == "A."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": '["a.png", "b.png"]'}, "has 2 images"),
        ({"images": "a.png"}, "no JSON of a list"),
        ({"images": "[3]"}, "must be a text"),
        ({"reward_model": "{}"}, '"ground_truth"'),
        ({"reward_model": "[]"}, "no JSON of an object"),
        ({"prompt": '[{"role": "user"}]'}, '"prompt"'),
        ({"extra_info": '{"id": 1.5}'}, '"id"'),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path, changes, said):
    rows = ClaimDiffRows(write(tmp_path, row(0), row(1, **changes)))
    assert rows[0].id == "photos/0"
    with pytest.raises(BadRowError, match=said) as error:
        rows[1]
    assert "row 2" in str(error.value)


def test_bad_files_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="the id 'photos/0' twice, in the rows 1 and 3"):
        ClaimDiffRows(write(tmp_path, row(0), row(1), row(0)))
    with pytest.raises(UserError, match="with the columns images, prompt"):
        ClaimDiffRows(write(tmp_path, {"id": "1"}))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        ClaimDiffRows(tmp_path / "torn.parquet")
