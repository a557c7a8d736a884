"""Model flops utilisation (MFU) of a run: what its model computes, by what its devices could."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from balcap_jax.models.attention.backends import xla
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.runs.device_rates import peak_flops
from balcap_jax.runs.flops import count, without_remat

# Makes a function of a policy that computes in the plain way, since kernels hide their flops; a
# program of `on_mesh` unwrapped: the mesh is set, and what XLA is told does not count.
MakeProgram = Callable[[VisionLanguagePolicy], Callable[..., Any]]


class Utilisation:
    """Counts the flops of the programs that a step runs, once for each shape of their arguments.

    Flops are the model's: matmuls and convolutions of all tokens that are computed, padding among
    them, without what is computed twice to save memory. The peak is that of bfloat16, whatever the
    run computes in. Where it is not known nothing is counted and `take` gives nothing.

    Args:
      tell: prints a line, where the devices are accelerators of an unknown kind.
    """

    def __init__(
        self, mesh: Mesh, policy: VisionLanguagePolicy, *, tell: Callable[[str], None]
    ) -> None:
        self._mesh, self._tell = mesh, tell
        self._plain = dataclasses.replace(policy, attention=xla(), remat="none")
        self._peak = peak_flops(list(mesh.devices.flat))
        self._counted: dict[Hashable, tuple[int, int]] = {}
        self._flops: dict[str, float] = {}
        device = mesh.devices.flat[0]
        if self._peak is None and device.platform != "cpu":
            tell(f"the rate of {device.device_kind} is not known: metrics have no mfu")

    def ran(
        self,
        stage: str,
        program: str,
        make: MakeProgram,
        *arguments: Any,
        times: int = 1,
        trips: int = 0,
    ) -> None:
        """A program ran in this stage of the step.

        Args:
          stage: as the stopwatch calls it.
          program: a name that tells programs with equal arguments apart.
          arguments: arrays, or their shapes; donated ones are fine.
          times: it ran.
          trips: of its while loop, where there is one.
        """
        if self._peak is None:
            return
        leaves, tree = jax.tree.flatten(arguments)
        key = (program, tree, tuple((x.shape, str(x.dtype)) for x in leaves))
        if key not in self._counted:
            try:
                self._counted[key] = self._count(make, arguments)
            except Exception as error:  # noqa: BLE001 - no reason to lose a run
                self._peak = None
                self._tell(f"the flops of {program} cannot be counted: no more mfu ({error})")
                return
        fixed, of_a_trip = self._counted[key]
        flops = times * (fixed + trips * of_a_trip)
        self._flops[stage] = self._flops.get(stage, 0.0) + flops

    def take(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """`mfu/<stage>` of each stage that a program ran in, and `mfu/step`; starts anew.

        Args:
          seconds: `seconds/<stage>` and `seconds/step` of the stopwatch.
        """
        flops, self._flops = self._flops, {}
        if self._peak is None or not flops:
            return {}
        flops["step"] = sum(flops.values())
        return {
            f"mfu/{stage}": done / (seconds[f"seconds/{stage}"] * self._peak)
            for stage, done in flops.items()
            if seconds.get(f"seconds/{stage}")
        }

    def _count(self, make: MakeProgram, arguments: tuple) -> tuple[int, int]:
        """(flops without its while loop, flops of one trip of it), of all devices together."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
        # Made inside: JAX remembers what it has traced, with rematerialisation or without.
        with without_remat(), jax.set_mesh(self._mesh):
            jaxpr = jax.make_jaxpr(make(self._plain))(*shapes).jaxpr
        fixed = count(jaxpr, trips=0)
        return fixed, count(jaxpr, trips=1) - fixed
