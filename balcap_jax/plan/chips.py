"""TPU chips by their published numbers, and the names of slices of them."""

import math
import re
from dataclasses import dataclass

from balcap_jax.config.names import did_you_mean
from balcap_jax.errors import UserError
from balcap_jax.runs.device_rates import PEAK_FLOPS

GIB = 2**30
RESERVED = GIB / 4  # what the compiler keeps of a chip's memory for itself
EXAMPLES = "v5e:8x8, v6e:16x16, v5p:4x4x4"


@dataclass(frozen=True)
class Chip:
    """Peak numbers of one chip.

    Source: the "system architecture" tables of https://cloud.google.com/tpu/docs (v4, v5e, v5p,
    v6e, tpu7x), read in November 2026.

    Attributes:
      flops: bfloat16 operations per second.
      memory: bytes of HBM.
      bandwidth: bytes per second between HBM and chip.
      wire: bytes per second that a chip sends over all its links (ICI): half of what is published
        as bidirectional.
      axes: of the torus of links; a collective over one of them has that part of `wire`.
      pod: most chips in one slice.
      devices: that JAX sees of a chip.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    wire: float
    axes: int
    pod: int
    devices: int = 1

    @property
    def usable(self) -> float:
        """Bytes of memory that programs may use."""
        return self.memory - RESERVED

    @property
    def wire_of_axis(self) -> float:
        return self.wire / self.axes


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", PEAK_FLOPS["v4"], 32 * GIB, 1228e9, 300e9, 3, 4096, devices=2),
        Chip("v5e", PEAK_FLOPS["v5e"], 16 * GIB, 819e9, 200e9, 2, 256),
        Chip("v5p", PEAK_FLOPS["v5p"], 95 * GIB, 2765e9, 600e9, 3, 8960),
        Chip("v6e", PEAK_FLOPS["v6e"], 32 * GIB, 1640e9, 400e9, 2, 256),
        Chip("tpu7x", PEAK_FLOPS["tpu7x"], 192 * GIB, 7380e9, 600e9, 3, 9216, devices=2),
    )
}


@dataclass(frozen=True)
class Slice:
    """Chips that are wired to a torus: `v5e:8x8`."""

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def chips(self) -> int:
        return math.prod(self.sides)

    @property
    def devices(self) -> int:
        """As JAX counts them: of some chips each core is one."""
        return self.chips * self.chip.devices


def slice_of(topology: str) -> Slice:
    """The slice of this name.

    Raises:
      UserError: no such chip, or no slice of that form.
    """
    name, colon, form = topology.partition(":")
    if not colon or not re.fullmatch(r"\d+(x\d+)*", form):
        raise UserError(
            f"topology {topology!r} must be a chip and the sides of its slice; write it as in "
            f"{EXAMPLES}."
        )
    if name not in CHIPS:
        raise UserError(
            f"topology {topology!r} names the unknown chip {name!r}, known are "
            f"{', '.join(CHIPS)}{did_you_mean(name, CHIPS, '{}:' + form)}"
        )
    chip, sides = CHIPS[name], tuple(int(side) for side in form.split("x"))
    if len(sides) != chip.axes or min(sides) < 1:
        example = next(e for e in ("8x8", "4x4x4") if e.count("x") + 1 == chip.axes)
        raise UserError(
            f"topology {topology!r} has {len(sides)} sides but slices of {name} have {chip.axes}; "
            f"write it as {name}:{example}."
        )
    if math.prod(sides) > chip.pod:
        raise UserError(
            f"topology {topology!r} has {math.prod(sides)} chips but a pod of {name} has "
            f"{chip.pod}; plan for one slice of at most that many."
        )
    return Slice(topology, chip, sides)
