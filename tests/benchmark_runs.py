"""`balcap eval` on an invented benchmark with a judge that goes by rules, and what it wrote."""

import json

from balcap_jax.cli.main import main


def run(world, server, benchmark, captions, out, *more, cache=None, url=None) -> int:
    data = {
        "dcscore": ["--facts", world.folder / "facts.jsonl", "--images", world.images],
        "captionqa": ["--data", world.folder / "questions.jsonl", "--images", world.images],
        "caparena": ["--data", world.folder / "battles.json", "--images", world.images],
        "bcapscore": ["--data", world.folder / "photos.jsonl"],
    }[benchmark]
    asked = [] if benchmark == "bcapscore" else [
        "--judge.base-url", url or server.url, "--judge.cache", cache or out / "cache.sqlite",
        "--judge.backoff", "0.01", "--judge.model", "ruler",
    ]  # fmt: skip
    return main(
        ["eval", benchmark, "--captions", *map(str, [captions, "--out", out, *data, *asked, *more])]
    )


def record(out, benchmark):
    return json.loads((out / benchmark / "result.json").read_text())


def values(out, benchmark):
    return {name: value["value"] for name, value in record(out, benchmark)["values"].items()}
