"""Collective operations of a compiled program: who takes part and what each device sends."""

import re
from dataclasses import dataclass

from balcap_jax.plan.hlo import Computation, Instruction

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclass(frozen=True)
class Collective:
    """One collective operation, as often as it runs.

    Attributes:
      kind: one of COLLECTIVES.
      group: devices that take part together.
      operand_bytes: what a device brings in, each time.
      times: how often it runs.
      shape: of what it brings in, as in HLO.
    """

    kind: str
    group: int
    operand_bytes: float
    times: int
    shape: str

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends, with the algorithms for a ring."""
        share = (self.group - 1) / self.group
        sent = {
            "all-gather": self.group - 1,
            "all-reduce": 2 * share,
            "reduce-scatter": share,
            "all-to-all": share,
            "collective-permute": 1,
        }[self.kind]
        return self.operand_bytes * sent * self.times


def collective_of(
    where: Computation, instruction: Instruction, kind: str, *, times: int
) -> Collective:
    """The collective that an instruction of `where` is, of a kind in COLLECTIVES."""
    if kind == "all-reduce" and "all-reduce-scatter" in where.name:
        kind = "reduce-scatter"  # which keeps its part of the sum and never makes the rest
    group = 2 if kind == "collective-permute" else group_size(instruction.text)
    operands = where.operands(instruction)
    return Collective(
        kind=kind,
        group=group,
        operand_bytes=sum(operand.bytes for operand in operands),
        times=times,
        shape=", ".join(
            f"{a.dtype}[{','.join(map(str, a.dims))}]" for o in operands for a in o.shape
        ),
    )


def group_size(text: str) -> int:
    """Devices in a group of a collective, from its attributes.

    Raises:
      ValueError: no replica groups in a form that is known.
    """
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text)
    if iota:
        return int(iota.group(2))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        size = 1
        for name, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named.group(2)):
            size *= int(part or sizes[name])
        return size
    raise ValueError(f"replica groups of an unknown form: {text[:200]!r}")
