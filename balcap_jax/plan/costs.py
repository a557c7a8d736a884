"""What one device does in a compiled program: flops, bytes of its memory, bytes over the wires.

Loops count as often as they run, which the `cost_analysis` of XLA does not do; otherwise the rules
are XLA's: a fusion reads its operands and writes its results once.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from balcap_jax.plan.hlo import FLOATS, Array, Computation, Instruction, Program

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Matmuls per pair of queries and keys in the kernels of splash attention, by their names in HLO:
# scores and values; for the gradients of keys and values scores, dp, dv, dk; for queries one less.
_KERNEL_MATMULS = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
# Neither reads nor writes memory by itself.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "while",
    "conditional",
    "call",
    "opt-barrier",
    "add-dependency",
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
            self.phases[where.name][1] += times * self._bytes(where, instruction)
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
            self.phases[outer][0] += times * self._kernel_flops(where, instruction)
        elif opcode in COLLECTIVES:
            collective = self._collective(where, instruction, opcode, times)
            if collective.group > 1:
                channel = instruction.attribute("channel_id") or instruction.name
                self.channels[channel].setdefault(outer, (collective, begins))

    def _collective(
        self, where: Computation, instruction: Instruction, kind: str, times: int
    ) -> Collective:
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

    def _kernel_flops(self, where: Computation, instruction: Instruction) -> float:
        matmuls = next((n for k, n in _KERNEL_MATMULS.items() if k in instruction.name), 0)
        if not matmuls:
            return 0.0
        queries = next(
            array
            for operand in where.operands(instruction)
            for array in operand.shape
            if array.dtype in FLOATS and len(array.dims) in (3, 4)
        )
        *_, length, head = queries.dims
        rows = int(np.prod(queries.dims[:-2]))
        share = self.attended.get(length, 1.0)
        return 2.0 * matmuls * rows * length * length * head * share

    # ---- memory

    def _bytes(self, where: Computation, instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0.0
        operands = where.operands(instruction)
        if opcode in ("dynamic-slice", "slice", "gather"):
            return _main(instruction) + sum(min(_main(o), _main(instruction)) for o in operands[:1])
        if opcode == "dynamic-update-slice":
            return 2 * _main(operands[1])
        if opcode == "fusion":
            inner = self.program.computations[instruction.called["calls"][0]]
            return sum(
                _read_by_fusion(inner, place, operand) for place, operand in enumerate(operands)
            ) + _written_by_fusion(inner, instruction)
        if opcode == "copy-start":
            return _main(operands[0]) + _in_main(instruction.shape[:1])
        if opcode.endswith("slice-start"):  # (operands, slice, context)
            slices = [array for array in instruction.shape[len(operands) :] if len(array.dims) > 1]
            return min(sum(a.bytes for a in slices), _main(operands[0])) + _in_main(slices)
        if opcode.endswith("-start"):
            if instruction.called.get("calls"):
                return 0.0  # what it calls is visited
            return 2 * sum(map(_main, operands))
        return sum(map(_main, operands)) + _main(instruction)


def _main(instruction: Instruction) -> float:
    """Bytes of a result in the main memory."""
    return _in_main(instruction.shape)


def _in_main(arrays: Iterable[Array]) -> float:
    return sum(array.bytes for array in arrays if array.space == 0)


def _read_by_fusion(inner: Computation, place: int, operand: Instruction) -> float:
    """A stack of which a fusion takes one slice is not read as a whole."""
    whole = _main(operand)
    if place not in inner.parameters or not whole:
        return whole
    read = 0.0
    for user, through in _users_behind_bitcasts(inner, inner.parameters[place]):
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == through:
            read += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == through:
            continue  # written in place
        else:
            return whole
    return min(read, whole)


def _written_by_fusion(inner: Computation, fusion: Instruction) -> float:
    root = inner.root
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    total = 0.0
    for array, result in zip(fusion.shape, results, strict=False):
        while result.opcode == "bitcast":
            result = inner.operands(result)[0]
        if array.space:
            continue
        update = result.opcode == "dynamic-update-slice"
        total += inner.operands(result)[1].bytes if update else array.bytes
    return total


def _users_behind_bitcasts(
    inner: Computation, instruction: Instruction
) -> Iterator[tuple[Instruction, str]]:
    """Who uses it, with the name it is used by."""
    for user in inner.users[instruction.name]:
        if user.opcode == "bitcast":
            yield from _users_behind_bitcasts(inner, user)
        else:
            yield user, instruction.name


# ---- single operations


def dot_flops(where: Computation, dot: Instruction) -> float:
    """2 x the size of the result x the size of what is contracted."""
    left = where.operands(dot)[0].shape[0]
    contracted = re.findall(r"\d+", dot.attribute("lhs_contracting_dims") or "")
    return (
        2.0
        * float(np.prod(dot.shape[0].dims))
        * float(np.prod([left.dims[int(axis)] for axis in contracted]))
    )


def convolution_flops(where: Computation, convolution: Instruction) -> float:
    """As which the compiler for TPUs writes every matmul; products with padding do not count."""
    left, right = (operand.shape[0] for operand in where.operands(convolution)[:2])
    if left.dtype not in FLOATS:
        return 0.0
    labels = re.match(r"(\w+)_(\w+)->(\w+)", convolution.attribute("dim_labels"))
    lhs, rhs, out = labels.groups()
    result = convolution.shape[0].dims
    window = re.search(r"window=\{([^}]*)\}", convolution.text)
    options = dict(re.findall(r"(\w+)=(\S+)", window.group(1))) if window else {}
    total = 2.0 * result[out.index("b")] * result[out.index("f")] * right.dims[rhs.index("i")]
    for axis in range(len(out) - 2):
        label = str(axis)

        def at(name: str, default: str, axis: int = axis) -> str:
            return options[name].split("x")[axis] if name in options else default

        low, _ = map(int, at("pad", "0_0").split("_"))
        total *= _products(
            left.dims[lhs.index(label)],
            right.dims[rhs.index(label)],
            result[out.index(label)],
            low=low,
            stride=int(at("stride", "1")),
            left_dilation=int(at("lhs_dilate", "1")),
            right_dilation=int(at("rhs_dilate", "1")),
        )
    return total


def _products(
    size: int,
    window: int,
    results: int,
    *,
    low: int,
    stride: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """Pairs of result and place in the window that meet an element, not padding or a hole."""
    places = np.arange(results)[:, None] * stride + np.arange(window)[None] * right_dilation - low
    inside = (places >= 0) & (places <= (size - 1) * left_dilation)
    return int(np.sum(inside & (places % left_dilation == 0)))


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
