"""Published rates of accelerators by the names that JAX has for them."""

from unittest.mock import Mock

import jax
import pytest

from balcap_jax.plan.chips import CHIPS
from balcap_jax.runs.device_rates import PEAK_FLOPS, chip_of, peak_device_bytes, peak_flops


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v99", None),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA", None),
        ("cpu", None),
        ("", None),
    ],
)
def test_kinds(kind, chip):
    assert chip_of(kind) == chip


def device(kind, number, coords=None):
    found = Mock(spec=jax.Device, device_kind=kind, id=number)
    found.coords = coords
    return found


def test_two_cores_of_one_chip_have_its_rate_once():
    cores = [device("TPU7x", i, (i // 2, 0, 0)) for i in range(4)]
    assert peak_flops(cores) == 2 * PEAK_FLOPS["tpu7x"]
    assert peak_flops([device("NVIDIA H200", i) for i in range(4)]) == 4 * 989e12
    assert peak_flops([device("NVIDIA H200", 0), device("NVIDIA Foo", 1)]) is None
    assert peak_flops(jax.devices()) is None  # CPUs


def test_a_plan_has_the_same_rates():
    assert all(chip.flops == PEAK_FLOPS[name] for name, chip in CHIPS.items())


def test_the_device_that_held_most():
    held = [device("NVIDIA H200", number) for number in range(3)]
    for one, peak in zip(held, (3, 7, 5), strict=True):
        one.memory_stats.return_value = {"peak_bytes_in_use": peak}
    assert peak_device_bytes(held) == 7
    assert peak_device_bytes(jax.devices()) == 0
