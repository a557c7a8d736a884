"""`balcap reproduce`: claims of the paper tested by many runs, and the page of what came of it."""

from importlib.util import find_spec

from balcap_jax.cli.flags import parse
from balcap_jax.config.evidence import EvidenceReportConfig, ReproduceConfig

_EXIT_NOTHING = 1
_TRL = ("torch", "trl", "datasets")


def reproduce(arguments: list[str]) -> None:
    """`balcap reproduce ARGUMENTS`.

    Raises:
      UserError: a claim, a flag or a setting of a cell is wrong, or the folder is of other code.
      SystemExit: a cell failed.
    """
    if arguments[:1] == ["report"]:
        _report(arguments[1:])
        return
    count = next((i for i, x in enumerate(arguments) if x.startswith("-")), len(arguments))
    wanted, flags = arguments[:count], arguments[count:]
    config = parse(ReproduceConfig, flags, "reproduce")

    from balcap_jax.evidence.claims import chosen_claims, read_claims, shipped_claims
    from balcap_jax.evidence.code_version import code_version
    from balcap_jax.evidence.plan import plan_of
    from balcap_jax.evidence.report import report
    from balcap_jax.evidence.runner import default_jobs, open_folder, run_cells
    from balcap_jax.runs.progress import announce

    claims = read_claims(config.claims or shipped_claims())
    chosen = chosen_claims(claims, wanted)
    code = code_version()
    plan = plan_of(chosen, seeds=config.seeds, code=code)
    missing = [name for name in _TRL if find_spec(name) is None]
    if missing and any(planned.cell.kind == "trl" for planned in plan):
        announce(
            f"cells by TRL are left out, because {missing[0]} is not installed; pip install "
            "'balcap_jax[test]' for them"
        )
        plan = [planned for planned in plan if planned.cell.kind != "trl"]
    open_folder(config.out, code=code)
    announce(f"{len(plan)} cells of {len(chosen)} claims in {config.out}, code {code}")
    try:
        came = run_cells(
            plan,
            config.out,
            code=code,
            budget=config.seconds,
            jobs=config.jobs or default_jobs(),
            tell=announce,
        )
    except KeyboardInterrupt:
        announce("stopped, all saved; the same command goes on")
        raise
    announce(
        f"{len(came.done)} of {len(plan)} cells are done, {len(came.left)} are left, "
        f"{len(came.taken)} are with another runner, {len(came.failed)} failed"
    )
    for path in report(config.out, chosen, docs=config.docs or config.out, seeds=config.seeds):
        print(path)
    if came.failed:
        raise SystemExit(_EXIT_NOTHING)


def _report(arguments: list[str]) -> None:
    config = parse(EvidenceReportConfig, arguments, "reproduce report")

    from balcap_jax.evidence.claims import chosen_claims, read_claims, shipped_claims
    from balcap_jax.evidence.report import report

    claims = chosen_claims(read_claims(config.claims or shipped_claims()), config.only)
    docs = config.docs or config.folder
    for path in report(config.folder, claims, docs=docs, seeds=config.seeds):
        print(path)
