"""Names on the hub in the settings of a run: policy, adapter and models that judge.

Of a run in a bucket process 0 alone asks the hub, and the other hosts take from the bucket what it
found: hundreds of hosts would be refused, and might see a branch before and after it moved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from balcap_jax.config.commands import SFTConfig, TrainConfig
from balcap_jax.config.judge import POLICY
from balcap_jax.models.hf.adapter_config import CONFIG, base_folder, is_adapter
from balcap_jax.models.hf.folders import adapter_folder, policy_folder
from balcap_jax.models.hf.hub import is_hub_name, remembered
from balcap_jax.parallel import processes
from balcap_jax.runs.folder import disk_errors
from balcap_jax.storage.local import fetched, send_folder
from balcap_jax.storage.paths import as_path, is_remote

HUB = ".hub"  # beside the runs of a bucket


@contextmanager
def fetched_by_one_host(config: TrainConfig | SFTConfig, out: Any) -> Iterator[None]:
    """Inside, names on the hub in these settings, and those of bases that their adapters name, are
    folders that process 0 has fetched, where several processes share the bucket `out`.

    Raises:
      UserError: see `policy_folder`; on all processes.
    """
    if processes.is_alone() or not is_remote(out):
        yield
        return
    with remembered() as folders:
        told: list[list[str | None]] = []

        def fetch() -> None:
            _ask_for_all(config)
            for (name, revision), folder in folders.items():
                place = out / HUB / name.replace("/", "--") / folder.name  # its commit
                last = CONFIG if is_adapter(folder) else "config.json"
                with disk_errors(place):
                    if not (place / last).exists():
                        send_folder(folder, place, last=last)
                told.append([name, revision, str(place)])

        processes.on_process_zero(fetch)
        for name, revision, place in processes.gather_list(told):
            if (name, revision) not in folders:
                folders[name, revision] = fetched(place)
        yield


def _ask_for_all(config: TrainConfig | SFTConfig) -> None:
    """Opens every folder that may have to come from the hub."""
    model = config.model
    if _may_be_on_the_hub(model.path):
        base_folder(policy_folder(model.path, revision=model.revision))
    if is_hub_name(model.lora.start):
        adapter_folder(model.lora.start)
    if isinstance(config, TrainConfig):
        for judge in (config.judge, config.audit):
            for name in judge.device_models.values():
                if name != POLICY and _may_be_on_the_hub(name):
                    base_folder(policy_folder(name))


def _may_be_on_the_hub(name: str) -> bool:
    """Whether it is a name there, or an adapter here, which names its base; all else is refused
    where it is opened.
    """
    return is_hub_name(name) or is_adapter(as_path(name))
