"""What a step learns: captions with their advantages become a batch, packed, and its updates."""

from collections.abc import Callable
from functools import partial
from inspect import unwrap
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from balcap_jax.config.commands import TrainConfig
from balcap_jax.models.decoder.lora import without_adapters
from balcap_jax.models.packing import Room
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.models.selection import trains_vision
from balcap_jax.parallel.sharding import BatchRows, shard_batch
from balcap_jax.rl.balance import Parts
from balcap_jax.rl.train_state import TrainState
from balcap_jax.rl.update import Batch
from balcap_jax.rollout.rollout import Generation
from balcap_jax.runs.device_clock import DeviceClock
from balcap_jax.training import experience
from balcap_jax.training.programs import Programs, reads_start, update_of
from balcap_jax.training.rooms import Rooms, least_room, real_share
from balcap_jax.training.trained import trained_of
from balcap_jax.training.utilisation import Utilisation


class Learned(NamedTuple):
    """After the updates of a step.

    Attributes:
      metrics: of the last update.
      real_share: of the tokens that an update computed, those that are of prompts and captions.
    """

    state: TrainState
    metrics: dict[str, np.ndarray]
    real_share: float


class Learner:
    """The updates of a run.

    Args:
      reference_params: of a reference policy of its own; None: the policy without its adapters, or
        none is needed.
      tell: hears what takes time.

    Attributes:
      rooms: the sizes of packed rows so far, which a checkpoint keeps.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: VisionLanguagePolicy,
        programs: Programs,
        mesh: Mesh,
        *,
        rows: BatchRows,
        reference_params: dict | None,
        clock: DeviceClock,
        utilisation: Utilisation,
        tell: Callable[[str], None],
    ):
        self._config, self._policy, self._programs, self._mesh = config, policy, programs, mesh
        self._rows, self._reference_params = rows, reference_params
        self._clock, self._utilisation, self._tell = clock, utilisation, tell
        self._trained = trained_of(config, policy)
        self.rooms = Rooms()

    def learn(
        self,
        state: TrainState,
        generation: Generation,
        whole: experience.Judged,
        advantages: Float[np.ndarray, "b g"],
        prefix: Int[np.ndarray, " b"],
    ) -> Learned:
        """The updates of one rollout.

        Args:
          whole, advantages, prefix: of the captions of all hosts; `prefix` are the lengths of
            prompts.
        """
        room, share = self._packed(generation, whole, prefix)
        batch = self._batch(state, generation, whole, advantages, room)
        state, metrics = self._updates(state, batch, room)
        return Learned(state, metrics, share)

    def _packed(
        self, generation: Generation, whole: experience.Judged, prefix: Int[np.ndarray, " b"]
    ) -> tuple[Room | None, float]:
        """The room of the update's rows, None for slots; and the share of real tokens in it."""
        sizes = {
            "length": generation.rollout.mask.shape[-1],
            "prefix_length": generation.prompts.mask.shape[-1],
            "parts": Parts.of(self._mesh, self._config.rl.micro_batches),
        }
        counts = whole.token_counts, whole.valid, prefix
        room = least_room(*counts, **sizes) if self._config.rl.packing else None
        if room is not None:
            known = len(self.rooms.made)
            room = self.rooms.choose(room)
            if known and len(self.rooms.made) > known:
                self._tell(
                    f"compiling the update for rows of {room.own:,} + {room.prefix:,} tokens "
                    f"(program {known + 1})"
                )
        return room, real_share(*counts, room, **sizes)

    def _batch(
        self,
        state: TrainState,
        generation: Generation,
        whole: experience.Judged,
        advantages: Float[np.ndarray, "b g"],
        room: Room | None,
    ) -> Batch:
        """What the update learns from."""
        config, rollout, local = self._config, generation.rollout, self._rows.local_rows
        moves = trains_vision(self._policy, state.params, self._trained)
        batch = Batch(
            prompts=generation.prompts,
            tokens=rollout.tokens,
            mask=rollout.mask,
            old_logprobs=rollout.logprobs,
            advantages=shard_batch(self._mesh, advantages[local]),
            valid=shard_batch(self._mesh, whole.valid[local]),
            features=None if moves else generation.features,
        )
        found = {}
        if config.rl.kl_coef:
            reference = self._reference_params or without_adapters(state.params)
            found["reference_logprobs"] = self._logprobs(reference, batch, room)
        if reads_start(config):
            found["start_logprobs"] = self._logprobs(state.params, batch, room)
        return batch._replace(**found)

    def _logprobs(self, params: dict, batch: Batch, room: Room | None) -> jax.Array:
        start = self._clock.start()
        logprobs = self._programs.reference_logprobs(params, batch, room)
        self._clock.ran(start, logprobs)
        return logprobs

    def _updates(
        self, state: TrainState, batch: Batch, room: Room | None
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """The optimizer steps on one rollout; metrics are of the last one."""
        metrics: dict[str, Any] = {}
        times = self._config.rl.updates_per_rollout
        start = self._clock.start()
        with jax.transfer_guard("disallow"):  # nothing may go through the host inside a step
            for _ in range(times):
                state, metrics = self._programs.update(state, batch, room)
        self._clock.ran(start, metrics)
        metrics = jax.device_get(metrics)
        self._utilisation.ran(
            "update",
            f"update of {room}",
            lambda policy: self._update_of(policy, room),
            state,
            batch,
            times=times,
        )
        return state, metrics

    def _update_of(self, policy: VisionLanguagePolicy, room: Room | None) -> Callable[..., Any]:
        update = update_of(self._config, policy, self._programs.optimizer, self._mesh)
        return partial(unwrap(update), room=room)
