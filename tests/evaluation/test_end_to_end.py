"""All benchmarks on invented images with a judge that answers by rules, from the command line."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmark_runs import record, run, values
from benchmark_world import answer, make_world
from judge_server import JudgeServer

from balcap_jax.cli.main import main
from balcap_jax.config.evaluation import BENCHMARKS
from balcap_jax.evaluation.report import compare, difference

IMAGES = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "w", IMAGES)


@pytest.fixture(scope="module")
def server():
    with JudgeServer(answer=answer) as running:
        yield running


def all_four(world, server, captions, out, *more, **given):
    for benchmark in ("dcscore", "captionqa", "caparena", "bcapscore"):
        extra = () if benchmark == "bcapscore" else more
        assert run(world, server, benchmark, captions, out, *extra, **given) == 0


@pytest.fixture(scope="module")
def whole(world, server, tmp_path_factory):
    """Results of captions that tell all, and how many calls they took."""
    out = tmp_path_factory.mktemp("whole")
    before = server.calls
    all_four(world, server, world.captions("whole.json"), out)
    return out, server.calls - before


@pytest.fixture(scope="module")
def shorter(world, server, tmp_path_factory):
    """Of captions without a third of their sentences."""
    out = tmp_path_factory.mktemp("shorter")
    all_four(world, server, world.captions("shorter.json", drop=1), out)
    return out


def test_the_numbers_are_those_of_the_rules(whole, shorter):
    out, _ = whole
    # 3 facts of 4 told and true: P = 1, R = 3/4, F1 = 6/7 in both variants.
    assert values(out, "dcscore")["official"] == pytest.approx(100 * 6 / 7, abs=1e-4)
    assert values(out, "dcscore")["strict"] == pytest.approx(100 * 6 / 7, abs=1e-4)
    # 2 of 4: P = 1, R = 1/2, F1 = 2/3.
    assert values(shorter, "dcscore")["official"] == pytest.approx(100 * 2 / 3, abs=1e-4)
    assert values(out, "captionqa")["strict"] == 100.0
    assert record(out, "captionqa")["counts"]["skipped"] == IMAGES  # "none" is no choice
    # All battles won: 4 of each baseline.
    assert values(out, "caparena") == {"official": 4 / 2, "strict": 100.0}
    assert values(out, "bcapscore")["recall"] > values(shorter, "bcapscore")["recall"]
    said = record(out, "dcscore")
    assert said["title"] == "DCScore (balcap prompts, judge ruler)"
    assert said["counts"] == {"planned": IMAGES, "missing": 0, "invalid": 0, "failed": 0}
    assert said["judge"]["prompts"] == "balcap-1"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", said["date"])


def test_requests_are_the_benchmarks_own(whole, world, server):
    asked = server.requests
    by = lambda words: [b for b in asked if words in json.dumps(b["messages"])]  # noqa: E731
    assert {b["temperature"] for b in by("caption to split")} == {1.0}
    verified = by("verification")
    assert {(b["temperature"], b["max_completion_tokens"]) for b in verified} == {(0.3, 2000)}
    assert {b["seed"] for b in verified} == {100, 200, 300}
    image, text = verified[0]["messages"][1]["content"]
    assert image["image_url"]["detail"] == "high"
    fought = by("Caption 1:")
    assert {(b["temperature"], b["top_p"], b["max_completion_tokens"]) for b in fought} == {
        (0.1, 0.9, 1500)
    }
    (system, user) = by("Options:")[0]["messages"]
    assert isinstance(user["content"], str)
    assert user["content"].endswith("Answer:")
    assert {(b["temperature"], b["max_completion_tokens"]) for b in by("Options:")} == {(0.0, 4)}
    assert not any("response_format" in b for b in asked)


def test_nothing_is_asked_twice_and_replay_needs_no_server(whole, world, server, tmp_path, capsys):
    out, calls = whole
    # 12 images: extraction, 3 matchings, 3 verifications; 3 questions; 1 battle.
    assert calls == IMAGES * (7 + 3 + 1)
    captions = world.folder / "whole.json"
    cache = out / "cache.sqlite"
    before = server.calls
    again = tmp_path / "again"
    all_four(world, server, captions, again, "--judge.replay", cache=cache, url="http://no.host/v1")
    assert server.calls == before
    for benchmark in ("dcscore", "captionqa", "caparena", "bcapscore"):
        assert values(again, benchmark) == values(out, benchmark)
        rows = [(o / benchmark / "items.jsonl").read_bytes() for o in (again, out)]
        assert rows[0] == rows[1]
    # What is missing in the cache is told, and nothing is asked.
    other = world.captions("other.json", drop=2)
    assert run(world, server, "dcscore", other, again, "--judge.replay", cache=cache) == 2
    assert "found no answer for 12 of 12 items" in capsys.readouterr().err
    assert server.calls == before


def test_official_files(whole, world):
    out, _ = whole
    rows = [json.loads(line) for line in (out / "dcscore" / "captions.jsonl").open()]
    assert rows[0].keys() == {"image_path", "caption", "oracle_caption"}
    found = [json.loads((out / "dcscore/results" / f"{i}.json").read_text()) for i in range(IMAGES)]
    # As compute_results.py does.
    scores = [
        (r["eval_details"]["f1_score_relevant"] + r["eval_details"]["f1_score"]) / 2
        for r in found if r["valid"]
    ]  # fmt: skip
    assert 100 * sum(scores) / len(scores) == pytest.approx(values(out, "dcscore")["official"])
    answers = json.loads((out / "captionqa/results.json").read_text())
    assert {len(asked) for asked in answers.values()} == {3}
    assert all(row["is_correct"] for asked in answers.values() for row in asked)
    battles = json.loads((out / "caparena/whole.battles.json").read_text())
    first = json.loads((out / "caparena/orders.json").read_text())["ours_first"]
    for row in battles:
        ours = "source1" if first[row["img"]] else "source2"
        assert row[ours] == "whole"
        assert row["judge"] == f"Caption {ours[-1]} is better."
        assert row["ref_model"] in (row["source1"], row["source2"])
    stored = json.loads((out / "captionqa/permutations.json").read_text())
    assert sum(len(of) for of in stored.values()) == 3 * IMAGES


def test_a_third_of_the_sentences_is_told_by_every_benchmark(server, tmp_path):
    many = make_world(tmp_path / "w", 40)
    cache = tmp_path / "cache.sqlite"
    for name, captions in (
        ("whole", many.captions("whole.json")),
        ("same", many.captions("same.json")),
        ("less", many.captions_without_a_third("less.json")),
    ):
        for benchmark in BENCHMARKS:
            few = ("--matchings", 1, "--verifications", 1) if benchmark == "dcscore" else ()
            assert run(many, server, benchmark, captions, tmp_path / name, *few, cache=cache) == 0
    for name in ("same", "less"):
        compared = compare([tmp_path / "whole", tmp_path / name])
        assert list(compared) == list(BENCHMARKS)
        for benchmark, sides in compared.items():
            apart = difference(*(side.results for side in sides), "strict", seed=0)
            if name == "same":
                assert (apart.interval.low, apart.value, apart.interval.high) == (0, 0, 0)
                assert not apart.told
            else:
                assert apart.interval.low <= apart.value <= apart.interval.high < 0, benchmark
                assert apart.told


def test_a_part_of_the_domains_has_the_orders_of_the_whole(whole, world, server, tmp_path):
    out, _ = whole
    before = server.calls
    captions = json.loads((world.folder / "whole.json").read_text())
    entries = map(json.loads, (world.folder / "questions.jsonl").open())
    ecommerce = {e["id"] for e in entries if e["domain"] == "ecommerce"}
    (tmp_path / "part.json").write_text(
        json.dumps({name: text for name, text in captions.items() if name in ecommerce})
    )
    args = (world, server, "captionqa", tmp_path / "part.json", tmp_path / "part")
    assert run(*args, "--domains", "ecommerce", cache=out / "cache.sqlite") == 0
    assert server.calls == before  # the same questions in the same order are in the cache
    assert record(tmp_path / "part", "captionqa")["counts"]["questions"] == 3 * len(ecommerce)


def test_all_of_a_config_file_with_one_report(world, server, tmp_path, capsys, whole):
    config = tmp_path / "eval.toml"
    captions = world.folder / "whole.json"
    judge = f'base_url = "{server.url}"\nmodel = "ruler"\ncache = "{whole[0] / "cache.sqlite"}"\n'
    config.write_text(
        f'name = "mine"\nout = "{tmp_path / "out"}"\n'
        f'[dcscore]\nfacts = "{world.folder / "facts.jsonl"}"\nimages = "{world.images}"\n'
        f'captions = "{captions}"\n[dcscore.judge]\n{judge}'
        f'[captionqa]\ndata = "{world.folder / "questions.jsonl"}"\ncaptions = "{captions}"\n'
        f"[captionqa.judge]\n{judge}"
    )
    before = server.calls
    assert main(["eval", "all", "--config", str(config)]) == 0
    assert server.calls == before
    page = (tmp_path / "out" / "report.html").read_text()
    assert "DCScore (balcap prompts, judge ruler)" in page
    assert "mine" in page
    assert "85.71" in capsys.readouterr().out
    # What fails costs no other: the rest is printed, and in the report.
    config.write_text(config.read_text() + f'[caparena]\ndata = "{tmp_path / "none"}"\n'
                      f'images = "{world.images}"\ncaptions = "{captions}"\n')  # fmt: skip
    (tmp_path / "out" / "report.html").unlink()
    assert main(["eval", "all", "--config", str(config)]) == 2
    printed = capsys.readouterr()
    assert "85.71" in printed.out
    assert "CaptionQA (balcap prompts, judge ruler): mine" in printed.out
    assert "none cannot be read (No such file" in printed.err.splitlines()[-1]
    assert "DCScore (balcap" in (tmp_path / "out" / "report.html").read_text()
    assert main(["eval", "all"]) == 2
    assert "No benchmark has data; give one of" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow  # six processes of their own, four of which are killed: half a minute
def test_kill_9_in_each_benchmark_loses_nothing_and_replay_needs_no_server(tmp_path):
    images, at_once = 8, 4
    # Of each image: extraction, 3 matchings, 3 verifications; 3 questions; a battle; the units of
    # the reference and the verdict on the caption.
    planned = {"dcscore": 7, "captionqa": 3, "caparena": 1, "bcapscore": 2}
    world, cache = make_world(tmp_path / "w", images), tmp_path / "c.sqlite"
    captions, folder = world.captions("killed.json"), world.folder
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def config(name: str, url: str, *, replay: bool = False) -> list[str]:
        data = {
            "dcscore": f'facts = "{folder / "facts.jsonl"}"\nimages = "{world.images}"\n',
            "captionqa": f'data = "{folder / "questions.jsonl"}"\n',
            "caparena": f'data = "{folder / "battles.json"}"\nimages = "{world.images}"\n',
            "bcapscore": f'data = "{folder / "photos.jsonl"}"\n',
        }
        judge = (
            f'kind = "llm"\nbase_url = "{url}"\nmodel = "ruler"\nconcurrency = {at_once}\n'
            f'cache = "{cache}"\nreplay = {str(replay).lower()}\n'
        )
        (tmp_path / f"{name}.toml").write_text(
            f'name = "m"\nout = "{tmp_path / name}"\n'
            + "".join(
                f'[{benchmark}]\n{of}captions = "{captions}"\n[{benchmark}.judge]\n{judge}'
                for benchmark, of in data.items()
            )
        )
        return [sys.executable, "-m", "balcap_jax", "eval", "all", "--config",
                str(tmp_path / f"{name}.toml")]  # fmt: skip

    with JudgeServer(answer=answer, latency=0.1) as slow:
        asked = lambda: [json.dumps([b["messages"], b.get("seed")]) for b in slow.requests]  # noqa: E731
        command, before, out = config("out", slow.url), 0, tmp_path / "out"
        for place, (benchmark, calls) in enumerate(planned.items()):
            process = subprocess.Popen(command, env=environment)
            while len(set(asked())) < before + calls * images // 3:
                assert process.poll() is None, benchmark
                time.sleep(0.02)
            process.kill()
            process.wait()
            before += calls * images
            finished = [b for b in BENCHMARKS if (out / b / "result.json").exists()]
            assert finished == list(BENCHMARKS[:place])  # it was within this one
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "answers from the cache" in done.stdout
        assert len(set(asked())) == before
        assert len(asked()) - before <= len(planned) * at_once  # those that were under way
    # With no server, file by file the same.
    replayed, again = config("again", "http://127.0.0.1:9/v1", replay=True), tmp_path / "again"
    subprocess.run(replayed, env=environment, check=True)
    files = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert len([file for file in files if file.name == "items.jsonl"]) == len(BENCHMARKS)
    for file in sorted(files):
        if file.suffix in (".json", ".jsonl") and file.name != "result.json":
            assert (out / file).read_bytes() == (again / file).read_bytes(), file
    for benchmark in BENCHMARKS:
        assert values(out, benchmark) == values(again, benchmark)
        assert record(out, benchmark)["counts"] == record(again, benchmark)["counts"]
    assert values(out, "dcscore")["official"] == pytest.approx(100 * 6 / 7, abs=1e-4)


@pytest.mark.parametrize("kind", ["lexical", "auto"])
def test_bcapscore_says_which_judge_of_training_it_was(kind, world, server, tmp_path):
    captions = world.captions("w.json")
    assert run(world, server, "bcapscore", captions, tmp_path, "--judge.kind", kind) == 0
    assert record(tmp_path, "bcapscore")["title"] == "b-CapScore (judge: lexical)"


def test_a_judge_that_knows_none_of_the_images_is_no_result(world, server, tmp_path, capsys):
    captions = world.captions("w.json")
    assert run(world, server, "bcapscore", captions, tmp_path, "--judge.kind", "scene") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{IMAGES} of {IMAGES} captions have no verdict of judge.kind='scene'" in line
    assert not (tmp_path / "bcapscore" / "result.json").exists()


@pytest.mark.slow  # a policy is compiled
@pytest.mark.long
def test_bcapscore_by_a_judge_on_the_devices(world, server, tmp_path, monkeypatch, capsys):
    captions = world.captions("w.json")
    more = ("--judge.kind", "model", "--judge.model", "base")
    # The policy of scenes sees little on these images, which is told before anything is judged.
    assert run(world, server, "bcapscore", captions, tmp_path, *more) == 2
    assert "judge.model='base' tells true statements" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr("balcap_jax.rewards.model.judge.ModelJudge.check", lambda _: None)
    assert run(world, server, "bcapscore", captions, tmp_path, *more) == 0
    found = record(tmp_path, "bcapscore")
    assert found["title"] == "b-CapScore (judge: base on the devices)"
    assert found["counts"]["failed"] == 0
    assert 0 < found["values"]["strict"]["value"] < 100
