"""`balcap bench step --lora --against trl`: whole training steps beside TRL's own GRPOTrainer with
peft, of a preset with random weights, in turns.
"""

import json as json_text
import statistics
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from balcap_jax.bench.step import versions
from balcap_jax.bench.step_hf import check_installed
from balcap_jax.bench.step_lora import RANK
from balcap_jax.bench.trainer_sides import Work, in_turns
from balcap_jax.plan.workloads.presets import preset_of
from balcap_jax.plan.workloads.word_folder import photos_of, write_word_folder


def run(name: str, *, rounds: int = 5) -> dict[str, Any]:
    """Median seconds of a step of each side, and their ratio.

    Args:
      name: of the preset.
      rounds: steps by each side after a first one, which compiles (ours) or warms up.

    Raises:
      UserError: an unknown preset, one of another family than Qwen2.5-VL, or no torch, trl or peft.
    """
    preset = preset_of(name)
    check_installed("trl", "peft", "datasets", flag="trl")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "policy"
        write_word_folder(folder, preset)
        work = Work(
            folder,
            photos_of(preset, 2 * preset.batch + 1),
            preset.batch,
            preset.group,
            preset.completion,
            dtype=preset.dtype,
            remat=preset.remat,
            lora=RANK,
        )
        turns = in_turns(work, Path(made), steps=rounds + 1)
    seconds = {"trl": turns.trl, "balcap": turns.balcap}
    medians = {side: statistics.median(found[1:]) for side, found in seconds.items()}
    return {
        "preset": name,
        "rank": RANK,
        "images": preset.batch,
        "captions": preset.group,
        "tokens": preset.completion,
        "versions": versions("trl", ["trl", "peft"]),
        "first": {side: found[0] for side, found in seconds.items()},
        "rounds": {side: found[1:] for side, found in seconds.items()},
        "seconds": medians,
        "ratio": medians["trl"] / medians["balcap"],
    }


def run_and_print(preset: str, *, json: bool = False, rounds: int = 5) -> None:
    """A few lines, or one of JSON."""
    report = run(preset, rounds=rounds)
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    console = Console()
    console.print(
        f"{preset}: whole steps of {report['images']} images with {report['captions']} captions "
        f"of at most {report['tokens']} tokens, adapters of rank {report['rank']} on the decoder"
    )
    for side, median in report["seconds"].items():
        least, most = min(report["rounds"][side]), max(report["rounds"][side])
        console.print(f"{side:>8} {median:8.3f} s ({least:.3f} ... {most:.3f})")
    console.print(f"TRL takes {report['ratio']:.2f} times our step.")
    console.print("; ".join(f"{name} {value}" for name, value in report["versions"].items()))
