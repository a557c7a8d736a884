"""Peak memory of one rollout and one update by one side, in a process of its own."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from balcap_jax.bench.process import in_process, peak_bytes
from balcap_jax.errors import UserError
from balcap_jax.plan.workloads.presets import preset_of


@dataclass(frozen=True)
class Memory:
    """Of one side.

    Attributes:
      imports_bytes: resident before anything is made; on a GPU 0.
      peak_bytes: the most, of the device where that is a GPU, else of the process. Compilation,
        which happens in the same process, counts on a CPU.
    """

    imports_bytes: int
    peak_bytes: int


def memory_of(side: str, preset: str, folder: Path) -> Memory:
    """Runs `measure` in a process of its own.

    Raises:
      UserError: it failed, most likely for lack of memory.
    """
    try:
        return Memory(**in_process("balcap_jax.bench.step_memory", side, preset, str(folder)))
    except RuntimeError as error:
        raise UserError(
            f"{side} cannot run one step of the preset {preset} ({error}); use a smaller preset or "
            "a machine with more memory."
        ) from error


def memory_here(side: str) -> Memory:
    """What a side has held of an accelerator so far in this process; each has an allocator of its
    own.
    """
    if side == "balcap":
        import jax

        return Memory(0, (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))
    import torch

    return Memory(0, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)


def measure(side: str, preset: str, folder: str) -> None:
    """One rollout and one update; prints a `Memory` as JSON.

    Args:
      side: "balcap" or "hf".
      folder: of `step_hf.write_inputs`, for "hf".
    """
    run = {"balcap": _ours, "hf": _theirs}[side]
    print(json.dumps(asdict(run(preset, Path(folder)))))  # noqa: T201 - read by the parent


def _ours(preset: str, _: Path) -> Memory:
    import jax

    from balcap_jax.bench.step_ours import Ours

    device = jax.devices()[0]
    before = peak_bytes()
    side = Ours(preset_of(preset))
    side.rollout()
    side.update()
    on_device = device.memory_stats() if device.platform != "cpu" else None
    if on_device:
        return Memory(0, on_device["peak_bytes_in_use"])
    return Memory(before, peak_bytes())


def _theirs(preset: str, folder: Path) -> Memory:
    import torch
    import transformers  # noqa: F401 - its modules are not what is measured

    from balcap_jax.bench.step_hf import HuggingFace

    before = peak_bytes()
    side = HuggingFace(preset_of(preset), folder)
    side.rollout()
    side.update()
    if torch.cuda.is_available():
        return Memory(0, torch.cuda.max_memory_allocated())
    return Memory(before, peak_bytes())
