"""The compiler for TPUs on a machine without one: the devices of a slice that is not there."""

from importlib import metadata, util

import jax
from packaging.requirements import Requirement

from balcap_jax.errors import UserError
from balcap_jax.plan.chips import EXAMPLES, slice_of

# For the process that compiles: no chip is looked for, locked or asked about.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}
_MISSING = "libtpu, the compiler for TPUs, is not installed; pip install 'balcap_jax[plan]'."


def check_compiler() -> str:
    """Empty, or a sentence: libtpu is not the one that this JAX asks for. It may work anyway.

    Raises:
      UserError: libtpu is missing.
    """
    if util.find_spec("libtpu") is None:
        raise UserError(_MISSING)
    try:
        installed = metadata.version("libtpu")
    except metadata.PackageNotFoundError:  # a library without a package: nothing to compare
        return ""
    return mismatch(installed, metadata.version("jax"), metadata.requires("jax") or [])


def mismatch(libtpu: str, jax_version: str, requirements: list[str]) -> str:
    """See `check_compiler`.

    Args:
      requirements: of JAX, whose extra `tpu` pins a libtpu.
    """
    found = (Requirement(text) for text in requirements)
    wanted = next((requirement for requirement in found if requirement.name == "libtpu"), None)
    if wanted is None or wanted.specifier.contains(libtpu, prereleases=True):
        return ""
    return (
        f"libtpu {libtpu} is not the one that jax {jax_version} asks for; if compiling fails or "
        f"numbers look wrong, pip install 'libtpu{wanted.specifier}'."
    )


def devices_of(topology: str) -> list[jax.Device]:
    """The devices of a slice; of some chips two each.

    Raises:
      UserError: the compiler does not know such a slice.
    """
    from jax.experimental import topologies

    try:
        # The compiler's own default is hosts of 2 x 2 chips, of which one chip is no multiple.
        one = {"chips_per_host_bounds": (1, 1, 1)} if slice_of(topology).chips == 1 else {}
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one)
    except Exception as error:
        if "INVALID_ARGUMENT" not in str(error):
            raise
        reason = str(error).partition("INVALID_ARGUMENT: ")[2].partition("\n")[0]
        raise UserError(
            f"topology {topology!r} is unknown to the compiler for TPUs ({reason}); choose a slice "
            f"that exists, such as {EXAMPLES}."
        ) from error
    return list(description.devices)
