"""The compiler for TPUs, which needs no TPU."""

import os

import jax
import pytest


def chip() -> jax.sharding.Sharding:
    """On one chip of a TPU v5e that is not there; skips the test where libtpu is missing."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
    from jax.experimental import topologies

    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing here touches a chip
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    except Exception as error:  # noqa: BLE001 - whatever the plugin raises where it cannot start
        pytest.skip(f"the TPU compiler does not start: {error}")
    return jax.sharding.SingleDeviceSharding(topology.devices[0])
