"""A run beside another side: on what that one computes on, and step by step."""

from balcap_jax.parallel.sharding import BatchRows, make_mesh
from balcap_jax.runs.cores import even_shares
from balcap_jax.training.cores_as_devices import devices_of
from balcap_jax.training.loop import TrainingLoop


class OneDevice(TrainingLoop):
    """A run that leaves all accelerators but one alone; without any it has the cores."""

    def _open_mesh(self) -> None:
        parts = self.images_per_step // self.micro_batches
        devices = devices_of(self.config, parts=parts)
        on_cpu = devices[0].platform == "cpu"
        count = even_shares(parts, len(devices)) if on_cpu else 1
        self.mesh = make_mesh(devices=devices[:count])
        self.rows = BatchRows.of(self.mesh, self.images_per_step)

    def make_step(self) -> None:
        """The next step, without log and checkpoint."""
        self.train_step()
        self.step += 1
