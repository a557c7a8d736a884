"""A cell whose training TRL's GRPOTrainer does: the same folder, images, rewards and sizes.

It is judged by our judge and its policy's held-out captions are written by our sampler. TRL draws
its own order of images and its own captions. A killed one begins again: TRL's state is not kept.
"""

import dataclasses
import shutil
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from balcap_jax.bench.trainer_sides import Work, trl_trainer
from balcap_jax.config.base import from_dict
from balcap_jax.config.commands import TrainConfig
from balcap_jax.data.examples import Example
from balcap_jax.errors import UserError
from balcap_jax.evidence.cell_loop import CellLoop
from balcap_jax.evidence.files import RESULT, RUN
from balcap_jax.models.hf.folders import policy_folder
from balcap_jax.rewards.captions import rewards_of
from balcap_jax.rewards.judges import make_judge, resolve_kind
from balcap_jax.rewards.verdicts import Judge
from balcap_jax.rl.masking import control_length
from balcap_jax.runs.folder import write_json_atomic
from balcap_jax.training.seams import Seams, open_data

# What TRL's side is not set up for; a cell that changes it would compare two things.
_PLAIN = ("study", "audit", "mesh")


def run_with_trl(folder: Path, cell: dict[str, Any], *, beside: dict[str, Any]) -> None:
    """Trains by TRL and writes result.json.

    Args:
      beside: what else the file says.

    Raises:
      UserError: a setting that TRL's side is not set up for.
    """
    began = time.perf_counter()
    scratch = folder / RUN
    shutil.rmtree(scratch, ignore_errors=True)
    config = from_dict(TrainConfig, {**cell["settings"], "out": str(scratch), "name": "eval"})
    _check(config)
    before = _scores(config, name="before")
    source, _ = open_data(config, Seams())
    rows = config.steps * config.prompts_per_step
    examples = [source[i] for i in range(min(rows, len(source)))]
    series: dict[str, list[float]] = defaultdict(list)
    base = policy_folder(config.model.path, revision=config.model.revision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages about one another
        trainer = trl_trainer(
            _work(config, base),
            scratch,
            rows=[{"prompt": e.prompt, "image": e.image, "row": i} for i, e in enumerate(examples)],
            reward_funcs=reward_functions(config, examples, series),
            **_settings(config),
        )
        trainer.train()
    after = _scores(
        dataclasses.replace(
            config,
            model=dataclasses.replace(
                config.model, path=str(_trained(trainer, base, scratch / "policy"))
            ),
        ),
        name="after",
    )
    write_json_atomic(
        folder / RESULT,
        {
            **beside,
            "scores": {"before": before, "after": after},
            "series": {"step": list(range(1, config.steps + 1)), **series},
            "steps": config.steps,
            "seconds": time.perf_counter() - began,
        },
    )
    shutil.rmtree(scratch, ignore_errors=True)


def reward_functions(
    config: TrainConfig, examples: Sequence[Example], series: dict[str, list[float]]
) -> list[Callable[..., list]]:
    """The rewards of the run with TRL's signature, the length control applied; the data have a
    column `row`, the place in `examples`.

    Args:
      series: gets the means of each batch that is judged, under the names of metrics.jsonl.
    """
    judge = make_judge(resolve_kind(config.judge, examples[0]), data=config.data.path)
    reward = config.reward

    @lru_cache(maxsize=2)  # all functions are called with one batch, one after the other
    def judged(rows: tuple[int, ...], captions: tuple[str, ...]) -> np.ndarray:
        rewards, kept, words = _rewarded(judge, [examples[row] for row in rows], captions, config)
        for k, name in enumerate(reward.names):
            series[f"reward/{name}/mean"].append(float(np.nanmean(rewards[:, k])))
        series["words"].append(float(words.mean()))
        return kept

    def function(k: int, name: str) -> Callable[..., list]:
        def reward_of(completions: Sequence[Any], row: Sequence[int], **_: Any) -> list:
            texts = tuple(c if isinstance(c, str) else c[0]["content"] for c in completions)
            column = judged(tuple(row), texts)[:, k]
            return [None if np.isnan(value) else float(value) for value in column]

        reward_of.__name__ = name
        return reward_of

    return [function(k, name) for k, name in enumerate(reward.names)]


def _rewarded(
    judge: Judge, examples: Sequence[Example], captions: Sequence[str], config: TrainConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rewards as judged [n k], after the length control [n k], words [n])."""
    reward = config.reward
    rewards = rewards_of(judge(examples, captions), reward.names, pointability=reward.pointability)
    words = np.array([len(caption.split()) for caption in captions], np.float32)
    if reward.control == "none":
        return rewards, rewards, words
    kept = control_length(
        reward.mask_mode if reward.control == "mask" else reward.control,
        rewards[:, None],
        words[:, None],
        np.array([len(e.reference.split()) for e in examples], np.float32),
        reward_index=reward.names.index("linguistic"),
        lower=reward.tau_l,
        upper=reward.tau_u,
        coefficient=reward.linear_coefficient,
    )
    return rewards, np.asarray(kept)[:, 0], words


def _scores(config: TrainConfig, *, name: str) -> dict[str, Any]:
    """Held-out scores of the policy that `config` starts from."""
    loop = CellLoop(dataclasses.replace(config, name=name), config.out / name, Seams())
    try:
        return loop.scores()
    finally:
        loop.close()


def _trained(trainer: Any, base: Path, folder: Path) -> Path:
    """TRL's policy as a folder: its weights in the files of the one that it started from."""
    saved = folder.with_name("saved")
    trainer.model.save_pretrained(saved)
    folder.mkdir(parents=True)
    for path in base.iterdir():
        if path.is_file() and not path.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.copy(path, folder)
    for path in saved.iterdir():
        if path.name.endswith((".safetensors", ".safetensors.index.json")):
            shutil.move(path, folder)
    return folder


def _work(config: TrainConfig, base: Path) -> Work:
    return Work(
        base,
        [],
        config.prompts_per_step,
        config.rollout.group_size,
        config.rollout.max_new_tokens,
        dtype=config.model.dtype,
        remat=config.model.remat,
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Our settings by TRL's names."""
    optim, rl = config.optim, config.rl
    return {
        "max_steps": config.steps,
        "seed": config.seed,
        "learning_rate": optim.learning_rate,
        "warmup_steps": optim.warmup_steps,
        "lr_scheduler_type": "constant_with_warmup",
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.b1,
        "adam_beta2": optim.b2,
        "max_grad_norm": optim.max_grad_norm,
        "temperature": config.rollout.temperature,
        "top_p": config.rollout.top_p,
        "epsilon": rl.clip_low,
        "epsilon_high": rl.clip_high,
        "loss_type": "dapo",
        "num_iterations": rl.updates_per_rollout,
        "reward_weights": list(config.reward.all_weights),
    }


def _check(config: TrainConfig) -> None:
    default = TrainConfig()
    for room in _PLAIN:
        if getattr(config, room) != getattr(default, room):
            raise UserError(f"a cell by TRL knows no {room}; leave it out of the cell.")
    for name, given, only in (
        ("rl.advantage", config.rl.advantage, "trl"),
        ("rl.kl_coef", config.rl.kl_coef, 0.0),
        ("rl.loss_normaliser", config.rl.loss_normaliser, "dapo"),
        ("optim.schedule", config.optim.schedule, "constant"),
        ("reward.rivals", config.reward.rivals, ()),
        ("reward.functions", config.reward.functions, ()),
        ("reward.length_unit", config.reward.length_unit, "words"),
        ("model.lora.on", config.model.lora.on, False),
    ):
        if given != only:
            raise UserError(f"a cell by TRL has {name}={only!r}, not {given!r}; change the cell.")
