"""Two captioners on the same photos, judged by words: by its own photo, and by the others.

python examples/real_parts/compare_captions.py BEFORE.jsonl AFTER.jsonl

Rows of {"id", "caption", "references"}, such as a run's evaluation/before.jsonl and after.jsonl, or
captions.jsonl of `measure_captioner.py`. Rules alone, whatever judged the run.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from balcap_jax.config.sections import REWARDS
from balcap_jax.errors import UserError
from balcap_jax.rewards.capscore import harmonic_mean
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.distinctive import steps_to_others
from balcap_jax.rewards.lexical.judge import judge, photo

OTHERS = 17  # photos that a caption is judged by beside its own, spread over all
DRAWS = 4000  # bootstraps over photos


class Scores(NamedTuple):
    """Of captions, [n, 3] in the order of REWARDS: by the own photo, and means by others."""

    own: Float[np.ndarray, "n 3"]
    others: Float[np.ndarray, "n 3"]
    distinct: int


def scores_of(captions: Sequence[str], references: Sequence[tuple[str, ...]]) -> Scores:
    """By the rules of the offline judge."""
    count = len(captions)

    def by(shift: int) -> Float[np.ndarray, "n 3"]:
        return rewards_of(
            [judge(c, photo(references[(i + shift) % count])) for i, c in enumerate(captions)],
            REWARDS,
        )

    steps = steps_to_others(count, most=OTHERS)
    return Scores(by(0), np.mean([by(k) for k in steps], axis=0), len(set(captions)))


def compare(before: Scores, after: Scores, *, seed: int = 0) -> dict[str, tuple[float, ...]]:
    """By quantity, in points: before, after, and the bounds of the change in 95 % of bootstraps.

    Photos are drawn, the same on both sides.
    """
    count = len(before.own)
    draws = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
    quantities = {
        "b-CapScore": lambda s, i: harmonic_mean(s.own[i].mean(axis=0)),
        **{name: lambda s, i, k=k: s.own[i, k].mean() for k, name in enumerate(REWARDS)},
        "precision by others": lambda s, i: s.others[i, 0].mean(),
        "own less other precision": lambda s, i: (s.own - s.others)[i, 0].mean(),
        "own less other recall": lambda s, i: (s.own - s.others)[i, 1].mean(),
    }
    everything = np.arange(count)
    found = {}
    for name, of in quantities.items():
        changes = [100 * (of(after, draw) - of(before, draw)) for draw in draws]
        low, high = np.percentile(changes, [2.5, 97.5])
        values = (100 * float(of(s, everything)) for s in (before, after))
        found[name] = (*values, float(low), float(high))
    return found


def _read(path: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {str(row["id"]): (row["caption"], tuple(row["references"])) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = _read(arguments.before), _read(arguments.after)
    ids = [key for key in before if key in after]
    if len(ids) < 2:
        raise UserError(
            f"{arguments.before} and {arguments.after} share {len(ids)} photos, and two are needed "
            "to judge captions by other photos; give captions of the same photos."
        )
    references = [before[key][1] for key in ids]
    sides = [scores_of([side[key][0] for key in ids], references) for side in (before, after)]
    print(f"{len(ids)} photos, distinct captions {sides[0].distinct} -> {sides[1].distinct}")
    for name, (old, new, low, high) in compare(*sides).items():
        print(f"{name:<26} {old:6.1f} -> {new:5.1f}   {low:+.1f} to {high:+.1f}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError, json.JSONDecodeError, KeyError) as error:
        raise SystemExit(f"compare_captions: {error}") from error
