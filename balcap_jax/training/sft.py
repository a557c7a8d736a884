"""Supervised training of a policy on captions: how the base policy of the package was made.

Scenes are captioned by the fault corpus, so that the base policy has the faults real captioners
have; rows of a file by their reference.
"""

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from balcap_jax.config.base import to_dict
from balcap_jax.config.commands import SFTConfig
from balcap_jax.data.examples import Example, Source
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.data.sources import open_sources
from balcap_jax.models.decoder.lora import with_dropout_keys
from balcap_jax.models.hf.folders import POLICY, SCRATCH, policy_folder
from balcap_jax.models.inputs import ImagePatches, Prompts
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.qwen2_5_vl.policy import Qwen2_5_VL
from balcap_jax.models.selection import overlaid
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.rl.train_state import (
    TrainState,
    apply_gradients,
    init_state,
    make_optimizer,
    split_trainable,
)
from balcap_jax.rl.update import dropout_key
from balcap_jax.runs.folder import RunLock, new_run, write_json_atomic
from balcap_jax.runs.logs import MetricsLog
from balcap_jax.runs.progress import training_progress
from balcap_jax.runs.stopwatch import Stopwatch, peak_memory_mb
from balcap_jax.scenes.captions import NO_FAULTS, FaultRates, faulty_caption
from balcap_jax.training.adapter_run import write_policy
from balcap_jax.training.trained import load_policy, rates_of, trained_of
from balcap_jax.training.vision_pretraining import pretrain_tower, token_labels

T = TypeVar("T")
CROWD = 8  # clusters of the scenes that a new tower learns most from


def sft(config: SFTConfig) -> Path:
    """Trains by `config` and writes the policy to OUT/NAME/policy.

    Returns:
      The run's folder.

    Raises:
      UserError: the folder holds a run, or data or policy cannot be read.
    """
    with (
        new_run(config.out, config.name) as run,
        RunLock(run),
        tempfile.TemporaryDirectory() as new,
    ):
        mesh = make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp, tensor=config.mesh.tensor)
        source, _ = open_sources(config.data, seed=config.seed)
        folder, policy, params = _start(config, Path(new), mesh)
        processor = Processor.load(folder).limited(
            min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels
        )
        write_json_atomic(run / "config.json", to_dict(config))

        def save(params: dict) -> None:
            write_policy(
                run, POLICY, policy, params,
                model=config.model, source=folder, dtype=config.save_dtype,
            )  # fmt: skip

        if config.vision_steps:
            params = pretrain_vision(config, policy, params, source, processor)
            save(params)
        optimizer = make_optimizer(
            rates=rates_of(config, policy),
            learning_rate=config.optim.learning_rate,
            warmup_steps=config.optim.warmup_steps,
            total_steps=config.steps,
            schedule=config.optim.schedule,
            weight_decay=config.optim.weight_decay,
            b1=config.optim.b1,
            b2=config.optim.b2,
            max_grad_norm=config.optim.max_grad_norm,
        )
        trained = trained_of(config, policy)
        state = init_state(mesh, params, optimizer, trained=trained, keep=False)
        step_function = make_sft_step(policy, optimizer, mesh, trained=trained, seed=config.seed)

        _loop(config, run, source, processor, state, step_function, save)
    return run


