"""The programs of a training step with shapes in place of arrays: nothing of a model is loaded."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from balcap_jax.config.commands import TrainConfig
from balcap_jax.errors import UserError
from balcap_jax.models.attention.backends import choose, xla
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.decoder.lora import without_adapters
from balcap_jax.models.families import FAMILIES, make_policy
from balcap_jax.models.inputs import Prompts
from balcap_jax.models.param_tree import shapes_of
from balcap_jax.models.policy import DECODER, VisionLanguagePolicy
from balcap_jax.models.selection import trains_vision
from balcap_jax.parallel.sharding import BATCH_AXES, batch_shards, make_mesh, param_shardings
from balcap_jax.plan.workloads.presets import Preset
from balcap_jax.plan.workloads.workload import RandomProcessor
from balcap_jax.rl.train_state import TrainState, state_shapes, state_shardings
from balcap_jax.rl.update import Batch
from balcap_jax.rollout.decoding import Rollout
from balcap_jax.rollout.sampling import caption_keys, sample
from balcap_jax.runs.flops import count, without_remat
from balcap_jax.training.programs import optimizer_of, reads_start, reference_of, update_of
from balcap_jax.training.trained import param_shapes, trained_of, with_lora


class Inputs(NamedTuple):
    """What the programs are given, as shapes with shardings."""

    state: TrainState
    batch: Batch  # with features, whether or not the update reads them
    keys: jax.ShapeDtypeStruct


class Step:
    """The programs of `config` for `devices`, ready to be lowered.

    Args:
      model: sizes of the policy.
      image: height and width in pixels.
      text_tokens: of the prompt, all that are no image placeholder.

    Raises:
      UserError: the mesh does not fit the devices, or the batch does not divide.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: PolicyConfig,
        devices: list[jax.Device],
        *,
        image: tuple[int, int],
        text_tokens: int,
    ) -> None:
        self.config = config
        self.mesh = make_mesh(
            data=config.mesh.data,
            fsdp=config.mesh.fsdp,
            tensor=config.mesh.tensor,
            devices=devices,
        )
        self.policy = make_policy(
            model,
            dtype=jnp.dtype(config.model.dtype),
            remat=config.model.remat,
            residual=config.model.residual,
        )
        heads = (model.text.head_dim, model.vision.head_dim)
        attends = choose(
            config.model.attention, dtype=config.model.dtype, head_dims=heads, device=devices[0]
        )
        self.policy = dataclasses.replace(self.policy, attention=attends)
        self.policy = with_lora(config.model, self.policy)
        self.optimizer = optimizer_of(config, self.policy)
        _check_batch(config, self.mesh)
        preset = Preset(
            model,
            dtype=config.model.dtype,
            batch=1,
            group=config.rollout.group_size,
            image=image,
            text_tokens=text_tokens,
            completion=config.rollout.max_new_tokens,
        )
        self.prompt = RandomProcessor(preset).batch  # one, padded as in training
        self.inputs = self._inputs()
        self.reference_shapes = self._reference_shapes()

    def judge_shapes(
        self, judge: Mapping[str, Any] | None, *, fluency: Mapping[str, Any] | None = None
    ) -> Any:
        """The parameters of the models that judge on the mesh, as shapes with shardings.

        Args:
          judge: config.json of the judge of kind "model", where there is one.
          fluency: that of the language model, of which the decoder alone is kept.
        """
        dtype = jnp.dtype(self.config.judge.dtype)

        def shapes_on_mesh(hf: Mapping[str, Any], *, parts: Sequence[str] | None) -> Any:
            shapes = shapes_of(make_policy(FAMILIES[hf["model_type"]].config.from_hf(hf)))
            if parts is not None:
                shapes = {name: shapes[name] for name in parts if name in shapes}
            return jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding),
                shapes,
                param_shardings(self.mesh, shapes),
            )

        return [
            shapes_on_mesh(hf, parts=parts)
            for hf, parts in ((judge, None), (fluency, DECODER))
            if hf is not None
        ]

    def waiting_shapes(self) -> Batch:
        """What a batch keeps on the devices while its captions wait for the judge
        (`rollout.overlap_steps`): the prompts with their pixels, the features, the rollout.
        """
        return self.inputs.batch._replace(reference_logprobs=None, start_logprobs=None)

    def _inputs(self) -> Inputs:
        config, policy = self.config, self.policy
        B, G, C = (
            config.prompts_per_step,
            config.rollout.group_size,
            config.rollout.max_new_tokens,
        )
        rows = NamedSharding(self.mesh, P(BATCH_AXES))

        def array(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

        prompts: Prompts = jax.tree.map(lambda x: array((B, *x.shape[1:]), x.dtype), self.prompt)
        params = param_shapes(config, policy)
        trained = trained_of(config, policy)
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state_shapes(params, self.optimizer, trained=trained),
            state_shardings(self.mesh, params, self.optimizer, trained=trained),
        )
        features = jax.eval_shape(policy.encode_images, params, prompts.images)
        keys = jax.eval_shape(
            partial(caption_keys, group_size=G), jax.random.key(0), np.zeros(B, np.int32)
        )
        batch = Batch(
            prompts=prompts,
            tokens=array((B, G, C), jnp.int32),
            mask=array((B, G, C), bool),
            old_logprobs=array((B, G, C)),
            advantages=array((B, G)),
            valid=array((B, G), bool),
            features=array(features.shape, features.dtype),
            reference_logprobs=array((B, G, C)) if config.rl.kl_coef else None,
            start_logprobs=array((B, G, C)) if reads_start(config) else None,
        )
        return Inputs(state, batch, array(keys.shape, keys.dtype))

    def _reference_shapes(self) -> Any:
        """The parameters of a reference policy beside the policy, None where there is none: without
        a KL term, and where the policy without its adapters is the reference.
        """
        if not self.config.rl.kl_coef or self.config.model.lora.on:
            return None
        dtype = jnp.dtype(self.config.model.dtype)
        return jax.tree.map(lambda x: x.update(dtype=dtype), self.inputs.state.params)

    # ---- programs

    def trace(self, program: str, *, policy: VisionLanguagePolicy | None = None) -> Any:
        """One of `plan.programs_of` as a run makes it, traced.

        Args:
          policy: another computation with the same weights; to count flops.
        """
        policy = policy or self.policy
        state, batch, keys = self.inputs
        # The mesh of devices that do not exist can be no mesh to put arrays on: its abstract one.
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            if program == "encode":
                return jax.jit(policy.encode_images).trace(state.params, batch.prompts.images)
            if program == "rollout":
                rollout = self.config.rollout
                sampler = partial(self._sampler(policy), rollout.temperature, rollout.top_p)
                return jax.jit(sampler).trace(state.params, batch.prompts, batch.features, keys)
            if program == "evaluation":
                return self._trace_evaluation(policy)
            reference = reference_of(self.config, policy, self.mesh).__wrapped__
            plain = batch._replace(reference_logprobs=None, start_logprobs=None)
            if program == "reference":
                return reference.trace(
                    self.reference_shapes or without_adapters(state.params), plain
                )
            if trains_vision(policy, state.params, trained_of(self.config, policy)):
                batch, plain = (given._replace(features=None) for given in (batch, plain))
            if program == "start":
                return reference.trace(state.params, plain)
            update = update_of(self.config, policy, self.optimizer, self.mesh).__wrapped__
            return update.trace(state, batch)

    def _sampler(self, policy: VisionLanguagePolicy) -> Callable[..., Rollout]:
        """Of (temperature, top-p, parameters, prompts, features, keys)."""

        def sampled(
            temperature: float, top_p: float, params: Any, prompts: Any, features: Any, keys: Any
        ) -> Rollout:
            return sample(
                policy,
                params,
                prompts,
                features,
                keys,
                max_new_tokens=self.config.rollout.max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                banned_tokens=policy.config.banned_tokens,
                stop_tokens=policy.config.stop_tokens,
                pad_token_id=policy.config.pad_token_id,
            )

        return sampled

    def _trace_evaluation(self, policy: VisionLanguagePolicy) -> Any:
        """Held-out images encoded and captioned, one caption each; two programs in a run, of which
        the larger decides.
        """
        shards = batch_shards(self.mesh)
        images = -(-self.config.evaluation.batch_size // shards) * shards
        prompts = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype, sharding=x.sharding),
            self.inputs.batch.prompts,
        )
        keys = self.inputs.keys.update(shape=(images, 1))
        sampler = partial(self._sampler(policy), self.config.evaluation.temperature, 1.0)

        def captioned(params: Any, prompts: Any, keys: Any) -> Rollout:
            return sampler(params, prompts, policy.encode_images(params, prompts.images), keys)

        return jax.jit(captioned).trace(self.inputs.state.params, prompts, keys)

    def compile(self, traced: Any) -> Any:
        """The program for the devices."""
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return traced.lower().compile()

    def model_flops(self, program: str) -> int:
        """Of the whole batch, without what is computed twice to save memory; attention in full."""
        plain = dataclasses.replace(self.policy, attention=xla(), remat="none")
        with without_remat():
            traced = self.trace(program, policy=plain)
        return count(traced.jaxpr.jaxpr, trips=self.config.rollout.max_new_tokens)

    def attended(self) -> dict[int, float]:
        """Padded length -> share of the blocks that the kernels for the decoder compute."""
        from balcap_jax.models.attention.splash import BLOCK, LANES, shared_prompt_mask

        prefix, rollout = self.prompt.tokens.shape[1], self.config.rollout
        shares = {}
        for group, length in ((0, 0), (rollout.group_size, rollout.max_new_tokens)):
            total = prefix + group * length
            step = LANES if total <= BLOCK else BLOCK
            total += -total % step
            mask = shared_prompt_mask(prefix, group, length, total)
            side = total // min(total, BLOCK)
            blocks = mask.reshape(side, total // side, side, total // side).any(axis=(1, 3))
            shares[total] = float(blocks.mean())
        return shares


def _check_batch(config: TrainConfig, mesh: Mesh) -> None:
    parts = batch_shards(mesh) * config.rl.micro_batches
    if config.prompts_per_step % parts:
        raise UserError(
            f"prompts_per_step={config.prompts_per_step} cannot be split into rl.micro_batches="
            f"{config.rl.micro_batches} parts over {batch_shards(mesh)} data shards; make it a "
            f"multiple of {parts}, or use more of the mesh for tensor."
        )


def bytes_per_device(tree: Any) -> int:
    """Of shapes with shardings: what one device holds."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def shard_shapes(tree: Any) -> set[tuple[int, ...]]:
    """The shapes of what one device holds of parameters, and of copies whole over `fsdp`."""
    shapes = set()
    for x in jax.tree.leaves(tree):
        whole = P(*(None if axis == "fsdp" else axis for axis in x.sharding.spec))
        shapes |= {
            sharding.shard_shape(x.shape)
            for sharding in (x.sharding, NamedSharding(x.sharding.mesh, whole))
        }
    return shapes
