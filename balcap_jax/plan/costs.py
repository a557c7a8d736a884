"""What one device does in a compiled program: flops, bytes of its memory, bytes over the wires.

Loops count as often as they run, which the `cost_analysis` of XLA does not do; otherwise the rules
are XLA's: a fusion reads its operands and writes its results once.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from balcap_jax.plan.collectives import COLLECTIVES, Collective, collective_of
from balcap_jax.plan.hlo import Computation, Instruction, Program
from balcap_jax.plan.operations import convolution_flops, dot_flops, kernel_flops
from balcap_jax.plan.traffic import moved_bytes


@dataclass
class Costs:
    """Of one device and one run of the program.

    Attributes:
      flops: of matmuls, convolutions and attention kernels.
      bytes: read from and written to the chip's main memory.
      collectives: all with more than one device in a group.
      phases: (flops, bytes) of the parts that run one after the other: loops and what is between.
    """

    flops: float = 0.0
    bytes: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    phases: list[tuple[float, float]] = field(default_factory=list)

    def wire_bytes_by_kind(self) -> dict[str, float]:
        sums: Counter[str] = Counter()
        for collective in self.collectives:
            sums[collective.kind] += collective.wire_bytes
        return dict(sums)

    @property
    def wire_bytes(self) -> float:
        return sum(collective.wire_bytes for collective in self.collectives)


def costs_of(
    program: Program, *, attended: Mapping[int, float] | None = None, trips: int | None = None
) -> Costs:
    """Counts a whole program.

    Args:
      attended: padded length -> share of the blocks that attention kernels of this length compute;
        1 where it is not given.
      trips: let every loop run this often, to compare with XLA's own count (1); None: as it does.
    """
    counter = _Counter(program, attended or {}, trips)
    counter.visit(program.entry, 1)
    return Costs(
        flops=sum(flops for flops, _ in counter.phases.values()),
        bytes=sum(moved for _, moved in counter.phases.values()),
        collectives=counter.collectives(),
        phases=[(flops, moved) for flops, moved in counter.phases.values()],
    )


def saved_for_backward(program: Program, parameters: Collection[tuple[int, ...]]) -> float:
    """Bytes of what the loops of the backward pass read slice by slice, weights aside.

    Args:
      parameters: shapes of the weights, as one device holds them; a copy in another dtype has the
        same.
    """
    saved = 0.0
    for computation in program.computations.values():
        for loop in computation.instructions:
            if loop.opcode != "while" or "transpose(jvp" not in (loop.attribute("op_name") or ""):
                continue
            trips = program.trips(loop, where=computation)
            saved += sum(
                array.bytes
                for array in loop.shape
                if array.dims[:1] == (trips,)
                and array.space == 0
                and len(array.dims) > 2
                and array.dims not in parameters
            )
    return saved


class _Counter:
    """The sums of one walk through the calls of a program."""

    def __init__(self, program: Program, attended: Mapping[int, float], trips: int | None) -> None:
        self.program, self.attended, self.fixed_trips = program, attended, trips
        # By the computation whose instructions run one by one: [flops, bytes].
        self.phases: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        # Channel -> where it is written -> the collective, and whether it begins there.
        self.channels: dict[str, dict[str, tuple[Collective, bool]]] = defaultdict(dict)

    def collectives(self) -> list[Collective]:
        """Each as often as it begins. An asynchronous one is spread over several fusions, even over
        the loops that hide it, and written in each of them with one channel.
        """
        found = []
        for places in self.channels.values():
            starts = [collective for collective, begins in places.values() if begins]
            found += starts or [collective for collective, _ in places.values()]
        return found

    def visit(self, where: Computation, times: int) -> None:
        """A computation whose instructions are run one by one."""
        for instruction in where.instructions:
            self.phases[where.name][1] += times * moved_bytes(self.program, where, instruction)
            self._compute(where, instruction, times, where.name)
            for kind, names in instruction.called.items():
                inner = [self.program.computations[name] for name in names]
                if instruction.opcode == "while":
                    if kind == "body":
                        runs = self.fixed_trips or self.program.trips(instruction, where=where)
                        self.visit(inner[0], times * runs)
                elif kind == "branch_computations":
                    self._costliest(inner, times)
                elif instruction.opcode == "fusion":
                    begins = instruction.name.startswith("%async-collective-start")
                    self._fused(inner[0], times, where.name, begins=begins)
                elif kind == "calls" or instruction.opcode == "call":
                    self.visit(inner[0], times)

    def _fused(self, where: Computation, times: int, outer: str, *, begins: bool) -> None:
        """A fusion's own instructions touch no main memory."""
        for instruction in where.instructions:
            self._compute(where, instruction, times, outer, begins=begins)
            for name in instruction.called.get("calls", ()):
                self._fused(self.program.computations[name], times, outer, begins=begins)

    def _costliest(self, branches: list[Computation], times: int) -> None:
        counts = []
        for branch in branches:
            counter = _Counter(self.program, self.attended, self.fixed_trips)
            counter.visit(branch, times)
            counts.append(counter)
        most = max(counts, key=lambda counter: np.sum(list(counter.phases.values()), axis=0)[0])
        for name, (flops, moved) in most.phases.items():
            self.phases[name][0] += flops
            self.phases[name][1] += moved
        for channel, places in most.channels.items():
            self.channels[channel] |= places

    def _compute(
        self,
        where: Computation,
        instruction: Instruction,
        times: int,
        outer: str,
        *,
        begins: bool = False,
    ) -> None:
        """Flops and collectives of one instruction, itself only."""
        opcode = instruction.opcode.removesuffix("-start")
        if opcode == "convolution":
            self.phases[outer][0] += times * convolution_flops(where, instruction)
        elif opcode == "dot":
            self.phases[outer][0] += times * dot_flops(where, instruction)
        elif opcode == "custom-call":
            self.phases[outer][0] += times * kernel_flops(
                where, instruction, attended=self.attended
            )
        elif opcode in COLLECTIVES:
            collective = collective_of(where, instruction, opcode, times=times)
            if collective.group > 1:
                channel = instruction.attribute("channel_id") or instruction.name
                self.channels[channel].setdefault(outer, (collective, begins))
