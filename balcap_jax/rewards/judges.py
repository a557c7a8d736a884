"""From settings to a judge."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balcap_jax.config.base import to_dict
from balcap_jax.config.files import RESUMABLE
from balcap_jax.config.judge import POLICY, RULES, JudgeConfig
from balcap_jax.data.examples import Example, Source
from balcap_jax.data.sources import SCENES
from balcap_jax.errors import UserError
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.rewards.verdicts import FITTED_ON, FittedJudge, Judge

if TYPE_CHECKING:
    from jax.sharding import Mesh


def resolve_kind(judge: JudgeConfig, example: Example) -> JudgeConfig:
    """`judge` with a kind in place of "auto": the one that fits data with examples like this.

    Raises:
      UserError: none does, because there are neither scenes nor references.
    """
    if judge.kind != "auto":
        return judge
    if example.scene is not None:
        return dataclasses.replace(judge, kind="scene")
    if example.reference or example.references:
        return dataclasses.replace(judge, kind="lexical")
    raise UserError(
        f"judge.kind='auto' finds neither a scene nor a reference caption in the example "
        f"{example.id!r}; add captions to the data, set --judge.kind llm with a --judge.model, or "
        "train on --reward.functions of your own with no --reward.names."
    )


def make_judge(
    judge: JudgeConfig,
    *,
    data: str | Path | None,
    example: Example | None = None,
    mesh: "Mesh | None" = None,
    policy: Path | None = None,
) -> Judge:
    """The judge that `judge.kind` names, which is not "auto" any more; its libraries are imported
    here.

    Args:
      data: the data file, beside which reference units may be stored, "scenes", or None where the
        captions come from no such data.
      example: one of the data, for kind "model", which leaves recall to the judge that fits them.
      mesh: the devices of models; default: the first one.
      policy: the folder that a run starts from, without which no judge can be fitted.

    Raises:
      UserError: the judge lacks a setting or a library, or is not for these data.
    """
    assert judge.kind != "auto", "resolve_kind comes first"
    if judge.fluency != RULES and (policy is None or example is None):
        raise UserError(
            f"judge.fluency={judge.fluency!r} is fitted to the data of a run, for which `balcap "
            "train` alone fits its own judge; leave it at rules."
        )
    if judge.kind == "lexical":
        if str(data) == SCENES:
            raise UserError(
                "judge.kind='lexical' knows only the words of references, and data.path='scenes' "
                "has the whole truth; set --judge.kind scene, or give photos by --data.path."
            )
        from balcap_jax.rewards.lexical.judge import LexicalJudge  # noqa: PLC0415

        if judge.fluency == RULES:
            return LexicalJudge()
        assert policy is not None
        assert example is not None
        return _fluent(LexicalJudge(), judge, example, policy=policy, mesh=mesh)
    if judge.kind == "llm":
        from balcap_jax.rewards.llm.judge import LLMJudge  # noqa: PLC0415
        from balcap_jax.rewards.llm.stored_units import StoredUnits, units_path  # noqa: PLC0415

        stored = None if data is None or str(data) == SCENES else StoredUnits(units_path(data))
        return LLMJudge(judge, stored=stored)
    if judge.kind == "model":
        assert example is not None
        fluent = {} if judge.fluency == RULES else {"fluency": judge.fluency, "dtype": judge.dtype}
        beside = resolve_kind(JudgeConfig(**fluent), example)
        words = make_judge(beside, data=data, example=example, mesh=mesh, policy=policy)
        return _model_judge(judge, words, mesh=mesh)
    return SceneJudge()


def _model_judge(judge: JudgeConfig, beside: Judge, *, mesh: "Mesh | None") -> Judge:
    from balcap_jax.models.hf.folders import policy_folder  # noqa: PLC0415
    from balcap_jax.rewards.model.judge import ModelJudge  # noqa: PLC0415
    from balcap_jax.rewards.model.scorer import StatementScorer  # noqa: PLC0415

    with _named("model", judge.model):
        scorer = StatementScorer.load(
            policy_folder(judge.model),
            mesh=_mesh_of_host(mesh),
            dtype=judge.dtype,
            images=judge.images_per_pass,
            image_side=judge.image_side,
        )
    return ModelJudge(scorer, beside, name=judge.model)


def _fluent(
    words: Judge, judge: JudgeConfig, example: Example, *, policy: Path, mesh: "Mesh | None"
) -> Judge:
    from balcap_jax.models.hf.folders import policy_folder  # noqa: PLC0415
    from balcap_jax.rewards.model.fluency import FluentJudge  # noqa: PLC0415
    from balcap_jax.rewards.model.text_scorer import TextScorer  # noqa: PLC0415

    with _named("fluency", judge.fluency):
        logprobs = TextScorer.load(
            policy if judge.fluency == POLICY else policy_folder(judge.fluency),
            mesh=_mesh_of_host(mesh),
            dtype=judge.dtype,
            prompt=example.prompt,
        )
    name = "the start policy" if judge.fluency == POLICY else judge.fluency
    return FluentJudge(words, logprobs, name=name)


def _mesh_of_host(mesh: "Mesh | None") -> "Mesh":
    """The devices that models judge on: those of this host alone where there are several, since
    hosts judge different captions, and no program of theirs may wait for another's.
    """
    import jax  # noqa: PLC0415

    from balcap_jax.parallel.sharding import make_mesh  # noqa: PLC0415

    if jax.process_count() > 1:
        return make_mesh(data=1, fsdp=-1, devices=jax.local_devices())
    return make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh


@contextmanager
def _named(setting: str, value: str) -> Iterator[None]:
    """Errors of a folder say which setting named it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"judge.{setting}={value!r}: {error}") from error


