"""`balcap eval`: captions of a model on a benchmark, judged and scored; nothing is asked twice."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from balcap_jax.config.evaluation import (
    BCapScoreConfig,
    CapArenaConfig,
    CaptionQAConfig,
    DCScoreConfig,
    EvalAllConfig,
)
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.errors import UserError
from balcap_jax.evaluation import (
    bcapscore_run,
    caparena,
    caparena_run,
    captionqa,
    captionqa_data,
    captionqa_run,
    dcscore_run,
    prompts,
    results,
)
from balcap_jax.evaluation.asking import Asker, Spent, clocks
from balcap_jax.evaluation.captioning import Wanted, captions_of, cut_captions
from balcap_jax.evaluation.official import official_prompts
from balcap_jax.evaluation.prompts import Prompts
from balcap_jax.rewards.llm.accounting import listing
from balcap_jax.runs.folder import plain, write_json_atomic
from balcap_jax.runs.progress import announce
from balcap_jax.storage.local import edited_folder, fetched
from balcap_jax.storage.paths import as_path, is_remote

_OURS = {"dcscore": prompts.DCSCORE, "captionqa": prompts.CAPTIONQA, "caparena": prompts.CAPARENA}


def evaluate(benchmark: str, config: Any) -> results.Results:
    """One benchmark; its results are in the folder that is returned.

    Raises:
      UserError: captions, data or judge cannot be used; what was made and answered is kept.
    """
    folder = folder_of(config) / benchmark
    if not is_remote(folder):
        return _STORIES[benchmark](config)
    with edited_folder(folder) as local:
        found = _STORIES[benchmark](dataclasses.replace(config, out=local.parent))
    return found._replace(folder=folder)


def evaluate_all(config: EvalAllConfig, *, done: Callable[[results.Results], None]) -> None:
    """Every benchmark whose data are given, one after another.

    Args:
      done: called with what each found, as soon as it is there.

    Raises:
      UserError: as `evaluate`, after the others are done: one benchmark that fails costs no other.
    """
    errors = []
    for benchmark, inner in config.benchmarks().items():
        try:
            done(evaluate(benchmark, inner))
        except UserError as error:
            announce(f"{results.TITLES[benchmark]}: {error}")
            errors.append(error)
    if errors:
        raise errors[0]


def folder_of(config: Any) -> Path:
    """Where the results of all benchmarks lie."""
    if config.out is not None:
        return config.out
    model = as_path(config.model)
    if config.model and (model / "metrics.jsonl").is_file():
        return model / "eval"
    return Path("runs") / name_of(config) / "eval"


def name_of(config: Any) -> str:
    """The name of the model in reports."""
    if config.name:
        return config.name
    if config.captions is not None:
        return config.captions.stem
    return Path(config.model).name or "model"


# One benchmark each -------------------------------------------------------------------------------


def _dcscore(config: DCScoreConfig) -> results.Results:
    facts = _given(config.facts, "facts", "the oracle facts of DeCapBench")
    images = fetched(_given(config.images, "images", "the folder of the images"))
    folder, asked = _start(config, "dcscore")
    oracles = dcscore_run.read_facts(facts)
    files = {name: images / name for name in oracles}
    captions = _captions(config, files, images, folder, data=facts)
    with _asker(config, asked, "dcscore", folder) as asker:
        began = clocks()
        items = dcscore_run.judge_images(
            asker,
            captions,
            oracles,
            files,
            matchings=config.matchings,
            verifications=config.verifications,
        )
        spent, failures = asker.spent(since=began), asker.failures
    counts = _counts(files, captions, dcscore_run.counts(items), cut_captions(config, folder))
    record = _record("dcscore", config, asked, items, counts, spent, failures,
                     trials=[config.matchings, config.verifications], data=str(facts))  # fmt: skip
    dcscore_run.write_official(folder, items)
    return _written(folder, record, items, files, config)


def _captionqa(config: CaptionQAConfig) -> results.Results:
    folder, asked = _start(config, "captionqa")
    if config.download:
        announce(
            f"{captionqa_data.REPOSITORY} is under the licence {captionqa_data.LICENCE}; its page "
            "says what that allows"
        )
        data = captionqa_data.download()
    else:
        data = fetched(_given(config.data, "data", "the questions of CaptionQA"))
    entries = captionqa_data.read_entries(data)
    lost, first = captionqa_data.skipped(entries)
    if lost:
        announce(f"{lost} questions are skipped, as the official code does; {first}")
    permutations = captionqa.permutations(entries)
    chosen = _of_domains(entries, config.domains, data)
    others = {entry.id for entry in entries} - {entry.id for entry in chosen}
    captions = _captions_of_entries(config, chosen, folder, data=data, passed_over=others)
    with _asker(config, asked, "captionqa", folder) as asker:
        began = clocks()
        items = captionqa_run.judge_questions(asker, captions, chosen, permutations=permutations)
        spent, failures = asker.spent(since=began), asker.failures
    counts = _counts(
        {e.id: e for e in chosen},
        captions,
        captionqa_run.counts(items),
        cut_captions(config, folder),
    )
    counts["skipped"], _ = captionqa_data.skipped([e for e in chosen if e.id in captions])
    record = _record("captionqa", config, asked, items, counts, spent, failures,
                     domains=captionqa.groups(items, "domain"),
                     categories=captionqa.groups(items, "category"),
                     data=str(data if config.download else config.data))  # fmt: skip
    captionqa_run.write_official(folder, items, permutations)
    shown = {e.id: _opened(config.images, e.images[0]) for e in chosen if e.images}
    return _written(folder, record, items, shown, config)


def _caparena(config: CapArenaConfig) -> results.Results:
    data = _given(config.data, "data", "the battles of caparena_auto_600.json")
    images = fetched(_given(config.images, "images", "the folder of the images"))
    folder, asked = _start(config, "caparena")
    every, model = caparena_run.read_battles(data), caparena.baseline_of(name_of(config))
    # A baseline does not battle itself.
    battles = {name: battle for name, battle in every.items() if battle.baseline != model}
    if not battles:
        raise UserError(
            f"data={data} has battles against {model} alone, and name={name_of(config)!r} says "
            "that the captions are its own; give another --name, or all battles."
        )
    files = {name: images / name for name in battles}
    own = every.keys() - battles.keys()
    captions = _captions(config, files, images, folder, data=data, passed_over=own)
    first = caparena.orders(list(battles), seed=config.seed)
    write_json_atomic(folder / "orders.json", {"seed": config.seed, "ours_first": first})
    with _asker(config, asked, "caparena", folder) as asker:
        began = clocks()
        items = caparena_run.judge_battles(
            asker, captions, battles, files, first=first, both_orders=config.both_orders
        )
        spent, failures = asker.spent(since=began), asker.failures
    counts = _counts(files, captions, caparena_run.counts(items), cut_captions(config, folder))
    record = _record("caparena", config, asked, items, counts, spent, failures,
                     against=caparena.against(items), flip_share=caparena.flip_share(items),
                     data=str(data))  # fmt: skip
    caparena_run.write_official(folder, items, model=name_of(config))
    return _written(folder, record, items, files, config)


def _bcapscore(config: BCapScoreConfig) -> results.Results:
    data = _given(config.data, "data", "images with references")
    folder = folder_of(config) / "bcapscore"
    examples = bcapscore_run.open_examples(data)
    rows = [examples.row(place) for place in range(len(examples))]
    wanted = [Wanted(row.id, row.image, row.prompt) for row in rows]
    captions = captions_of(config, wanted, folder, data=data)
    _make_folder(config, folder)
    began = clocks()
    items, named, ledger = bcapscore_run.judge_captions(
        config.judge, captions, examples, data=data
    )  # fmt: skip
    wall, cpu = (now - then for now, then in zip(clocks(), began, strict=True))
    spent = Spent(ledger, wall, 1000 * cpu / max(ledger.get("calls", 0), 1)) if ledger else None
    counts = _counts(
        {row.id: row for row in rows},
        captions,
        bcapscore_run.counts(items),
        cut_captions(config, folder),
    )
    record = results.record_of(
        "bcapscore",
        items,
        title=results.title_of("bcapscore", judge=named, prompts=None),
        model=name_of(config),
        seed=config.seed,
        counts=counts,
        spent=spent,
        judge={"model": named},
        captions=_source(config),
        data=str(data),
    )
    write_json_atomic(folder / "captions.json", {item["id"]: item["caption"] for item in items})
    return _written(folder, record, items, {row.id: row.image for row in rows}, config)


_STORIES: dict[str, Callable[[Any], results.Results]] = {
    "dcscore": _dcscore,
    "captionqa": _captionqa,
    "caparena": _caparena,
    "bcapscore": _bcapscore,
}


# What they share ----------------------------------------------------------------------------------


def _given(path: Path | None, name: str, what: str) -> Path:
    if path is None:
        raise UserError(f"{name}=None names no file or folder of {what}; give it with --{name}.")
    return path


def _start(config: Any, benchmark: str) -> tuple[Path, Prompts]:
    """The folder of the results, and the prompts."""
    if config.official is None:
        return folder_of(config) / benchmark, _OURS[benchmark]
    return folder_of(config) / benchmark, official_prompts(benchmark, config.official)


def _asker(config: Any, asked: Prompts, benchmark: str, folder: Path) -> closing[Asker]:
    """What asks the judge, once the results can be written."""
    _make_folder(config, folder)
    return closing(Asker(config.judge, asked, benchmark=benchmark))


def _make_folder(config: Any, folder: Path) -> None:
    """The folder of the results, and a line where it has those of other captions."""
    results.make_folder(folder)
    there = results.captions_of(folder)
    if there is not None and there != plain(_source(config)):
        told = there.get("file") or there.get("model")
        announce(
            f"{folder.name} has results of other captions ({told}), which these are going to "
            "replace"
        )


def _captions(
    config: Any,
    files: Mapping[str, Path],
    images: Path,
    folder: Path,
    *,
    data: Path,
    passed_over: Collection[str] = (),
) -> Mapping[str, str]:
    """The captions of the images, all of which can be read."""
    wanted = [Wanted(name, path) for name, path in files.items()]
    if config.captions is None:
        results.check_images(files, folder=images, of=str(data))
    captions = captions_of(config, wanted, folder, data=data, passed_over=passed_over)
    if config.captions is not None:
        results.check_images({n: files[n] for n in captions}, folder=images, of=str(data))
    return captions


def _captions_of_entries(
    config: CaptionQAConfig,
    entries: list[captionqa.Entry],
    folder: Path,
    *,
    data: Path,
    passed_over: Collection[str],
) -> Mapping[str, str]:
    if config.captions is not None:
        wanted = [Wanted(entry.id, None) for entry in entries]
        return captions_of(config, wanted, folder, data=data, passed_over=passed_over)
    shown = [entry for entry in entries if entry.images]
    if len(shown) < len(entries) and not config.allow_missing:
        other = next(entry for entry in entries if not entry.images)
        raise UserError(
            f"data={data} names no image of {len(entries) - len(shown)} entries ({other.id}); give "
            "their captions with --captions, or leave them out with --allow-missing."
        )
    files = {e.id: [_opened(config.images, image) for image in e.images] for e in shown}
    paths = {
        name if len(of) == 1 else f"{name} ({file.name})": file
        for name, of in files.items()
        for file in of
        if isinstance(file, Path)
    }
    results.check_images(paths, folder=config.images or Path(), of=str(data))
    wanted = [Wanted(name, of[0], more=tuple(of[1:])) for name, of in files.items()]
    return captions_of(config, wanted, folder, data=data)


def _opened(folder: Path | None, image: Any) -> Any:
    return fetched(folder or Path()) / image if isinstance(image, str) else image


def _of_domains(
    entries: list[captionqa.Entry], domains: tuple[str, ...], data: Path
) -> list[captionqa.Entry]:
    known = {entry.domain for entry in entries}
    for domain in domains:
        if domain not in known:
            raise UserError(
                f"domains holds {domain!r}, which {data} does not have; it has "
                f"{', '.join(sorted(known))}."
            )
    return [entry for entry in entries if not domains or entry.domain in domains]


def _counts(
    planned: Mapping[str, Any], captions: Mapping[str, str], *more: Mapping[str, int]
) -> dict[str, int]:
    found = {"planned": len(planned), "missing": len(planned) - len(captions)}
    for counts in more:
        found |= counts
    return found


def _record(
    benchmark: str, config: Any, asked: Prompts, items: Any, counts: Any, spent: Spent,
    failures: Any, **told: Any,
) -> dict[str, Any]:  # fmt: skip
    judge: JudgeConfig = config.judge
    return results.record_of(
        benchmark,
        items,
        title=results.title_of(benchmark, judge=judge.model, prompts=asked),
        model=name_of(config),
        seed=config.seed,
        counts=counts,
        spent=spent,
        judge={"model": judge.model, "image_side": judge.image_side, "prompts": asked.version},
        captions=_source(config),
        failures=listing(failures),
        **told,
    )


def _source(config: Any) -> dict[str, Any]:
    """Where the captions come from."""
    if config.captions is not None:
        return {"file": str(config.captions)}
    names = ("model", "revision", "checkpoint", "prompt", "max_new_tokens", "temperature", "top_p")
    return {name: getattr(config, name) for name in names}


def _written(
    folder: Path, record: Any, items: Any, images: Mapping[str, Any], config: Any
) -> results.Results:
    results.write(folder, record, items, images, shown=config.shown)
    return results.Results(folder, record, items)
