"""Settings of `balcap reproduce`; the comment beside a field is its text in `--help`."""

import re
from dataclasses import dataclass
from pathlib import Path

from balcap_jax.config.base import Settings
from balcap_jax.errors import UserError

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True)
class ReproduceConfig(Settings):
    """Claims of the paper tested by many runs: `balcap reproduce [CLAIM ...]`, by number or name.

    A cell is one configuration and one seed. What is done is kept, and the same command goes on.
    """

    out: Path = Path("evidence_runs")  # Folder of the cells.
    # Folder for evidence.md and its pictures; default: the folder of the cells.
    docs: Path | None = None
    # Time for all, such as 2h, 90min or 30s; what tells most comes first.
    budget: str = "3h"
    seeds: int = 5  # Number of seeds, from 0; some settings have fewer.
    # Cells at once, each in a process with its share of the cores; default: on CPUs one for each
    # core, as far as memory goes, else one.
    jobs: int | None = None
    # Files of claims in place of those of configs/evidence.
    claims: tuple[Path, ...] = ()

    @property
    def seconds(self) -> float:
        """The budget.

        Raises:
          UserError: it is no time.
        """
        match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]+)", self.budget.strip())
        if match is None or match[2] not in _UNITS:
            raise UserError(
                f"budget={self.budget!r} is no time; write such as --budget 2h, 90min or 30s."
            )
        return float(match[1]) * _UNITS[match[2]]

    def check(self) -> None:
        self._require(self.seconds > 0, "budget", "must be above 0", "give such as --budget 2h.")
        self._at_least(1, "seeds")
        self._at_most(1000, "seeds")
        if self.jobs is not None:
            self._at_least(1, "jobs")
            self._at_most(256, "jobs")


@dataclass(frozen=True)
class EvidenceReportConfig(Settings):
    """Tables and pictures of what `balcap reproduce` has computed so far."""

    folder: Path  # Folder of the cells: the --out of `balcap reproduce`.
    # Folder for evidence.md and its pictures; default: the folder of the cells.
    docs: Path | None = None
    seeds: int = 5  # Number of seeds that there should be.
    # Files of claims in place of those of configs/evidence.
    claims: tuple[Path, ...] = ()
    # Claims, by number or name, whose sections are written; default: all that have a cell. What is
    # there of others stays, though they may share a cell with these.
    only: tuple[str, ...] = ()

    def check(self) -> None:
        self._at_least(1, "seeds")
