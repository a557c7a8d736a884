"""Small invented benchmarks on drawn images, and a judge that answers their questions by rules.

The rules read what a request says and nothing else, so that numbers can be told by hand.
"""

import json
import random
import re
from pathlib import Path
from typing import Any, NamedTuple

from judge_server import judge
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow", "white", "black")
THINGS = ("kite", "barrel", "lantern", "bicycle", "teapot", "ladder")
PLACES = ("on a roof", "in a field", "by a wall", "under a bridge", "on a table", "near a door")
BASELINES = {"gpt": "GPT-4o-0806", "cog": "CogVLM2-llama3-chat-19B", "cpm": "MiniCPM-V2.6-8B"}
DOMAINS = ("natural", "document", "ecommerce", "embodiedai")


class World(NamedTuple):
    """Files of all benchmarks, about the same images."""

    folder: Path
    names: list[str]
    sentences: dict[str, list[str]]

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def captions_without_a_third(self, name: str) -> Path:
        """A file of captions without one of their three sentences. It is drawn of the two that tell
        what no other does: the first, that there is a thing, is said again by both.
        """
        path, rng = self.folder / name, random.Random(0)
        said = {n: f"{s[0]} {rng.choice(s[1:])}" for n, s in self.sentences.items()}
        path.write_text(json.dumps(said))
        return path

    def captions(self, name: str, *, drop: int = 0, keys: dict[str, str] | None = None) -> Path:
        """A file of captions without the last `drop` sentences of each."""
        path = self.folder / name
        said = {
            (keys or {}).get(n, n): " ".join(s[: len(s) - drop]) for n, s in self.sentences.items()
        }
        path.write_text(json.dumps(said))
        return path


def make_world(folder: Path, count: int = 6) -> World:
    """Writes images, oracle facts, questions, battles and references."""
    (folder / "images").mkdir(parents=True)
    names, sentences = [], {}
    facts, entries, battles, rows = [], [], {}, []
    for i in range(count):
        name = f"test_{i:05d}.jpg"
        colour, thing, place = COLOURS[i % 6], THINGS[(i * 5 + i // 6) % 6], PLACES[(i // 2) % 6]
        Image.new("RGB", (48 + i, 40), colour).save(folder / "images" / name)
        told = [f"There is a {thing}.", f"The {thing} is {colour}.", f"The {thing} is {place}."]
        names.append(name)
        sentences[name] = told
        # One fact that no caption tells.
        facts.append({"image_name": name, "oracle_caption": " ".join(told),
                      "oracle_facts": [*told, "The sky is grey."]})  # fmt: skip
        choices = [colour, *(c for c in COLOURS if c != colour)][:4]
        entries.append(
            {
                "id": name,
                "domain": DOMAINS[i % 4],
                "image_paths": [name],
                "questions": [
                    {"question": "What colour is it?", "choices": choices, "answer": colour,
                     "category": ["colour"]},
                    {"question": "Is it a thing?", "choices": ["Yes", "No"], "answer": "Yes",
                     "category": ["kind"]},
                    {"question": "What is shown?", "choices": [thing, "otter", "harp"],
                     "answer": thing, "category": ["kind"]},
                    {"question": "What sounds?", "choices": ["a bell", "a horn"], "answer": "none"},
                ],
            }
        )  # fmt: skip
        short = list(BASELINES)[i % 3]
        battles[name] = {
            "captions": {
                "human": " ".join(told),
                short: f"There is a {thing}. The {thing} is {place}.",
            },
            "ref_model": BASELINES[short],
        }
        rows.append({"image": f"images/{name}", "id": name, "caption": " ".join(told)})
    write = lambda name, text: (folder / name).write_text(text)  # noqa: E731
    lines = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)  # noqa: E731
    write("facts.jsonl", lines(facts))
    write("questions.jsonl", lines(entries))
    write("battles.json", json.dumps(battles))
    write("photos.jsonl", lines(rows))
    return World(folder, names, sentences)


# The judge ----------------------------------------------------------------------------------------


def answer(body: dict[str, Any]) -> str:
    """The answer to a request of any benchmark, of b-CapScore that of the arithmetic judge."""
    content = body["messages"][1]["content"]
    if not isinstance(content, str) and any(p.get("text", "")[:1] == "{" for p in content):
        return json.dumps(judge(body))
    text = content if isinstance(content, str) else content[-1]["text"]
    if "Now the caption to split:" in text:
        return extract(text.rpartition("Now the caption to split:\n")[2])
    if "Oracle facts:" in text:
        predicted, oracle = text.rpartition("Predicted facts:")[2].split("Oracle facts:")
        return match(rows(predicted), rows(oracle))
    if "Reference caption:" in text and "Facts:" in text:
        reference, facts = text.rpartition("Reference caption:")[2].split("Facts:")
        return verify(rows(facts), reference)
    if "Options:" in text:
        return choose(text)
    return battle(text)


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[2:-1]) for line in text.splitlines() if line.startswith("  {")]


def fenced(rows: list[dict[str, Any]]) -> str:
    return "Here it is.\n```json\n" + json.dumps(rows) + "\n```"


def extract(caption: str) -> str:
    told = [part.strip() for part in re.split(r"(?<=\.)\s+", caption) if part.strip()]
    return fenced([{"fact": s, "relevance": int("perhaps" not in s.lower())} for s in told])


def match(predicted, oracle) -> str:
    ids = {row["fact"].lower(): row["id"] for row in oracle}
    return fenced(
        [{"fact": row["fact"], "matched_oracle_id": ids.get(row["fact"].lower(), "None")}
         for row in predicted]
    )  # fmt: skip


def verify(facts, reference: str) -> str:
    known = words(reference)
    return fenced(
        [{"fact": row["fact"], "verification": int(words(row["fact"]) <= known)} for row in facts]
    )


def choose(text: str) -> str:
    caption = words(text.partition("Caption:")[2].partition("Question:")[0])
    options = re.findall(r"^([A-Z])\. (.*)$", text.rpartition("Options:")[2], re.M)
    for letter, option in options:
        if words(option) <= caption:
            return letter
    for letter, option in options:
        if option.startswith(("Cannot", "Yes")):
            return letter
    return "none of them"


def battle(text: str) -> str:
    one, two, reference = re.findall(
        r"Caption 1:\n(.*?)\n\nCaption 2:\n(.*?)\n\nReference caption:\n(.*?)\n\n", text, re.S
    )[0]
    known = words(reference)
    scores = [len(words(caption) & known) for caption in (one, two)]
    if scores[0] == scores[1]:
        return "Reason: both tell as much.\nJudgment: Tie."
    better = 1 if scores[0] > scores[1] else 2
    return f"Reason: it tells more of the reference.\nJudgment: Caption {better} is better."


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
