"""A run beside another side: on what that one computes on, and step by step."""

from collections.abc import Sequence

import jax

from balcap_jax.runs.cores import even_shares
from balcap_jax.training.loop import TrainingLoop


class OneDevice(TrainingLoop):
    """A run that leaves all accelerators but one alone; without any it has the cores."""

    def _devices(self) -> Sequence[jax.Device]:
        devices = super()._devices()
        on_cpu = devices[0].platform == "cpu"
        parts = self.images_per_step // self.micro_batches
        return devices[: even_shares(parts, len(devices)) if on_cpu else 1]

    def make_step(self) -> None:
        """The next step, without log and checkpoint."""
        self.train_step()
        self.step += 1
