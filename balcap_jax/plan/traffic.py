"""Bytes that single instructions read from and write to the chip's main memory.

The rules are XLA's: a fusion reads its operands and writes its results once; of a stack that it
takes one slice of, it reads the slice.
"""

from collections.abc import Iterable, Iterator

from balcap_jax.plan.collectives import COLLECTIVES
from balcap_jax.plan.hlo import Array, Computation, Instruction, Program

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


def moved_bytes(program: Program, where: Computation, instruction: Instruction) -> float:
    """Of one run of an instruction of `where`; 0 of what only calls, which is counted inside."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    operands = where.operands(instruction)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return _main(instruction) + sum(min(_main(o), _main(instruction)) for o in operands[:1])
    if opcode == "dynamic-update-slice":
        return 2 * _main(operands[1])
    if opcode == "fusion":
        inner = program.computations[instruction.called["calls"][0]]
        return sum(
            _read_by_fusion(program, inner, place, _main(operand))
            for place, operand in enumerate(operands)
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


def _read_by_fusion(program: Program, inner: Computation, place: int, whole: float) -> float:
    """A stack of which a fusion takes one slice is not read as a whole, nor is what it hands on.

    Args:
      whole: bytes in the main memory of the operand at `place`.
    """
    if place not in inner.parameters or not whole:
        return whole
    if _behind_bitcasts(inner, inner.root) is inner.parameters[place]:
        return whole  # the same bytes in another shape, for whoever reads the result
    read = 0.0
    for user, through in _users_behind_bitcasts(inner, inner.parameters[place]):
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == through:
            read += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == through:
            continue  # written in place
        elif _hides_collective(inner) and user.opcode in ("tuple", *COLLECTIVES):
            continue
        elif user.opcode == "fusion":
            nested = program.computations[user.called["calls"][0]]
            read += sum(
                _read_by_fusion(program, nested, at, whole)
                for at, name in enumerate(user.operands)
                if name == through
            )
        else:
            return whole
    return min(read, whole)


def _hides_collective(inner: Computation) -> bool:
    """An asynchronous collective goes on beside this computation, which hands its buffers on: they
    are counted where it starts.
    """
    return inner.name.startswith("%async_collective_fusion")


def _written_by_fusion(inner: Computation, fusion: Instruction) -> float:
    root = inner.root
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    total = 0.0
    for array, result in zip(fusion.shape, results, strict=False):
        result = _behind_bitcasts(inner, result)
        handed_on = result.opcode == "parameter" or result.opcode in COLLECTIVES
        if array.space or (_hides_collective(inner) and handed_on):
            continue
        update = result.opcode == "dynamic-update-slice"
        total += inner.operands(result)[1].bytes if update else array.bytes
    return total


def _behind_bitcasts(inner: Computation, instruction: Instruction) -> Instruction:
    while instruction.opcode == "bitcast":
        instruction = inner.operands(instruction)[0]
    return instruction


def _users_behind_bitcasts(
    inner: Computation, instruction: Instruction
) -> Iterator[tuple[Instruction, str]]:
    """Who uses it, with the name it is used by."""
    for user in inner.users[instruction.name]:
        if user.opcode == "bitcast":
            yield from _users_behind_bitcasts(inner, user)
        else:
            yield user, instruction.name
