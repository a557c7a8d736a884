"""A small reported run: three steps, two images judged before and after."""

from pathlib import Path

from PIL import Image

from balcap_jax.reporting.rows import caption_row
from balcap_jax.rewards.verdicts import Assertion, Verdict
from balcap_jax.runs.folder import write_json_atomic, write_jsonl_atomic

NAMES = ("precision", "recall", "linguistic")
VERDICT = Verdict(
    assertions=(
        Assertion("a red circle", True, True),
        Assertion("a green star", False, True),
        Assertion("a sense of balance", True, False),
    ),
    covered=(True, False),
    clarity=1.0,
    fluency=1.0,
    coherency=0.5,
)


def caption(when: str, index: int, **changes) -> dict:
    settings = {
        "id": f"scene-{index}",
        "caption": f"A red circle, {when}.",
        "reference": "A red circle and a star.",
        "rewards": {"precision": 1 / 3, "recall": 0.5, "linguistic": 5 / 6},
        "verdict": VERDICT,
        "units": ("red circle", "star"),
        "rho": 4 / 6,
        "image": f"evaluation/images/{index}.png",
    }
    return caption_row(**(settings | changes))


def make_run(folder: Path) -> None:
    """Writes its files."""
    (folder / "evaluation" / "images").mkdir(parents=True)
    step = {
        "reward/precision/mean": 0.5,
        "reward/recall/mean": 0.25,
        "words": 40.0,
        "rho/mean": 0.9,
        "rho/hist": [0, 2, 1],
        "kl": None,
        "entropy": 1.5,
        "seconds/step": 2.0,
    }
    write_jsonl_atomic(folder / "metrics.jsonl", [{"step": s, **step} for s in (1, 2, 3)])
    for index in range(2):
        Image.new("RGB", (8, 8), (200, 30 * index, 0)).save(
            folder / "evaluation" / "images" / f"{index}.png"
        )
    for when in ("before", "after"):
        rows = [caption(when, index) for index in range(2)]
        write_jsonl_atomic(folder / "evaluation" / f"{when}.jsonl", rows)
    scores = {"precision": 33.3, "recall": 50.0, "linguistic": 83.3, "b_capscore": 48.4}
    side = {**scores, "words": 4.0, "rho": 0.67}
    write_json_atomic(folder / "summary.json", {"before": side, "after": {**side, "recall": None}})


def judge_again(folder: Path, rows: list[dict]) -> None:
    """The same rows before and after."""
    for when in ("before", "after"):
        write_jsonl_atomic(folder / "evaluation" / f"{when}.jsonl", rows)
