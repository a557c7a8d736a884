"""Plans as tables for people: each is whole in a terminal of 80 columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from balcap_jax.plan.chips import GIB

_BYTES = (
    "parameters", "optimizer", "activations", "temporary", "inputs", "reference", "judge",
    "waiting", "total",
)  # fmt: skip
_OF_SOME = ("reference", "judge", "waiting")  # that most runs have none of
_MESH = "mesh is data x fsdp x tensor"


def plan_tables(plan: Mapping[str, Any]) -> Iterator[Table | str]:
    """The whole answer to one configuration."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    yield (
        f"{plan['model']} on {plan['topology']} ({plan['chips']} chips; {mesh}): "
        f"{plan['prompts_per_step']} prompts of {plan['prefix']} tokens and {plan['patches']} "
        f"patches, {plan['group_size']} captions of at most {plan['max_new_tokens']} tokens each; "
        f"{plan['micro_batches']} micro-batches, remat {plan['remat']}"
    )
    if plan["devices_per_chip"] > 1:
        yield f"JAX sees {plan['devices_per_chip']} devices per chip; numbers are of one device."
    yield _memory(plan)
    yield _work(plan)
    yield _collectives(plan)
    yield from _verdict(plan)
    if "supply" in plan:
        yield from _supply(plan["supply"])


def _memory(plan: Mapping[str, Any]) -> Table:
    programs = plan["programs"]
    table = _table(
        f"GiB per device, of {plan['limit_bytes'] / GIB:.2f} that programs may use", ("", *programs)
    )
    for part in _BYTES:
        if part in _OF_SOME and not any(p["bytes"][part] for p in programs.values()):
            continue
        table.add_row(part, *(f"{p['bytes'][part] / GIB:.2f}" for p in programs.values()))
    table.add_row("left", *(f"{p['left_bytes'] / GIB:.2f}" for p in programs.values()))
    return table


def _work(plan: Mapping[str, Any]) -> Table:
    columns = ("", "Tflop", "GB\nmemory", "GB\nwires", "s\ncompute", "s\nwires", "s\ncompiling")
    table = _table("Work per device, and seconds at the chip's peak rates", columns)
    for name, program in plan["programs"].items():
        compiling = f"{program['compile_seconds']:.0f}"
        if "seconds" not in program:
            table.add_row(name, *["-"] * 5, compiling)
            continue
        table.add_row(
            name,
            f"{program['flops'] / 1e12:.1f}",
            f"{program['moved_bytes'] / 1e9:.0f}",
            f"{program['wire_bytes'] / 1e9:.1f}",
            f"{program['seconds']['compute']:.2f}",
            f"{program['seconds']['wires']:.2f}",
            compiling,
        )
    return table


def _collectives(plan: Mapping[str, Any]) -> Table:
    table = _table("Collectives per device", ("", "kind", "runs", "GB sent"))
    for name, program in plan["programs"].items():
        for kind, sums in program.get("collectives", {}).items():
            sent = f"{sums['wire_bytes'] / 1e9:.2f}"
            table.add_row(name, kind, f"{sums['runs']:,}", sent)
    return table


def _verdict(plan: Mapping[str, Any]) -> Iterator[str]:
    for name, program in plan["programs"].items():
        if not program["fits"]:
            over = -program["left_bytes"] / GIB
            yield f"The {name} does not fit, by {over:.2f} GiB: {program['change']}."
    if plan["fits"]:
        left = min(program["left_bytes"] for program in plan["programs"].values()) / GIB
        yield f"It fits, with {left:.2f} GiB to spare."
    if "step" in plan:
        step = plan["step"]
        yield (
            f"A step takes at least {step['overlapped']:.3g} s if communication hides behind "
            f"computation and {step['serial']:.3g} s if none does "
            f"({step['captions_per_second']:.0f} captions/s); MFU at most {step['mfu']:.0%} of the "
            f"step, {step['update_mfu']:.0%} of the update."
        )


def _supply(supply: Mapping[str, Any]) -> Iterator[Table | str]:
    """What must keep up with a step of that time."""
    table = Table(
        title=f"What {supply['hosts']} hosts, judge and bucket supply at that rate",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("")
    for column in ("needed", "there is", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for need in supply["needs"]:
        limit = need["has"]
        table.add_row(
            need["what"],
            _amount(need["needed"]),
            "" if limit is None else _amount(limit),
            "" if limit is None else f"{need['share']:.0%}",
        )
    yield table
    yield (
        f"{supply['epoch_images']:,} images take at least {supply['epoch_hours']:.3g} hours, "
        f"{supply['epoch_chip_hours']:.3g} chip-hours. The chips would wait first for the "
        f"{supply['first'].split(',')[0]}; {supply['change']} moves that."
    )


def _amount(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Variants, best first."""
    columns = ("mesh", "prompts", "micro", "remat", "GiB\nleft", "s/step", "captions\nper s", "MFU")
    table = _table(
        f"Variants, most captions per second first; what does not fit comes last; {_MESH}", columns
    )
    for plan in rows:
        left = min(program["left_bytes"] for program in plan["programs"].values()) / GIB
        step = plan.get("step")
        table.add_row(
            _mesh(plan),
            str(plan["prompts_per_step"]),
            str(plan["micro_batches"]),
            plan["remat"],
            f"{left:.2f}",
            _three_digits(step["serial"]) if step else "-",
            f"{step['captions_per_second']:.0f}" if step else "-",
            f"{step['mfu']:.0%}" if step else "-",
        )
    return table


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Weak scaling of the update: a table of the slices and one of the work."""
    slices = _table(
        f"The update on each slice, prompts per chip held; {_MESH}",
        ("topology", "chips", "mesh", "prompts", "GiB per device"),
    )
    work = _table(
        "Its work per device, and seconds at the chip's peak rates",
        ("topology", "Tflop", "GB\nmemory", "GB\nwires", "s\ncompute", "s\nwires"),
    )
    for row in rows:
        slices.add_row(
            row["topology"],
            str(row["chips"]),
            _mesh(row),
            str(row["prompts_per_step"]),
            f"{row['total_bytes'] / GIB:.1f}",
        )
        work.add_row(
            row["topology"],
            f"{row['flops'] / 1e12:.1f}",
            f"{row['moved_bytes'] / 1e9:.0f}",
            f"{row['wire_bytes'] / 1e9:.1f}",
            f"{row['seconds']['compute']:.2f}",
            f"{row['seconds']['wires']:.2f}",
        )
    return Group(slices, work)


def _mesh(row: Mapping[str, Any]) -> str:
    return "x".join(str(size) for size in row["mesh"].values())


def _three_digits(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 1000 else f"{seconds:.3g}"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for place, column in enumerate(columns):
        justify = "left" if place == 0 or column == "kind" else "right"
        table.add_column(column, justify=justify, no_wrap=True, vertical="bottom")
    return table
