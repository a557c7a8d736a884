"""Whole training steps by `balcap train` and by TRL's GRPOTrainer: the same folder, images, rewards
and sizes, in turns.

A step is everything between two batches: images to arrays, captions, rewards, advantages, update.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.bench import free_rewards
from balcap_jax.bench.one_device import OneDevice
from balcap_jax.bench.step_hf import peft_config
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RLConfig,
    RolloutConfig,
)
from balcap_jax.data.prompts.folder_parts import load_image_processor
from balcap_jax.plan.workloads.presets import LEARNING_RATE
from balcap_jax.runs.cores import usable_cores
from balcap_jax.training.seams import Seams

AGGREGATION = "normalize_then_sum"  # TRL's name of GDPO; our preset "trl" repeats it exactly


@dataclass(frozen=True)
class Work:
    """What both sides train.

    Attributes:
      folder: of the policy, which transformers reads as well.
      photos: images with their prompts; the last one is held out by our side, which needs one.
      batch, group, completion: B images a step, G captions of each, at most C tokens long.
      dtype: of the computation; our trained weights are float32, those of torch are of it.
      rewards: names in `free_rewards`.
      remat: of our update; TRL checkpoints its layers where this is not "none" or "dots".
      lora: rank of adapters on the decoder; 0: the decoder's weights are trained, and the tower is
        frozen on both sides.
    """

    folder: Path
    photos: Sequence[tuple[Any, str]]
    batch: int
    group: int
    completion: int
    dtype: str = "float32"
    rewards: tuple[str, ...] = ("letters",)
    remat: str = "none"
    lora: int = 0


class Turns(NamedTuple):
    """Seconds of each step by each side, in order.

    Attributes:
      compiled: of our steps, whether one made a program ready; the first one always does.
      trl_cpu, balcap_cpu: seconds of processors that the same took, which other work on the machine
        prolongs less.
    """

    trl: list[float]
    balcap: list[float]
    compiled: list[bool]
    trl_cpu: list[float]
    balcap_cpu: list[float]


def our_run(work: Work, scratch: Path, *, steps: int) -> OneDevice:
    """A run as `Trainer` makes it, of which only steps are made; to be closed."""
    rows = [{"image": image, "prompt": prompt, "caption": "w100"} for image, prompt in work.photos]
    lora = LoraConfig(rank=work.lora, alpha=2.0 * work.lora) if work.lora else LoraConfig()
    config = TrainConfig(
        out=scratch,
        name="ours",
        steps=steps,
        prompts_per_step=work.batch,
        loggers=(),
        model=ModelConfig(path=str(work.folder), dtype=work.dtype, remat=work.remat, lora=lora),
        data=DataConfig(path="memory", heldout=1),
        rollout=RolloutConfig(group_size=work.group, max_new_tokens=work.completion),
        reward=RewardConfig(
            names=(),
            weights=(),
            functions=tuple(f"balcap_jax.bench.free_rewards:{name}" for name in work.rewards),
            length_control="none",
        ),
        rl=RLConfig(advantage="trl"),
        optim=OptimConfig(learning_rate=LEARNING_RATE, warmup_steps=0),
    )
    return OneDevice(config, scratch / "ours", Seams(train_rows=rows[:-1], eval_rows=rows[-1:]))


def in_turns(work: Work, scratch: Path, *, steps: int, vllm: bool = False) -> Turns:
    """TRL's loop is the one that runs: after each of its steps comes one of ours."""
    turns = Turns([], [], [], [], [])
    ours = our_run(work, scratch, steps=steps)

    def after(seconds: float, of_processors: float) -> None:
        turns.trl.append(seconds)
        turns.trl_cpu.append(of_processors)
        made, start = ours.compilations.programs, _clocks()
        ours.make_step()
        seconds, of_processors = _since(start)
        turns.balcap.append(seconds)
        turns.balcap_cpu.append(of_processors)
        turns.compiled.append(ours.compilations.programs > made)

    try:
        train_with_trl(work, scratch, steps=steps, after=after, vllm=vllm)
    finally:
        ours.close()
    return turns


def has_vllm() -> bool:
    """Whether TRL can sample with vLLM here."""
    if find_spec("vllm") is None:
        return False
    import torch

    return torch.cuda.is_available()


def train_with_trl(
    work: Work,
    scratch: Path,
    *,
    steps: int,
    after: Callable[[float, float], None] = lambda seconds, of_processors: None,
    vllm: bool = False,
) -> None:
    """Steps by TRL, as fast as it can be set up.

    Args:
      after: is called with the seconds of each step, on the wall's clock and of processors, the
        drawing of its batch included; what it takes itself is in no step.
      vllm: TRL samples with vLLM on the same GPU, not with transformers.
    """
    from transformers import TrainerCallback

    class AfterEach(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = _clocks()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            after(*_since(self.start))
            self.start = _clocks()

    sampler = {"use_vllm": True, "vllm_mode": "colocate"} if vllm else {}
    trainer = trl_trainer(
        work,
        scratch,
        rows=[{"prompt": prompt, "image": image} for image, prompt in work.photos[:-1]],
        reward_funcs=[getattr(free_rewards, name) for name in work.rewards],
        callbacks=[AfterEach()],
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        **sampler,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages about one another
        trainer.train()


def trl_trainer(
    work: Work,
    scratch: Path,
    *,
    rows: Sequence[dict[str, Any]],
    reward_funcs: Sequence[Callable[..., list]],
    callbacks: Sequence[Any] = (),
    **settings_of_trl: Any,
) -> Any:
    """TRL's GRPOTrainer of this work, as GDPO with clipping and without KL, silent.

    Args:
      work: of which photos and rewards are not read.
      rows: with `prompt`, a text, `image`, and further columns for the rewards.
      reward_funcs: with TRL's signature.
      settings_of_trl: of its GRPOConfig, over those that `work` gives.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        torch.set_num_threads(usable_cores())
    settings = GRPOConfig(
        output_dir=str(scratch / "trl"),
        per_device_train_batch_size=work.batch * work.group,
        num_generations=work.group,
        max_completion_length=work.completion,
        beta=0.0,
        multi_objective_aggregation=AGGREGATION,
        # What is faster where it fits; our side's `remat` likewise.
        gradient_checkpointing=work.remat not in ("none", "dots"),
        bf16=work.dtype == "bfloat16",
        use_cpu=on_cpu,
        report_to=[],
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
        **settings_of_trl,
    )
    asked = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages about one another
        trainer = GRPOTrainer(
            model=_torch_model(work),
            reward_funcs=list(reward_funcs),
            args=settings,
            train_dataset=Dataset.from_list(asked),
            processing_class=_processor(work.folder),
            peft_config=peft_config(work.lora) if work.lora else None,
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)  # of a line of its own at the end
    return trainer


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _since(start: tuple[float, float]) -> tuple[float, float]:
    """Seconds on the wall's clock, and of processors."""
    wall, of_processors = _clocks()
    return wall - start[0], of_processors - start[1]


def _torch_model(work: Work) -> Any:
    """The policy of the folder, its tower frozen."""
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        work.folder,
        dtype=getattr(torch, work.dtype),
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "visual" not in name  # what our side trains by default
    return model


def _processor(folder: Path) -> Any:
    """transformers' processor without its part for videos, which wants torchvision."""
    from transformers import AutoTokenizer, Qwen2_5_VLProcessor

    class ImagesOnly(Qwen2_5_VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, padding_side="left"
    )
    return ImagesOnly(
        load_image_processor(folder), tokenizer, None, chat_template=tokenizer.chat_template
    )
