"""Data files of the claims beside this script: scenes with other captions than the package's.

    python examples/evidence/make_files.py evidence_files

writes, each a folder of pictures with a scenes.jsonl:

    short, long                 captions with the base policy's faults, cut to a half, or half of
                                another one appended: what `balcap sft` makes a starting policy of
                                that writes too little or too much
    original, better, damaged   references as they are, told in full, and by poor observers: what
                                the policy is trained on
    heldout                     200 scenes with references as they are, for all cells
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balcap_jax.data.examples import Example
from balcap_jax.data.scene_source import export
from balcap_jax.scenes.captions import LONGEST, FaultRates, describe, faulty_caption

TRAINED, HELD_OUT = 2000, 200
# A poor observer, who writes well: things are missed, mistaken and invented.
POOR = FaultRates(
    invented=0.7, wrong_attribute=0.3, omission=0.7, meta=0, repetition=0, fragments=0,
    too_short=0, too_long=0,
)  # fmt: skip
# The base policy's faults but those of length.
USUAL = FaultRates(too_short=0, too_long=0)


def observed(example: Example, draw: str, rates: FaultRates = USUAL) -> str:
    """A caption by an observer with these faults."""
    assert example.scene is not None
    rng = random.Random(f"{draw}/{example.id}")
    return str(faulty_caption(example.scene, rng, rates))


def short(example: Example) -> str:
    return half_of(observed(example, "short"))


def long(example: Example) -> str:
    return f"{observed(example, 'long')} {half_of(observed(example, 'second'))}"


def damaged(example: Example) -> str:
    return observed(example, "damaged", POOR)


def better(example: Example) -> str:
    """All that there is to tell, up to the length of the longest reference."""
    assert example.scene is not None
    rng = random.Random(f"better/{example.id}")
    return " ".join(describe(rng, example.scene, shortest=LONGEST - 15))


def half_of(caption: str) -> str:
    """Its first sentences."""
    told = [f"{part.strip()}." for part in caption.split(".") if part.strip()]
    return " ".join(told[: max(1, len(told) // 2)])


def told_by(caption: Callable[[Example], str]) -> Callable[[Example], dict[str, Any]]:
    return lambda example: {"caption": caption(example), "prompt": example.prompt}


def main(out: Path) -> None:
    captions = {"short": short, "long": long, "better": better, "damaged": damaged}
    for name, caption in captions.items():
        export(out / name, split="train", count=TRAINED, seed=11, told=told_by(caption))
    export(out / "original", split="train", count=TRAINED, seed=11)
    export(out / "heldout", split="heldout", count=HELD_OUT, seed=11)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
