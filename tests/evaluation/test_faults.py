"""A judge that fails: it is shown, dropped where the official code drops it, and never a zero."""

import json
from pathlib import Path

import numpy as np
import pytest
from benchmark_runs import record, run
from benchmark_world import answer, make_world
from judge_server import JudgeServer

from balcap_jax.config.evaluation import BENCHMARKS
from balcap_jax.config.sections import REWARDS
from balcap_jax.evaluation import caparena
from balcap_jax.evaluation.report import write_report

# Every way of the server to fail but the delay, which is a fault where it is longer than `timeout`.
KINDS = ("500", "429", "400", "401", "drop", "half", "half_body", "schema", "stall")
# Images of an invented benchmark, so that a tenth of its calls has every kind of fault.
FAILING = {"dcscore": 22, "captionqa": 32, "caparena": 92, "bcapscore": 92}
# Of an image the items that may fail, the score of each that is answered, the number that they
# make, and what the page has in place of a score.
PLANNED = {"dcscore": 1, "captionqa": 3, "caparena": 1, "bcapscore": 1}
FULL = {"dcscore": round(6 / 7, 6), "captionqa": 1.0, "caparena": 1.0}
VALUES = {"dcscore": 100 * 6 / 7, "captionqa": 100.0, "caparena": 100.0}
NOTHING = {
    "dcscore": "<small>no score</small>", "captionqa": '<li class="failed">',
    "caparena": "<small>no verdict</small>",
    "bcapscore": "<small>precision -, recall -, linguistic -</small>",
}  # fmt: skip


class Tenth:
    """Fault k of `KINDS` for call 10 k + 9, each in its turn."""

    def __call__(self, number: int) -> str | None:
        return KINDS[number // 10 % len(KINDS)] if number % 10 == 9 else None


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_judge_that_fails_a_tenth_in_every_way_is_shown(benchmark, tmp_path, capsys):
    world = make_world(tmp_path / "w", FAILING[benchmark])
    own = benchmark == "bcapscore"  # its judge is asked as that of training
    with JudgeServer(fault=Tenth(), answer=answer) as bad:
        out = tmp_path / "out"
        args = (world, bad, benchmark, world.captions("faulty.json"), out)
        more = ["--judge.retries", "0", "--judge.max-failure-share", "1", "--judge.timeout", ".4",
                "--judge.concurrency", "8"]  # fmt: skip
        if own:
            cache = str(out / "cache.sqlite")
            more += ["--judge.kind", "llm", "--judge.model", "ruler", "--judge.base-url", bad.url,
                     "--judge.backoff", "0.01", "--judge.cache", cache]  # fmt: skip
        assert run(*args, *more) == 0
        assert set(bad.faults) == set(KINDS)
        assert sum(bad.faults.values()) == bad.calls // 10
        found = record(out, benchmark)
        items = [json.loads(line) for line in (out / benchmark / "items.jsonl").open()]
        failed, said = found["counts"]["failed"], capsys.readouterr().out
        assert failed > 0
        assert f"{failed} failed" in said
        assert "strict is between" in said
        low, high = found["strict_between"]
        value = found["values"]["strict"]["value"]
        assert low < value <= high
        assert scores_of_the_failed(benchmark, items) == [None] * failed
        # What was answered is as without faults: nothing that failed became a zero.
        answered, unparsed = answers_of(benchmark, items), found["counts"].get("unparsed", 0)
        assert len(answered) + failed == PLANNED[benchmark] * len(items)
        if not own:
            assert answered.count(0.0) == unparsed  # a wrong form of answer, which has come
            assert set(answered) == {FULL[benchmark]} | ({0.0} if unparsed else set())
            share = sum(answered) / len(answered) / FULL[benchmark]
            assert value == pytest.approx(VALUES[benchmark] * share, abs=1e-3)
            official = found["values"]["official"]["value"]
            if benchmark == "caparena":  # half a point for each battle that was won, of three kinds
                assert official == pytest.approx(len(answered) / 2 / 3)
            else:
                assert official == pytest.approx(value, abs=1e-4)
            assert official == pytest.approx(rescored(benchmark, out / benchmark), abs=1e-9)
        else:
            assert "official" not in found["values"]
            for name in REWARDS:
                told = [item[name] for item in items if not item["failed"]]
                assert found["values"][name]["value"] == pytest.approx(100 * np.mean(told))
        page = write_report([out], html=tmp_path / "r.html", shown=len(items)).read_text()
        assert page.count(NOTHING[benchmark]) == failed
        # The same command asks for what failed alone.
        bad.fault = lambda _: None
        before = bad.calls
        more[more.index("--judge.timeout") + 1] = "60"  # no answer is too late any more
        assert run(*args, *more) == 0
        assert 0 < bad.calls - before <= failed * (4 if benchmark == "dcscore" else 1) + 1
        assert record(out, benchmark)["counts"]["failed"] == 0


def answers_of(benchmark: str, items: list[dict]) -> list[float]:
    """The score of everything that was answered."""
    if benchmark == "captionqa":
        return [q["score"] for item in items for q in item["questions"] if not q["failed"]]
    if benchmark == "caparena":
        return [b["value"] for item in items for b in item["battles"] if not b["failed"]]
    name = "score" if benchmark == "dcscore" else "precision"
    return [round(item[name], 6) for item in items if not item["failed"]]


def rescored(benchmark: str, folder: Path) -> float:
    """The number that the official arithmetic makes of the files in its form."""
    if benchmark == "dcscore":
        found = [json.loads(path.read_text()) for path in (folder / "results").iterdir()]
        details = [row["eval_details"] for row in found if row["valid"]]
        return 100 * float(np.mean([(d["f1_score"] + d["f1_score_relevant"]) / 2 for d in details]))
    if benchmark == "captionqa":
        found = json.loads((folder / "results.json").read_text())
        return 100 * float(np.mean([row["score"] for rows in found.values() for row in rows]))
    (path,) = folder.glob("*.battles.json")
    points = dict.fromkeys(caparena.BASELINES, 0.0)
    for row in json.loads(path.read_text()):
        if "judge" in row:
            won = row["source1" if row["judge"] == "Caption 1 is better." else "source2"]
            points[row["ref_model"]] += -0.5 if won == row["ref_model"] else 0.5
    return sum(points.values()) / 3


def scores_of_the_failed(benchmark: str, items: list[dict]) -> list[float | None]:
    if benchmark == "captionqa":
        return [q["score"] for item in items for q in item["questions"] if q["failed"]]
    if benchmark == "caparena":
        return [b["value"] for item in items for b in item["battles"] if b["failed"]]
    name = "score" if benchmark == "dcscore" else "precision"
    return [item[name] for item in items if item["failed"]]