def make_sft_step(
    policy: VisionLanguagePolicy,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    trained: Sequence[str],
    seed: int = 0,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted step `(state, prompts, tokens [b g c], mask [b g c]) -> (state, metrics)`.

    `trained` are patterns of paths. The loss is the mean over tokens of the negative
    log-likelihood; the G captions of an image share its prompt.
    """

    def loss_of(trainable: dict, frozen: dict, prompts: Prompts, tokens: Any, mask: Any, key: Any):
        params = overlaid(frozen, trainable)
        if key is not None:
            params = with_dropout_keys(params, key)
        features = policy.encode_images(params, prompts.images)
        logprobs, entropy = completion_logprobs(
            policy, params, prompts, features, tokens, chunk=128
        )
        count = jnp.sum(mask)
        return (
            -jnp.sum(jnp.where(mask, logprobs, 0.0)) / count,
            jnp.sum(jnp.where(mask, entropy, 0.0)) / count,
        )

    def step(state: TrainState, prompts: Prompts, tokens: Any, mask: Any):
        trainable, frozen = split_trainable(state.params, trained=trained)
        (loss, entropy), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            trainable, frozen, prompts, tokens, mask, dropout_key(policy, state.step, seed=seed)
        )
        state, norm = apply_gradients(state, optimizer, gradients)
        return state, {"loss": loss, "entropy": entropy, "grad_norm": norm}

    jitted = jax.jit(step, donate_argnums=0)

    def on_mesh(state: TrainState, prompts: Prompts, tokens: Any, mask: Any):
        with jax.set_mesh(mesh):
            return jitted(state, *shard_batch(mesh, (prompts, tokens, mask)))

    return on_mesh


def _start(config: SFTConfig, new: Path, mesh: Mesh) -> tuple[Path, VisionLanguagePolicy, dict]:
    """The folder with the processor's files, the policy and its parameters before the first
    step.
    """
    options = {"attention": config.model.attention, "remat": config.model.remat}
    if config.model.path != SCRATCH:
        folder = policy_folder(config.model.path, revision=config.model.revision)
        return folder, *load_policy(config, folder, mesh)
    # Imported here: only a new policy needs the tokenizer's trainer.
    from balcap_jax.models.new_policy import write_new_policy  # noqa: PLC0415

    sizes = write_new_policy(new)
    policy = Qwen2_5_VL(sizes, dtype=jnp.dtype(config.model.dtype), **options)
    return new, policy, jax.jit(policy.init)(jax.random.key(config.seed))


def pretrain_vision(
    config: SFTConfig,
    policy: VisionLanguagePolicy,
    params: dict,
    source: Source,
    processor: Processor,
) -> dict:
    """`params` with a tower that has learned to see."""
    crowded = SceneSource("train", len(source), seed=config.seed, clusters=CROWD)

    def make(step: int) -> tuple[ImagePatches, np.ndarray]:
        # Crowded scenes show more things for the same work; the last third is as captions have it.
        part = crowded if step < config.vision_steps * 2 // 3 else source
        # From the far end of the split, so that no image is met again.
        first = len(source) - (step + 1) * config.vision_batch_size
        examples = [part[first + i] for i in range(config.vision_batch_size)]
        labels = np.stack([token_labels(example.scene) for example in examples])
        return processor.prompts(examples).images, labels

    losses: list[Any] = []
    with training_progress("vision", config.vision_steps) as advance:

        def on_step(step: int, loss: Any) -> None:
            losses.append(loss)
            if step % config.log_every == 0:
                mean = np.mean(jax.device_get(losses), axis=0)
                losses.clear()
                advance(step, f"loss {' '.join(f'{value:.2f}' for value in mean)}")

        return pretrain_tower(
            policy,
            params,
            made_ahead(make, config.vision_steps),
            learning_rate=config.optim.learning_rate,
            steps=config.vision_steps,
            on_step=on_step,
        )


def _loop(
    config: SFTConfig,
    run: Path,
    source: Source,
    processor: Processor,
    state: TrainState,
    step_function: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    save: Callable[[dict], None],
) -> None:
    log, watch = MetricsLog(run), Stopwatch()
    rows: list[dict[str, jax.Array]] = []
    learned = 0  # tokens since the last row of the log
    with training_progress("sft", config.steps) as advance:
        for step, (prompts, tokens, mask) in enumerate(batches(config, source, processor), start=1):
            state, metrics = step_function(state, prompts, tokens, mask)
            rows.append(metrics)
            learned += int(mask.sum())
            if step % config.log_every == 0 or step == config.steps:
                means = {name: float(np.mean([row[name] for row in rows])) for name in metrics}
                lap = watch.lap(tokens=learned, steps=len(rows))
                log.log(step, means | lap | {"peak_memory_mb": peak_memory_mb()})
                rows.clear()
                learned = 0
                advance(step, f"loss {means['loss']:.3f}")
            if step % config.save_every == 0 or step == config.steps:
                save(state.params)
    log.close()


def batches(
    config: SFTConfig, source: Source, processor: Processor
) -> Iterator[tuple[Prompts, np.ndarray, np.ndarray]]:
    """The batches of all steps, each a function of the seed and the step; made one ahead."""

    easy = SceneSource("train", len(source), seed=config.seed, clusters=1)

    def make(step: int) -> tuple[Prompts, np.ndarray, np.ndarray]:
        first = step * config.batch_size
        part, rates = source, FaultRates()
        if step < config.easy_steps:
            part, rates = easy, NO_FAULTS
        examples = [part[(first + i) % len(part)] for i in range(config.batch_size)]
        captions = [
            corpus_captions(example, f"{config.seed}/{step}", config.captions_per_image, rates)
            for example in examples
        ]
        tokens, mask = processor.encode_captions(captions, config.max_new_tokens)
        # Two shapes are compiled: half the length where every caption of the step fits.
        half = config.max_new_tokens // 2
        if not mask[..., half:].any():
            tokens, mask = tokens[..., :half], mask[..., :half]
        return processor.prompts(examples), tokens, mask

    return made_ahead(make, config.steps)


def made_ahead(make: Callable[[int], T], steps: int) -> Iterator[T]:
    """make(0) to make(steps - 1), each made by a thread while the one before is used."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(make, 0)
        for step in range(steps):
            made = waiting.result()
            if step + 1 < steps:
                waiting = pool.submit(make, step + 1)
            yield made


def corpus_captions(example: Example, draw: str, count: int, rates: FaultRates) -> list[str]:
    """`count` captions to learn from: of the fault corpus for a scene, else the reference."""
    if example.scene is None:
        return [example.reference] * count
    rng = random.Random(f"corpus/{draw}/{example.id}")
    return [str(faulty_caption(example.scene, rng, rates)) for _ in range(count)]
