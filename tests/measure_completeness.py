"""What the benchmarks say of captions without a third of their sentences, on real photos.

    python tests/measure_completeness.py FOLDER OUT

FOLDER holds images/, detailed_qa.jsonl (rows of "id", "image", "type" and "output": a paragraph
where the type is "detail") and captions_boxes.jsonl (rows of "id" and "captions" by people). The
judge goes by rules, so what is measured is the tool and its intervals, not a model.

The paragraphs are what is evaluated: their sentences tell different things. Where they do not,
little is missing without a third of them, and b-CapScore is measured of that, too: of captions that
several people wrote of one photo, joined, and of invented captions, a sentence of which repeats
what the others say.
"""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from benchmark_world import BASELINES, DOMAINS, answer, make_world, words
from judge_server import JudgeServer

from balcap_jax.cli.main import main

_COMMON = words(
    "a an the and or of in on at to by with for from into over near next is are was be being been "
    "has have it its this that there which who while as some several one two their his her image "
    "scene picture photo photograph shows showing features can seen adding overall appears other "
    "also"
)


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]


def less(told: list[str], rng: random.Random) -> list[str]:
    """Without a third of them, drawn, at least one."""
    gone = set(rng.sample(range(len(told)), max(1, round(len(told) / 3))))
    return [sentence for place, sentence in enumerate(told) if place not in gone]


def questions(told: list[str], others: list[str], rng: random.Random) -> list[dict[str, Any]]:
    """One of each sentence: which word is told of, where the others are of other photos."""
    counts = [words(sentence) - _COMMON for sentence in told]
    found = []
    for place, of in enumerate(counts):
        elsewhere = set().union(*counts[:place], *counts[place + 1 :])
        own = sorted(word for word in of - elsewhere if len(word) > 3)
        if own:
            right = rng.choice(own)
            choices = [right, *rng.sample([w for w in others if w not in words(" ".join(told))], 3)]
            found.append(
                {"question": "Which word is told of?", "choices": choices, "answer": right,
                 "category": ["word"]}
            )  # fmt: skip
    return found


def write(source: Path, folder: Path) -> None:
    """Files of all benchmarks and the captions whole.json, same.json and less.json."""
    rng = random.Random(0)
    people = {row["id"]: row["captions"] for row in _rows(source / "captions_boxes.jsonl")}
    rows = [row for row in _rows(source / "detailed_qa.jsonl") if row["type"] == "detail"]
    told = {row["image"]: sentences(row["output"]) for row in rows}
    vocabulary = sorted({w for s in told.values() for w in words(" ".join(s)) if len(w) > 3})
    facts, entries, battles, photos = [], [], {}, []
    for place, row in enumerate(rows):
        name, mine = row["image"], told[row["image"]]
        whole = " ".join(mine)
        facts.append({"image_name": name, "oracle_caption": whole,
                      "oracle_facts": [*mine, "Nobody told this."]})  # fmt: skip
        entries.append({"id": name, "domain": DOMAINS[place % 4], "image_paths": [name],
                        "questions": questions(mine, vocabulary, rng)})  # fmt: skip
        short = list(BASELINES)[place % 3]
        baseline = " ".join(mine[: -(-len(mine) * 5 // 6) - 1] or mine[:1])
        reference = f"{whole} {' '.join(people[row['id']])}"
        battles[name] = {"captions": {"human": reference, short: baseline}, "ref_model": short}
        photos.append({"image": str((source / "images" / name).resolve()), "id": name,
                       "caption": whole})  # fmt: skip
    for name, listed in (("facts", facts), ("questions", entries), ("photos", photos)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in listed))
    (folder / "battles.json").write_text(json.dumps(battles))
    captions = {name: " ".join(of) for name, of in told.items()}
    shorter = {name: " ".join(less(of, rng)) for name, of in told.items()}
    for name, of in (("whole", captions), ("same", captions), ("less", shorter)):
        (folder / f"{name}.json").write_text(json.dumps(of))
    count, kept = (sum(len(sentences(t)) for t in of.values()) for of in (captions, shorter))
    print(f"{len(rows)} photos, {count} sentences, {count - kept} removed")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def write_joined(source: Path, folder: Path) -> None:
    """Three captions by people, joined, and without the third one; references are all of theirs."""
    names = {row["id"]: row["image"] for row in _rows(source / "detailed_qa.jsonl")}
    photos, told = [], {}
    for row in _rows(source / "captions_boxes.jsonl"):
        name = names[row["id"]]
        image = str((source / "images" / name).resolve())
        photos.append({"image": image, "id": name, "captions": row["captions"]})
        told[name] = [caption.rstrip(". ") + "." for caption in row["captions"][:3]]
    (folder / "photos.jsonl").write_text("".join(json.dumps(one) + "\n" for one in photos))
    _write_captions(folder, told, {name: of[:2] for name, of in told.items()})


def write_invented(folder: Path) -> None:
    """Captions of three sentences, and without any one of them."""
    world, rng = make_world(folder, 40), random.Random(0)
    shorter = {name: less(of, rng) for name, of in world.sentences.items()}
    _write_captions(folder, world.sentences, shorter)


def _write_captions(folder: Path, whole: dict[str, list[str]], shorter: dict[str, list[str]]):
    for name, told in (("whole", whole), ("less", shorter)):
        text = json.dumps({image: " ".join(of) for image, of in told.items()})
        (folder / f"{name}.json").write_text(text)


def evaluate_bcapscore(folder: Path) -> None:
    for name in ("whole", "less"):
        arguments = ["eval", "bcapscore", "--captions", folder / f"{name}.json",
                     "--out", folder / name, "--data", folder / "photos.jsonl"]  # fmt: skip
        assert main(list(map(str, arguments))) == 0
    assert main(["eval", "report", str(folder / "whole"), str(folder / "less")]) == 0


def evaluate(source: Path, folder: Path) -> None:
    images = source / "images"
    with JudgeServer(answer=answer) as server:
        for name in ("whole", "same", "less"):
            for benchmark, data in (
                ("dcscore", ["--facts", folder / "facts.jsonl", "--images", images]),
                ("captionqa", ["--data", folder / "questions.jsonl", "--images", images]),
                ("caparena", ["--data", folder / "battles.json", "--images", images]),
                ("bcapscore", ["--data", folder / "photos.jsonl"]),
            ):
                judge = [] if benchmark == "bcapscore" else [
                    "--judge.base-url", server.url, "--judge.model", "rules",
                    "--judge.cache", folder / "cache.sqlite",
                ]  # fmt: skip
                arguments = ["eval", benchmark, "--captions", folder / f"{name}.json",
                             "--out", folder / name, *data, *judge]  # fmt: skip
                assert main(list(map(str, arguments))) == 0
    for name in ("same", "less"):
        assert main(["eval", "report", str(folder / "whole"), str(folder / name)]) == 0


if __name__ == "__main__":
    given, made = map(Path, sys.argv[1:])
    made.mkdir(parents=True)
    write(given, made)
    evaluate(given, made)
    (made / "joined").mkdir()
    write_joined(given, made / "joined")
    write_invented(made / "invented")
    for kind in ("joined", "invented"):
        print(f"\n{kind}:")
        evaluate_bcapscore(made / kind)
