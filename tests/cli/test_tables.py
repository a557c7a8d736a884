"""Tables of the commands are whole in a terminal of 80 columns, with numbers as wide as come."""

import io

import pytest
from rich.console import Console

from balcap_jax.bench import advantages, judge, load, step
from balcap_jax.commands import judge_check, score
from balcap_jax.plan import tables as plan
from balcap_jax.plan.chips import GIB
from balcap_jax.reporting.report import summary_table

MESH = {"data": 16, "fsdp": 64, "tensor": 8}
PROGRAM = {
    "bytes": dict.fromkeys(
        (
            "parameters",
            "optimizer",
            "activations",
            "temporary",
            "inputs",
            "reference",
            "judge",
            "waiting",
            "total",
        ),
        123.45 * GIB,
    ),
    "left_bytes": -123.45 * GIB,
    "compile_seconds": 1234.0,
    "flops": 12345.6e12,
    "moved_bytes": 12345e9,
    "wire_bytes": 12345.6e9,
    "seconds": {"compute": 1234.56, "wires": 1234.56},
    "collectives": {"collective-permute": {"runs": 123456, "wire_bytes": 12345.67e9}},
    "fits": False,
    "change": "set --model.remat full",
}
STEP = {
    "serial": 1234.0, "overlapped": 123.0, "captions_per_second": 123456.0, "mfu": 1.0,
    "update_mfu": 1.0,
}  # fmt: skip
PLAN = {
    "model": "qwen2.5-vl-7b", "topology": "v5p:16x16x24", "chips": 6144, "mesh": MESH,
    "prompts_per_step": 65536, "prefix": 1152, "patches": 4480, "group_size": 16,
    "max_new_tokens": 1024, "micro_batches": 1024, "remat": "attention", "devices_per_chip": 1,
    "limit_bytes": 95.75 * GIB, "fits": False, "step": STEP,
    "programs": {name: PROGRAM for name in ("encode", "rollout", "update")},
}  # fmt: skip
SCALED = PROGRAM | {
    "topology": "v5p:16x16x24", "chips": 6144, "mesh": MESH, "prompts_per_step": 65536,
    "total_bytes": 123.4 * GIB,
}  # fmt: skip
SUMMARY = {
    "precision": 100.0, "recall": 100.0, "linguistic": 100.0, "b_capscore": 100.0,
    "rows": 123456789, "errors": 123456789,
}  # fmt: skip
PART = {
    "median": 1234.567, "min": 1234.567, "max": 1234.567, "cpu_median": 12345.678,
    "tokens_per_second": 1234567.0, "first": 1234.5,
}  # fmt: skip
SIDE = {"rollout": PART, "update": PART, "peak_bytes": 123.45e9}
LIMIT = {
    "seconds": 1234.5678, "bytes": 12345.678e9, "bytes_floor": 1234.5678, "flops": 1234567.8e9,
    "flops_floor": 1234.5678, "reached": 1.0,
}  # fmt: skip
BENCH = {
    "preset": "cpu-small", "sides": {"balcap": SIDE, "hf": SIDE},
    "limits": {
        "bytes_per_second": 3350e9, "flops_per_second": 989000e9, "decode_step": LIMIT,
        "update": LIMIT,
    },
    "checksum": {
        "rollout": -1234.1234567, "logprobs": -1234.1234567, "entropy": 1.1234567,
        "balcap_loss": -1.1234567, "hf_loss": -1.1234567,
    },
    "profile": {
        name: 123.4567
        for name in ("encode", "prefill", "decode_step", "forward", "backward", "optimizer",
                     "logits")
    },
}  # fmt: skip


def shown(table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


TABLES = {
    "summary": [summary_table({"before": {"precision": 50.0, "words": 12345.6, "own": -1.2345e9},
                               "after": {"precision": 100.0, "words": 1.0, "own": 1e-9}})],
    "score": [score.table(SUMMARY)],
    "plan": [part for part in plan.plan_tables(PLAN) if not isinstance(part, str)],
    "sweep": [plan.sweep_table([PLAN])],
    "scaling": [plan.scaling_table([SCALED])],
    "bench advantages": [
        advantages.table([advantages.Result(65536, 16, 3, 12.3, 0.123, 12.3, 12345.6, 1e-6)])
    ],
    "bench load": [load.table([load.Load("transformers", 1234.5, *3 * [123.45e9])])],
    "bench judge": [
        judge.interval_table([judge.Figure("recall within, models", 1, -0.1, -0.1, (0.1, 0.1),
                                           (-0.123, -0.123), (-0.123, -0.123))]),
        judge.table([judge.Figure("recall within, models", 12345, -0.123, -0.123,
                                  (-0.12, -0.12), (-0.12, -0.12), (-0.12, -0.12))]),
        judge.zero_table([judge.Zero("b-CapScore", -0.123, -0.123, (-0.12, -0.12))]),
    ],
    "bench step": step.tables(BENCH),
    "judge-check": [
        judge_check.table(judge_check.JudgeCheck(60, 60, "", (judge_check.Agreement(
            "linguistic", 0.123, 123, -0.123, -0.123, 0.123),), {}))
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_whole_at_80_columns(name):
    for table in TABLES[name]:
        narrow, wide = shown(table), shown(table, width=400)
        assert "…" not in narrow
        assert max(map(len, narrow.splitlines())) <= 80
        # Each word and number of the wide table, also of a header, stands in the narrow one.
        missing = set(wide.split()) - set(narrow.split())
        assert [word for word in missing if any(map(str.isalnum, word))] == []
