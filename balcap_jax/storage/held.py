"""Which leases this process has lost, for those who write."""

import os

from balcap_jax.errors import UserError

taken: dict[str, str] = {}  # folder -> who has taken its lease from this process


def check_held(folder: str | os.PathLike) -> None:
    """Refuses to write to a run whose lease this process has lost.

    Raises:
      UserError: it was taken over.
    """
    if (to := taken.get(str(folder))) is not None:
        raise UserError(
            f"The run {folder} was taken over by {to} while this process did not answer, and only "
            "one may write; what was saved before is intact, so end this process and go on with "
            "--resume where no other does."
        )
