"""`balcap bench step --lora --against trl`: whole training steps beside TRL's own GRPOTrainer with
peft, of the same folder, images and rewards, in turns.

A step is everything between two batches: images to arrays, captions, rewards, advantages, update.
"""

import json as json_text
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from balcap_jax.bench.step import versions
from balcap_jax.bench.step_hf import check_installed, peft_config
from balcap_jax.bench.step_lora import RANK
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.sections import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    RewardConfig,
    RLConfig,
    RolloutConfig,
)
from balcap_jax.data.prompts.folder_parts import load_image_processor
from balcap_jax.parallel.sharding import BatchRows, make_mesh
from balcap_jax.plan.workloads.presets import LEARNING_RATE, Preset, preset_of
from balcap_jax.plan.workloads.word_folder import photos_of, write_word_folder
from balcap_jax.training.loop import TrainingLoop
from balcap_jax.training.seams import Seams


def letters(completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward without cost that differs within a group: a sum over the caption's letters."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(map(ord, text)) % 97 / 97 for text in texts]


def run(name: str, *, rounds: int = 5) -> dict[str, Any]:
    """Median seconds of a step of each side, and their ratio.

    TRL's loop is the one that runs: after each of its steps comes one of ours.

    Args:
      name: of the preset.
      rounds: steps by each side after a first one, which compiles (ours) or warms up.

    Raises:
      UserError: an unknown preset, one of another family than Qwen2.5-VL, or no torch, trl or peft.
    """
    preset = preset_of(name)
    check_installed("trl", "peft", "datasets", flag="trl")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "policy"
        write_word_folder(folder, preset)
        *photos, held_out = photos_of(preset, 2 * preset.batch + 1)
        ours = _ours(preset, folder, Path(made), [*photos, held_out], steps=rounds + 1)
        try:
            seconds = _in_turns(preset, folder, Path(made), photos, ours, steps=rounds + 1)
        finally:
            ours.close()
    medians = {side: statistics.median(found[1:]) for side, found in seconds.items()}
    return {
        "preset": name,
        "rank": RANK,
        "images": preset.batch,
        "captions": preset.group,
        "tokens": preset.completion,
        "versions": versions("trl", ["trl", "peft"]),
        "first": {side: found[0] for side, found in seconds.items()},
        "rounds": {side: found[1:] for side, found in seconds.items()},
        "seconds": medians,
        "ratio": medians["trl"] / medians["balcap"],
    }


class OneDevice(TrainingLoop):
    """A run that leaves all devices but one alone, as the other side does."""

    def _open_mesh(self) -> None:
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.rows = BatchRows.of(self.mesh, self.images_per_step)


def _ours(
    preset: Preset, folder: Path, scratch: Path, photos: Sequence[tuple[Any, str]], *, steps: int
) -> TrainingLoop:
    """A run as `Trainer` makes it, of which only steps are made; the last photo is held out."""
    rows = [{"image": image, "prompt": prompt, "caption": "w100"} for image, prompt in photos]
    config = TrainConfig(
        out=scratch,
        name="ours",
        steps=steps,
        prompts_per_step=preset.batch,
        loggers=(),
        model=ModelConfig(
            path=str(folder),
            dtype=preset.dtype,
            remat=preset.remat,
            lora=LoraConfig(rank=RANK, alpha=2.0 * RANK),
        ),
        data=DataConfig(path="memory", heldout=1),
        rollout=RolloutConfig(group_size=preset.group, max_new_tokens=preset.completion),
        reward=RewardConfig(
            names=(),
            weights=(),
            functions=("balcap_jax.bench.step_trl:letters",),
            length_control="none",
        ),
        rl=RLConfig(advantage="trl"),
        optim=OptimConfig(learning_rate=LEARNING_RATE, warmup_steps=0),
    )
    seams = Seams(train_rows=rows[:-1], eval_rows=rows[-1:])
    return OneDevice(config, scratch / "ours", seams)


def _in_turns(
    preset: Preset,
    folder: Path,
    scratch: Path,
    photos: Sequence[tuple[Any, str]],
    ours: TrainingLoop,
    *,
    steps: int,
) -> dict[str, list[float]]:
    """Seconds of each step by each side."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seconds: dict[str, list[float]] = {"trl": [], "balcap": []}

    class InTurns(TrainerCallback):
        """Steps of ours between those of TRL; its own begins with the batch that it draws."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds["trl"].append(time.perf_counter() - self.start)
            start = time.perf_counter()
            ours.train_step()
            ours.step += 1
            seconds["balcap"].append(time.perf_counter() - start)
            self.start = time.perf_counter()

    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=getattr(torch, preset.dtype),
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=False,
    )
    on_cpu = not torch.cuda.is_available()
    settings = GRPOConfig(
        output_dir=str(scratch / "trl"),
        max_steps=steps,
        per_device_train_batch_size=preset.batch * preset.group,
        num_generations=preset.group,
        max_completion_length=preset.completion,
        learning_rate=LEARNING_RATE,
        beta=0.0,
        # What is faster where it fits; our side's `remat` is the preset's.
        gradient_checkpointing=preset.torch_sequences is not None,
        bf16=preset.dtype == "bfloat16",
        use_cpu=on_cpu,
        report_to=[],
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
    rows = [
        {"prompt": [{"role": "user", "content": prompt}], "image": image}
        for image, prompt in photos
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages about one another
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=letters,
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=_processor(folder),
            peft_config=peft_config(RANK),
            callbacks=[InTurns()],
        )
        trainer.train()
    return seconds


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


def run_and_print(preset: str, *, json: bool = False, rounds: int = 5) -> None:
    """A few lines, or one of JSON."""
    report = run(preset, rounds=rounds)
    if json:
        print(json_text.dumps(report))  # noqa: T201 - exactly one line, whatever its width
        return
    console = Console()
    console.print(
        f"{preset}: whole steps of {report['images']} images with {report['captions']} captions "
        f"of at most {report['tokens']} tokens, adapters of rank {report['rank']} on the decoder"
    )
    for side, median in report["seconds"].items():
        least, most = min(report["rounds"][side]), max(report["rounds"][side])
        console.print(f"{side:>8} {median:8.3f} s ({least:.3f} ... {most:.3f})")
    console.print(f"TRL takes {report['ratio']:.2f} times our step.")
    console.print("; ".join(f"{name} {value}" for name, value in report["versions"].items()))
