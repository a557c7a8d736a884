"""Makes trl_advantages.npz: 1,000 random reward arrays and TRL's own answers.

Run from the repository root with the test extra installed: `python tests/golden/make_trl.py`.
"""

from pathlib import Path

import numpy as np
import torch

from balcap_jax.bench import trl_formula

ARRAYS = {2: 200, 5: 400, 8: 400}  # by group size


def random_rewards(generator: np.random.Generator, group: int) -> np.ndarray:
    """4 images, 3 rewards. Constant groups are left out: TRL rounds there, see the tests.

    On a grid of 1/16: fewer than two different signals then mean a constant group, and
    nearly equal ones, where float32 itself is the error, do not occur.
    """
    while True:
        rewards = generator.integers(0, 17, (4, group, 3)).astype(np.float32) / 16
        rewards[generator.random(rewards.shape) < 0.15] = np.nan
        rewards[generator.random(rewards.shape[:2]) < 0.05] = np.nan
        present = ~np.isnan(rewards)
        low = np.where(present, rewards, np.inf).min(axis=1)
        high = np.where(present, rewards, -np.inf).max(axis=1)
        if np.all((high > low) | (present.sum(axis=1) < 2)):
            return rewards


def main() -> None:
    generator = np.random.default_rng(2605)
    gdpo = trl_formula.load("normalize_then_sum", weights=(1.0, 1.0, 1.0))
    grpo = trl_formula.load("sum_then_normalize", weights=(1.0, 1.0, 1.0))
    rloo = trl_formula.load_rloo(weights=(1.0, 1.0, 1.0))
    arrays = {}
    for group, count in ARRAYS.items():
        rewards = [random_rewards(generator, group) for _ in range(count)]
        arrays[f"rewards_{group}"] = np.stack(rewards)
        for name, formula in (("gdpo", gdpo), ("grpo", grpo)):
            answers = [formula(torch.from_numpy(r)).numpy() for r in rewards]
            arrays[f"{name}_{group}"] = np.stack(answers)
        # Of a caption that lacks some rewards alone: TRL's sum has a zero there, ours has none.
        whole = [np.where(np.isnan(r).any(axis=-1, keepdims=True), np.nan, r) for r in rewards]
        answers = [rloo(torch.from_numpy(np.float32(r))).numpy() for r in whole]
        arrays[f"rloo_{group}"] = np.stack(answers)
    path = Path(__file__).with_name("trl_advantages.npz")
    np.savez_compressed(path, versions=trl_formula.describe(), **arrays)


if __name__ == "__main__":
    main()
