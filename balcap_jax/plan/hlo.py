"""The text of a compiled program (HLO) as computations of instructions.

Only what counting needs: shapes with their memory space, operands, called computations, and how
often loops run. The text is the one that `Compiled.as_text()` returns for one device of a mesh.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

# Bytes of an element; anything else (tokens, opaque) has none.
ITEM_BYTES = {
    "pred": 1,
    **{f"{kind}{bits}": bits / 8 for kind in "su" for bits in (1, 2, 4, 8, 16, 32, 64)},
    **{f"f{bits}": bits // 8 for bits in (16, 32, 64)},
    "bf16": 2,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "c64": 8,
    "c128": 16,
}
FLOATS = ("bf16", "f16", "f32", "f64", "f8e4m3fn", "f8e5m2")

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%[\w.\-]+")
_HEAD = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.\-]+)")


@dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
      space: the memory it lives in: 0 is the chip's main memory (HBM).
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> float:
        return ITEM_BYTES.get(self.dtype, 0) * math.prod(self.dims)


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      shape: the arrays of its result, a tuple's one after another.
      operands: names of instructions of the same computation.
      text: what follows the operands: attributes and metadata.
    """

    name: str
    opcode: str
    shape: tuple[Array, ...]
    operands: tuple[str, ...]
    arguments: str
    text: str

    @property
    def bytes(self) -> float:
        return sum(array.bytes for array in self.shape)

    def attribute(self, name: str) -> str | None:
        """`{...}` or a word after `name=`; None without one."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.text)
        return found.group(1) if found else None

    @cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Names of the computations it calls, by attribute: body, condition, calls, ..."""
        return {kind: tuple(_NAME.findall(names)) for kind, names in _CALLED.findall(self.text)}


class Computation:
    """Instructions in order, by name too."""

    def __init__(self, name: str, lines: Sequence[str]) -> None:
        self.name = name
        self.instructions = [i for i in map(parse_instruction, lines) if i is not None]
        self.by_name = {instruction.name: instruction for instruction in self.instructions}
        roots = [line for line in lines if line.lstrip().startswith("ROOT ")]
        self.root = self.by_name[_NAME.search(roots[0]).group()] if roots else None

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.by_name[name] for name in instruction.operands if name in self.by_name]

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.by_name}
        for instruction in self.instructions:
            for name in instruction.operands:
                if name in users:
                    users[name].append(instruction)
        return users

    @property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.arguments): i for i in self.instructions if i.opcode == "parameter"}


class Program:
    """All computations of a module.

    Raises:
      ValueError: the text has no entry computation.
    """

    def __init__(self, text: str) -> None:
        self.computations = {name: Computation(name, lines) for name, lines in _blocks(text)}
        entry = re.search(r"^ENTRY (%[\w.\-]+)", text, re.MULTILINE)
        if entry is None:
            raise ValueError("the text is no HLO module: it has no ENTRY computation")
        self.entry = self.computations[entry.group(1)]

    def trips(self, loop: Instruction, *, where: Computation | None = None) -> int:
        """How often a while loop runs: by its counter's bound, step and, where it is known, start.

        A condition may ask for more (a decode loop that also ends when all captions have); the
        result is then the most it can run. Loops that the compiler unrolled count on in larger
        steps.

        Args:
          where: the computation that holds the loop, to find the start; 0 without it.

        Raises:
          ValueError: the condition compares no counter with a constant.
        """
        known = re.search(r"known_trip_count[^\d}]*(\d+)", loop.text)
        if known:
            return int(known.group(1))
        condition = self.computations[loop.called["condition"][0]]
        counts = [
            -(-(bound - self._start(loop, where, place)) // self._step(loop, place))
            for instruction in condition.instructions
            for place, bound in self._bounds(condition, instruction)
        ]
        if not counts:
            raise ValueError(f"the loop {loop.name} has no constant bound")
        return max(counts)

    def _bounds(
        self, where: Computation, instruction: Instruction
    ) -> Iterator[tuple[int | None, int]]:
        """(place of the counter in the loop's state, bound) of a comparison, fused or not."""
        if instruction.opcode == "fusion":
            inner = self.computations[instruction.called["calls"][0]]
            given = dict(enumerate(where.operands(instruction)))
            compares = [i for i in inner.instructions if i.opcode == "compare"]
        elif instruction.opcode == "compare":
            inner, given, compares = where, {}, [instruction]
        else:
            return
        for compare in compares:
            direction = compare.attribute("direction")
            if direction not in ("LT", "LE"):
                continue
            counter, bound = (
                given.get(int(operand.arguments), operand)
                if inner is not where and operand.opcode == "parameter"
                else operand
                for operand in inner.operands(compare)
            )
            value = _constant(bound)
            if value is not None:
                yield _place(counter), value + (direction == "LE")

    def _step(self, loop: Instruction, place: int | None) -> int:
        """What the loop's body adds to its counter; 1 where that cannot be seen."""
        body = self.computations[loop.called["body"][0]]
        if place is None or body.root is None or place >= len(body.root.operands):
            return 1
        result = body.by_name.get(body.root.operands[place])
        while result is not None and result.opcode in ("bitcast", "copy"):
            result = body.by_name.get(result.operands[0])
        if result is None or result.opcode != "add":
            return 1
        steps = [value for o in body.operands(result) if (value := _constant(o)) is not None]
        return max(steps, default=1)

    def _start(self, loop: Instruction, where: Computation | None, place: int | None) -> int:
        if where is None or place is None:
            return 0
        (state,) = where.operands(loop)
        if state.opcode != "tuple" or place >= len(state.operands):
            return 0
        first = where.by_name.get(state.operands[place])
        return 0 if first is None else _constant(first) or 0


def _constant(instruction: Instruction) -> int | None:
    """The value of a whole number, None of anything else."""
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments):
        return int(instruction.arguments)
    return None


def _place(instruction: Instruction) -> int | None:
    """Which element of a tuple this is."""
    index = instruction.attribute("index")
    return int(index) if instruction.opcode == "get-tuple-element" and index else None


def parse_instruction(line: str) -> Instruction | None:
    """One line, or None where it holds no instruction."""
    line = line.strip().removeprefix("ROOT ")
    name, equals, rest = line.partition(" = ")
    if not equals or not name.startswith("%"):
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    arguments = rest[len(opcode) + 1 : close]
    return Instruction(
        name=name,
        opcode=opcode,
        shape=parse_shape(shape),
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        text=rest[close + 1 :],
    )


def parse_shape(text: str) -> tuple[Array, ...]:
    """`bf16[8,128]{1,0:T(8,128)(2,1)S(1)}`, or a tuple of such."""
    arrays = []
    for found in _ARRAY.finditer(text):
        dims = tuple(int(size) for size in found.group(2).split(",") if size)
        space = _SPACE.search(found.group())
        arrays.append(Array(found.group(1), dims, int(space.group(1)) if space else 0))
    return tuple(arrays)


def _blocks(text: str) -> Iterator[tuple[str, list[str]]]:
    """The name and the lines of each computation."""
    name, lines = None, []
    for line in text.splitlines():
        if name is None:
            head = _HEAD.match(line)
            name, lines = (head.group(1), []) if head else (None, [])
        elif line.rstrip() == "}":
            yield name, lines
            name = None
        elif re.match(r"\s+(ROOT )?%", line):
            lines.append(line)
        elif lines:  # the configuration of a kernel goes on
            lines[-1] += line


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` closes."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] == "(":
            depth += 1
        elif text[position] == ")":
            depth -= 1
            if not depth:
                return position
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