def fit_judge(judge: FittedJudge, source: Source) -> None:
    """Fits a judge to the first examples of the data that it is going to judge.

    Raises:
      UserError: see `FittedJudge.fit`.
    """
    judge.fit([source[i] for i in range(min(len(source), FITTED_ON))])


def judge_record(judge: JudgeConfig, given: Judge | None = None) -> dict[str, Any]:
    """What a run writes down of its judge: what its verdicts depend on.

    Args:
      given: a judge of the caller's own in its place.
    """
    if given is not None:
        return {"kind": type(given).__name__}
    if judge.kind == "lexical":
        from balcap_jax.rewards.lexical.judge import VERSION  # noqa: PLC0415

        return {"kind": judge.kind, "version": VERSION}
    if judge.kind == "model":
        return {"kind": judge.kind, "model": judge.model}
    if judge.kind != "llm":
        return {"kind": judge.kind}
    from balcap_jax.rewards.llm.questions import VERSION  # noqa: PLC0415

    return {"kind": judge.kind, "model": judge.model, "prompts": VERSION}


def judge_settings(judge: JudgeConfig) -> dict[str, Any]:
    """The settings of a judge beside its kind and model that its verdicts depend on, where they
    are not the default.
    """
    default = JudgeConfig(kind=judge.kind, model=judge.model)
    return {
        name: value
        for name, value in to_dict(judge).items()
        if f"judge.{name}" not in RESUMABLE and value != to_dict(default)[name]
    }


def check_same_judge(then: dict[str, Any], now: dict[str, Any], *, run: Path) -> None:
    """Refuses to go on with a run whose records of its judge differ.

    Raises:
      UserError: the rules or prompts have another version; settings are compared elsewhere.
    """
    if then.get("kind") != now.get("kind"):
        raise UserError(
            f"{run} was judged by {then.get('kind')}, not by {now.get('kind')}, and the steps "
            "would no longer be one run; resume it with the judge it had, or start a new run."
        )
    # The rules of the first version were not numbered in the runs.
    if then.get("version", "1") != now.get("version", "1"):
        raise UserError(
            f"{run} was judged by the rules of version {then.get('version', '1')}, this balcap_jax "
            f"has version {now.get('version', '1')}, and the steps would no longer be one run; "
            "resume with the balcap_jax that started it, or start a new run with --name."
        )
    if then.get("prompts") != now.get("prompts"):
        raise UserError(
            f"{run} was judged with the prompts of version {then.get('prompts')}, this balcap_jax "
            f"has version {now.get('prompts')}, and the steps would no longer be one run; resume "
            "with the balcap_jax that started it, or start a new run with --name."
        )
