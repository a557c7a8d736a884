"""`balcap score` and `balcap caption` on files in a bucket, as on those of a disk."""

import json
from pathlib import Path

import pytest
from judge_server import JudgeServer
from PIL import Image
from small_run import BASE

from balcap_jax.cli.main import main
from balcap_jax.commands.caption import caption
from balcap_jax.commands.score import score
from balcap_jax.config.commands import CaptionConfig, ScoreConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.data.scene_source import export
from balcap_jax.storage.paths import as_path


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A file of three scenes, with their images beside it."""
    return export(tmp_path_factory.mktemp("scenes"), split="heldout", count=3)


def captions_of(scenes: Path) -> str:
    rows = map(json.loads, scenes.read_text().splitlines())
    return "".join(
        json.dumps({"id": row["id"], "caption": row["caption"], "note": place}) + "\n"
        for place, row in enumerate(rows)
    )


def with_data(bucket, scenes: Path, **changes) -> ScoreConfig:
    bucket.put_folder(scenes.parent, "set")
    bucket.put("in.jsonl", captions_of(scenes).encode())
    there = as_path(bucket.url)
    given = {
        "input": there / "in.jsonl", "output": there / "out" / "scored.jsonl",
        "data": there / "set" / scenes.name, "judge": JudgeConfig(kind="scene"), "batch_size": 2,
    }  # fmt: skip
    return ScoreConfig(**(given | changes))


def test_scores_are_those_of_local_files(bucket, scenes, tmp_path):
    config = with_data(bucket, scenes)
    (tmp_path / "in.jsonl").write_text(captions_of(scenes))
    local = ScoreConfig(
        input=tmp_path / "in.jsonl", output=tmp_path / "out.jsonl", data=scenes, judge=config.judge
    )
    assert score(config) == score(local)
    assert bucket.objects["out/scored.jsonl"].data == local.output.read_bytes()
    assert not [name for name in bucket.objects if "lock" in name]


def test_a_cut_output_in_the_bucket_goes_on(bucket, scenes):
    config = with_data(bucket, scenes)
    summary = score(config)
    whole = bucket.text("out/scored.jsonl")
    rows = whole.splitlines(keepends=True)
    failed = json.loads(rows[1]) | dict.fromkeys(
        ("precision", "recall", "linguistic", "b_capscore")
    )
    again = [rows[0], json.dumps(failed | {"error": "as it was"}) + "\n", rows[2]]
    # A row, a row and a torn one, one that failed: which is asked again, and the others are not.
    for left in (rows[0], rows[0] + rows[1][:20], "".join(again)):
        bucket.put("out/scored.jsonl", left.encode())
        assert score(config) == summary
        assert bucket.text("out/scored.jsonl") == whole


def test_images_of_rows_start_from_the_input_in_the_bucket(bucket, tmp_path):
    image = tmp_path / "photo.png"
    Image.new("RGB", (32, 32), (200, 30, 3)).save(image)
    bucket.put("photos/photo.png", image.read_bytes())
    row = {"caption": "A red square.", "references": ["A red square ."]}
    names = ("photo.png", f"{bucket.url}/photos/photo.png", "none.png", "s3://other/photo.png")
    text = "".join(json.dumps({**row, "image": name}) + "\n" for name in names)
    bucket.put("photos/in.jsonl", text.encode())
    with JudgeServer() as server:
        judge = JudgeConfig(
            kind="llm", model="m", base_url=server.url, cache=tmp_path / "cache.sqlite"
        )
        there = as_path(bucket.url) / "photos"
        score(ScoreConfig(input=there / "in.jsonl", output=there / "out.jsonl", judge=judge))
    scored = [json.loads(line) for line in bucket.text("photos/out.jsonl").splitlines()]
    assert [row["error"] is None for row in scored] == [True, True, False, False]
    assert scored[0]["b_capscore"] == scored[1]["b_capscore"]
    assert f"{there}/none.png" in scored[2]["error"]
    assert "nothing else is read" in scored[3]["error"]


def run(capsys, *arguments: object) -> tuple[int, str]:
    code = main([*map(str, arguments)])
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return code, told.err.strip()


def test_what_is_not_there_or_refused_is_one_sentence_with_its_name(bucket, scenes, capsys):
    config = with_data(bucket, scenes)
    command = ("score", config.input, config.output, "--judge", "scene", "--data", config.data)
    code, told = run(capsys, "score", f"{bucket.url}/none.jsonl", config.output)
    assert (code, told.count("\n")) == (2, 0)
    assert f"{bucket.url}/none.jsonl cannot be read" in told
    with bucket.server.failing(forbidden="^(POST|PUT)"):
        code, told = run(capsys, *command)
    assert (code, told.count("\n")) == (2, 0)
    assert "Storage Object User on the bucket" in told
    assert "out/scored.jsonl" not in bucket.objects
    assert run(capsys, *command) == (0, "")
    other = bucket.text("in.jsonl").splitlines(keepends=True)
    bucket.put("in.jsonl", "".join(reversed(other)).encode())
    code, told = run(capsys, *command)
    assert code == 2
    assert f"{config.output} row 1 is not what --judge scene writes of {config.input}" in told
    assert len(bucket.text("out/scored.jsonl").splitlines()) == 3


@pytest.mark.slow  # compiles a policy
def test_captions_of_a_bucket_by_a_policy_there(bucket, scenes, capsys):
    bucket.put_folder(BASE, "models/base")
    bucket.put_folder(scenes.parent, "set")
    local = sorted(scenes.parent.rglob("*.png"))[:2]
    there = tuple(
        as_path(bucket.url) / "set" / str(path.relative_to(scenes.parent)) for path in local
    )
    model = f"{bucket.url}/models/base"
    # In one call, which compiles once: half of the images are on a disk.
    found = list(caption(CaptionConfig(images=(*local, *there), model=model, max_new_tokens=8)))
    assert [path for path, _ in found] == [*local, *there]
    texts = [text for _, text in found]
    assert texts[:2] == texts[2:]
    assert all(texts)
    code, told = run(capsys, "caption", there[0], f"{bucket.url}/none.png", "--model", model)
    assert code == 2
    assert f"{bucket.url}/none.png cannot be captioned (there is no such file)" in told
    with bucket.server.failing(forbidden=r"/o$"):
        code, told = run(capsys, "caption", there[0], "--model", f"{bucket.url}/models/other")
    assert (code, told.count("\n")) == (2, 0)
    assert "Storage Object User on the bucket" in told


def test_scenes_are_written_to_a_bucket_once(bucket, scenes, capsys):
    out = f"{bucket.url}/scenes"
    command = ("scenes", out, "--count", 3, "--split", "heldout")
    with bucket.server.failing(forbidden=r"scenes\.jsonl|^POST"):
        code, told = run(capsys, *command)
    assert (code, told.count("\n")) == (2, 0)
    assert "Storage Object User on the bucket" in told
    assert "scenes/scenes.jsonl" not in bucket.objects
    assert run(capsys, *command)[0] == 0
    for path in scenes.parent.iterdir():
        assert bucket.objects[f"scenes/{path.name}"].data == path.read_bytes()
    code, told = run(capsys, *command)
    assert code == 2
    assert f"{out}/scenes.jsonl exists and is not overwritten" in told
