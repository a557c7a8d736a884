"""What a language model hears that the rules of the offline judge do not: linguistic quality of
people's captions and of spoiled ones, by rules alone, by the model alone, and by both.

    python examples/real_parts/measure_fluency.py FOLDER PHOTOS

FOLDER is any policy folder, PHOTOS a folder with train.jsonl and val.jsonl of {"image", "captions"}
rows. The fit is on references of train.jsonl, what is measured is of val.jsonl.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from balcap_jax.config.sections import PROMPT
from balcap_jax.parallel.sharding import make_mesh
from balcap_jax.rewards.lexical.language import quality
from balcap_jax.rewards.lexical.statements import read
from balcap_jax.rewards.model.fluency import fit, fluency
from balcap_jax.rewards.model.text_scorer import TextScorer
from balcap_jax.runs.folder import read_jsonl

FITTED_ON = 64  # rows, as in a run
CONSTANT = (
    "A small blue sit in front striped sit in front of a field of wooden field.",
    "Blue black small wearing boy looking plays runs something standing stuff sits large man.",
    "A man is standing in a field with a dog.",
)


def spoiled(captions: Sequence[str], others: Sequence[str]) -> dict[str, list[str]]:
    """Ways to spoil captions, by name; words come from others, as often as they stand there if
    nothing else is said."""
    rng = random.Random(0)
    by_tag = defaultdict(list)
    for text in others:
        for reading in read(text):
            for word in reading.sentence.words:
                by_tag[word.tag].append(word.text)

    each_once = {tag: sorted(set(words)) for tag, words in by_tag.items()}

    def same_tags(text: str, of_tag: Mapping[str, Sequence[str]] = by_tag) -> str:
        words = (word for reading in read(text) for word in reading.sentence.words)
        return " ".join(rng.choice(of_tag.get(w.tag, [w.text])) for w in words) + "."

    def shuffled(text: str) -> str:
        words = text.rstrip(" .").split()
        return " ".join(rng.sample(words, len(words))) + " ."

    def one_word(text: str) -> str:
        words = text.split()
        words[rng.randrange(len(words) - 1)] = rng.choice(rng.choice(others).split()[:-1])
        return " ".join(words)

    return {
        "people's": list(captions),
        "people's, three times": [f"{text} {text} {text}" for text in captions],
        "one word by chance": [one_word(text) for text in captions],
        "all words by chance, same parts of speech": [same_tags(text) for text in captions],
        "in random order": [shuffled(text) for text in captions],
        "all words by chance, each word as likely": [
            same_tags(text, each_once) for text in captions
        ],
        **{f"{text[:36]} ...": [text] for text in CONSTANT},
    }


def measure(
    logprobs: Callable[[Sequence[str]], Sequence[np.ndarray]], train: list, val: list, count: int
) -> Table:
    """The table of all ways."""
    fluent = fit(logprobs([text for row in train[:FITTED_ON] for text in row["captions"]]))
    table = Table(title=f"level {fluent.level:.2f}, spread {fluent.spread:.2f} nats per token")
    table.add_column("captions")
    for name in ("rules", "model", "both"):
        table.add_column(name, justify="right")
    others = [text for row in train for text in row["captions"]]
    for name, texts in spoiled([row["captions"][0] for row in val[:count]], others).items():
        rules = np.array([np.mean(quality(text)) for text in texts])
        model = np.array([fluency(each, fluent) for each in logprobs(texts)])
        table.add_row(name, *(f"{x.mean():.2f}" for x in (rules, model, rules * model)))
    return table


def main(
    folder: Annotated[str, tyro.conf.Positional],
    photos: Annotated[Path, tyro.conf.Positional],
    *,
    count: int = 100,
) -> None:
    """Prints the table for the first `count` photos of val.jsonl."""
    mesh = make_mesh(devices=jax.devices()[:1])
    logprobs = TextScorer.load(Path(folder), mesh=mesh, dtype="float32", prompt=PROMPT)
    train, val = (read_jsonl(photos / f"{name}.jsonl") for name in ("train", "val"))
    Console(width=100).print(measure(logprobs, train, val, count))


if __name__ == "__main__":
    tyro.cli(main)
