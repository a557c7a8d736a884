"""`balcap bench device` with tiny shapes: rows of each part, and what fails or takes too long."""

import json
import subprocess
import time
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
import tiny
import tiny_llava

from balcap_jax.bench import device, device_parts, process, step, step_memory
from balcap_jax.bench.device import Plan, markdown, parts_of
from balcap_jax.bench.process import EndedError, in_process
from balcap_jax.cli import main as cli
from balcap_jax.errors import UserError
from balcap_jax.models.attention.backends import xla
from balcap_jax.plan.workloads.presets import PRESETS, Preset

SIZES = {"dtype": "float32", "batch": 2, "group": 2, "text_tokens": 7, "completion": 4}
TINY = Preset(tiny.CONFIG, image=(24, 16), **SIZES)
LLAVA = Preset(tiny_llava.CONFIG, image=(8, 8), **SIZES)
FACTS = {
    "platform": "gpu",
    "memory_bytes": 80e9,
    "versions": {"jax": "1.2", "device": "NVIDIA H100"},
}


@pytest.fixture
def tiny_presets(monkeypatch):
    """Memory is measured in this process."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    monkeypatch.setitem(PRESETS, "llava", LLAVA)
    memory = step_memory.Memory(imports_bytes=1, peak_bytes=2 * 10**9)
    monkeypatch.setattr(step, "memory_of", lambda side, preset, folder: memory)
    monkeypatch.setattr(step, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(step, "MATRIX", {"cpu": 64})


def beside(rows):
    return {row["what"]: row["beside"] for row in rows}


# ---- parts


@pytest.mark.parametrize("preset", ["tiny", "llava"])
def test_attention_has_a_row_for_each_backend(tiny_presets, preset):
    rows = device_parts.attention(preset, rounds=1)
    found = beside(rows)
    for field in ("causal", "group", "segments"):
        assert found[f"attention {field}, xla"] == "the plain one"
    assert "runs on NVIDIA GPUs and not on cpu" in found["attention, cudnn"]
    assert "runs on TPUs and not on cpu" in found["attention, splash"]
    assert all(row["seconds"] > 0 for row in rows if " " in row["what"].split(",")[0])


def test_a_backend_that_is_wrong_is_said(tiny_presets, monkeypatch):
    """One is as the plain one, another one attends to what it should not."""
    plain = xla()
    wrong = plain._replace(
        causal=lambda q, k, v, mask: plain.causal(q, k, v, mask) + 0.01 * jnp.mean(v)
    )
    made = {"xla": plain, "cudnn": plain, "splash": wrong}
    monkeypatch.setattr(device_parts, "choose", lambda name, **_: made[name])
    found = beside(device_parts.attention("tiny", rounds=1))
    assert "differs by 0.0e+00" in found["attention causal, cudnn"]
    assert "x as fast as xla" in found["attention causal, cudnn"]
    wrongs = [what for what, said in found.items() if said.endswith("WRONG, more than rounding")]
    assert wrongs == ["attention causal, splash"]


def test_what_a_step_says(monkeypatch, capsys):
    """From a report such as `balcap bench step` makes."""
    side = {"median": 0.5, "tokens_per_second": 128.0, "first": 9.0}
    limit = {"bytes_floor": 0.001, "flops_floor": 0.0005, "reached": 0.6, "seconds": 0.002}
    report = {
        "sides": {
            "balcap": {"rollout": side, "update": side, "peak_bytes": 3e9},
            "hf": {"rollout": {"median": 2.0}, "update": {"median": 1.0}, "peak_bytes": 4e9},
        },
        "ratios": {"rollout": 4.0, "update": 2.0},
        "limits": {"decode_step": limit, "update": limit | {"flops_floor": 0.01},
                   "bytes_per_second": 3e12, "flops_per_second": 8e14},
        "checksum": {"plain_loss": -0.25},
    }  # fmt: skip

    def run(name, heard, **_):
        heard("hf rollout, first call", 2.5)
        return report

    monkeypatch.setattr(step, "run", run)
    rates = "copies 3000 GB/s, multiplies 800.00 TFLOP/s"
    assert device_parts.steps("tiny", rounds=1, against="hf") == [
        {"what": what, "seconds": seconds, "beside": said}
        for what, seconds, said in (
            ("tiny rollout", 0.5, "128 tokens/s, first call 9.0 s; HF 2.000 s, 4.00 x"),
            ("tiny update", 0.5, "128 tokens/s, first call 9.0 s; HF 1.000 s, 2.00 x"),
            ("tiny decode step, floor", 0.002, "60% of its floor by bytes, 0.00100 s"),
            ("tiny update, floor", 0.002, "60% of its floor by flops, 0.01000 s"),
            (
                "limits of the device as measured",
                None,
                rates,
            ),
            ("tiny peak memory", None, "3.00 GB; HF 4.00 GB"),
            ("tiny checksums before the first update", None, "plain_loss -0.250000"),
        )
    ]
    told = {"what": "tiny hf rollout, first call", "seconds": 2.5, "beside": "before it was ended"}
    assert json.loads(capsys.readouterr().out) == {"rows": [told]}  # at once


@pytest.mark.long
@pytest.mark.slow  # compiles a rollout and an update
def test_a_step_beside_its_floors(tiny_presets):
    rows = device_parts.steps("tiny", rounds=1)
    found = beside(rows)
    assert "tokens/s, first call" in found["tiny rollout"]
    for name in ("decode step", "update"):
        assert "% of its floor by " in found[f"tiny {name}, floor"]
    assert "TFLOP/s" in found["limits of the device as measured"]
    assert found["tiny peak memory"] == "2.00 GB"
    losses = dict(pair.split() for pair in found[
        "tiny checksums before the first update"].split(", "))  # fmt: skip
    assert float(losses["plain_loss"]) == pytest.approx(float(losses["balcap_loss"]), abs=2e-6)


@pytest.mark.long
@pytest.mark.slow  # as above
@pytest.mark.torch
def test_a_step_beside_hugging_face(tiny_presets):
    pytest.importorskip("torch", reason="the test extra has torch")
    found = beside(device_parts.steps("tiny", rounds=1, against="hf"))
    assert "; HF " in found["tiny update"]
    assert found["tiny peak memory"] == "2.00 GB; HF 2.00 GB"


@pytest.mark.long
@pytest.mark.slow  # a run of the packaged policy
def test_a_run(monkeypatch):
    rows = device_parts.training(2, images=8, heldout=2, tokens=6)
    assert [row["seconds"] > 0 for row in rows] == [True, True]
    assert "rollout" in rows[0]["beside"]
    assert "b-CapScore" in rows[1]["beside"]


# ---- the whole


class Measured:
    """Stands for `in_process`: what each part gives, or raises."""

    def __init__(self, answers, now=None):
        self.answers, self.calls, self.now = answers, [], now

    def __call__(self, module, part, settings, *, seconds, environment):
        self.calls.append((part, json.loads(settings), seconds, environment))
        if part == "facts":
            return FACTS
        if self.now is not None:
            self.now[0] += 200.0
        answer = self.answers[part]
        if isinstance(answer, Exception):
            raise answer
        return {"rows": [{"what": part, "seconds": 0.5, "beside": answer}]}


def test_a_part_that_fails_is_a_row_and_costs_no_other(tmp_path):
    seen = []
    measure = Measured(
        {"attention": "1.5 x", "step": RuntimeError("RESOURCE_EXHAUSTED:\n 70 GB"),
         "run": "a|b", "hf": KeyError("peak_bytes")}
    )  # fmt: skip
    plan = Plan(tmp_path / "new" / "out")

    def tell(line):
        if (plan.out / "device.json").exists():
            seen.append(len(json.loads((plan.out / "device.json").read_text())["rows"]))

    report = device.run(plan, command="balcap bench device", measure=measure, tell=tell)
    assert [row["part"] for row in report["rows"]] == [
        "attention qwen3b", "step qwen3b", "run", "hf qwen3b",
    ]  # fmt: skip
    assert [row["beside"] for row in report["rows"]] == [
        "1.5 x", "failed: RESOURCE_EXHAUSTED: 70 GB", "a|b", "failed: 'peak_bytes'",
    ]  # fmt: skip
    assert seen == [0, 1, 1, 2, 2, 3, 3, 4]  # written after each part
    assert json.loads((plan.out / "device.json").read_text()) == report
    text = (plan.out / "device.md").read_text()
    assert text.splitlines()[0] == (
        f"{report['date']}, `balcap bench device`, NVIDIA H100 (80 GB for JAX), jax 1.2:"
    )
    assert "| attention | 0.5 | 1.5 x |" in text
    assert "| run | 0.5 | a/b |" in text
    assert "| step qwen3b |  | failed: RESOURCE_EXHAUSTED: 70 GB |" in text
    # torch and JAX share the device in one part alone.
    shared = ["XLA_PYTHON_CLIENT_PREALLOCATE" in call[3] for call in measure.calls]
    assert shared == [True, False, False, False, True]
    with pytest.raises(UserError, match="exists and is not overwritten; give another folder"):
        device.run(plan, command="again", measure=measure)


def test_a_part_that_is_ended_leaves_what_it_knew(tmp_path):
    row = {"what": "qwen3b hf rollout", "seconds": 21.8, "beside": "before it was ended"}
    ended = EndedError("ended after 9 s, the time that was left", json.dumps({"rows": [row]}))
    measure = Measured({"hf": ended})
    report = device.run(Plan(tmp_path, parts=("hf",)), command="c", measure=measure)
    assert report["rows"] == [
        {"part": "hf qwen3b", **row},
        {"part": "hf qwen3b", "what": "hf qwen3b", "seconds": None,
         "beside": "failed: ended after 9 s, the time that was left"},
    ]  # fmt: skip


def test_what_does_not_fit_the_time_says_so(tmp_path):
    now = [0.0]
    measure = Measured(dict.fromkeys(device.PARTS, "done"), now)
    plan = Plan(tmp_path, presets=("qwen3b", "llava7b"), minutes=7.0)
    report = device.run(plan, command="c", measure=measure, clock=lambda: now[0])
    # 420 s in all, 200 for each part: the third has 20 s, the fourth none.
    assert [call[2] for call in measure.calls] == [420.0, 420.0, 220.0, 20.0]
    assert [row["beside"] for row in report["rows"]] == ["done"] * 3 + [
        "not run: 0 s were left; give more --minutes"
    ] * 4


def test_parts_and_presets():
    assert [part.name for part in parts_of(Plan("x"), "cpu")] == [
        "attention cpu-small", "step cpu-small", "run", "hf cpu-small",
    ]  # fmt: skip
    plan = Plan("x", presets=("qwen3b",), parts=("hf", "run"), rounds=2, steps=3)
    hf, run = parts_of(plan, "gpu")
    assert hf.arguments == {"preset": "qwen3b", "rounds": 1, "against": "hf"}
    assert run.arguments == {"steps": 3}


def test_no_device_is_one_sentence(tmp_path):
    def measure(*_, **__):
        raise RuntimeError("Unable to initialize backend 'cuda'")

    with pytest.raises(UserError, match="JAX finds no device to measure .*'cuda'"):
        device.run(Plan(tmp_path), command="c", measure=measure)
    with pytest.raises(UserError, match="did you mean --preset qwen3b"):
        device.run(Plan(tmp_path, presets=("qwen3",)), command="c", measure=measure)


def test_a_process_that_takes_too_long_ends_with_what_it_started(tmp_path, monkeypatch):
    class Process(subprocess.Popen):
        """Its time begins when it has started another."""

        def communicate(self, timeout=None):
            while timeout and not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
                assert self.poll() is None
                time.sleep(0.02)
            return super().communicate(timeout=timeout and 0.1)

    monkeypatch.setattr(
        process, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": Process})
    )
    (tmp_path / "sleeping.py").write_text(
        "import subprocess, sys, time\n"
        "def measure(file):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "    open(file, 'w').write(str(child.pid))\n"
        "    print('{\"rows\": [1]}\\nhalf {', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with pytest.raises(EndedError, match="ended after 3 s, the time that was left") as ended:
        in_process(
            "sleeping", str(tmp_path / "pid"), seconds=3,
            environment={"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
    assert ended.value.last == {"rows": [1]}  # what it knew by then
    child = int((tmp_path / "pid").read_text())
    for _ in range(1200):
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    break
        except FileNotFoundError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("what it started still runs")


@pytest.mark.slow  # processes that import JAX
def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    command = f"bench device --out {out} --presets cpu-small --parts attention --rounds 1"
    assert cli.main(command.split()) == 0
    report = json.loads((out / "device.json").read_text())
    assert report["platform"] == "cpu"
    assert {"attention group, xla", "attention, splash"} <= {row["what"] for row in report["rows"]}
    assert capsys.readouterr().out.rstrip() == (out / "device.md").read_text().rstrip()
    assert report["command"] == f"balcap {command}"
    assert "jax" in report["versions"]


def test_markdown_of_a_cpu_names_no_memory():
    facts = FACTS | {"memory_bytes": None}
    report = {"date": "2026-01-02", "command": "c", "rows": [], **facts}
    assert markdown(report).startswith("2026-01-02, `c`, NVIDIA H100, jax 1.2:\n\n| what |")
