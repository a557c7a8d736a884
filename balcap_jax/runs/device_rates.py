"""What accelerators can do by their published numbers, and the most memory used of them."""

from collections.abc import Sequence

import jax

# bfloat16 operations per second of a chip, dense. TPUs: https://cloud.google.com/tpu/docs, "system
# architecture"; NVIDIA: the data sheets of the products (half of what is given "with sparsity").
PEAK_FLOPS = {
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
    "tpu7x": 2307e12,
    "A100": 312e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
}
# As JAX calls TPUs.
_TPUS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def chip_of(kind: str) -> str | None:
    """The name in `PEAK_FLOPS` of a `device_kind` of JAX such as "NVIDIA H100 80GB HBM3"; None
    where it is unknown, as all parts of a GPU (MIG) are.
    """
    words = kind.replace("-", " ").split()
    if kind in _TPUS or words[:1] != ["NVIDIA"] or "MIG" in words:
        return _TPUS.get(kind)
    found = [name for name in PEAK_FLOPS if set(name.split()) <= set(words)]
    return max(found, key=len, default=None)


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """bfloat16 operations per second of all of them together; None where one is unknown."""
    chips = {(device.device_kind, *_chip(device)) for device in devices}
    rates = [PEAK_FLOPS.get(chip_of(kind) or "") for kind, *_ in chips]
    return None if None in rates else float(sum(rates))


def peak_device_bytes(devices: Sequence[jax.Device]) -> int:
    """The most memory that programs have had of any one of these devices, which this process must
    hold; 0 where the platform does not say, as on CPUs.
    """
    stats = [device.memory_stats() or {} for device in devices]
    return max((found.get("peak_bytes_in_use", 0) for found in stats), default=0)


def _chip(device: jax.Device) -> tuple:
    """What tells chips apart: JAX sees each core of some TPUs as a device, at the place of one."""
    place = getattr(device, "coords", None)
    if place is None:
        return (device.id,)
    return (getattr(device, "slice_index", 0), *place)
