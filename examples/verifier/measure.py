"""How well a verifier tells true statements from false ones of the same held-out scene.

    python examples/verifier/measure.py runs/verifier heldout/scenes.jsonl [--skip 60] [--count 140]

The file is one of `balcap scenes --questions N`. With `--skip` the scenes that the training run
looked at are left out.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.model.calibration import auc_within
from balcap_jax.rewards.model.scorer import StatementScorer

_PASS = 20  # images


def measure(policy: str, file: Path, *, skip: int, count: int) -> tuple[float, int, int]:
    """(AUC within images, statements, scenes)."""
    rows = [json.loads(line) for line in file.read_text().splitlines()][skip : skip + count]
    scorer = StatementScorer.load(
        policy_folder(policy),
        mesh=make_mesh(devices=jax.devices()[:1]),
        dtype="float32",
        images=4,
        image_side=448,
    )
    scores: list[float] = []
    for start in range(0, len(rows), _PASS):
        part = rows[start : start + _PASS]
        images = [
            scorer.row(Example(r["id"], Image.open(file.parent / r["image"]), "", "")) for r in part
        ]
        asked = [[q["question"] for q in row["questions"]] for row in part]
        scores += [x for of_image in scorer(images, asked) for x in of_image]
    true = [q["answer"] == "yes" for row in rows for q in row["questions"]]
    names = [row["id"] for row in rows for _ in row["questions"]]
    return auc_within(np.array(scores), np.array(true), names), len(true), len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("policy")
    parser.add_argument("file", type=Path)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--count", type=int, default=10**9)
    flags = parser.parse_args()
    auc, statements, scenes = measure(flags.policy, flags.file, skip=flags.skip, count=flags.count)
    print(f"AUC within images {auc:.3f}: {statements} statements of {scenes} scenes")
