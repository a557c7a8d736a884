"""Layout of the folder of `balcap reproduce`.

evidence.json            which code its cells are of
cells/KEY/cell.json      what a cell is
          .lock          held by the process that computes it
          log.txt        what that process printed
          run/           its run, until it is done
          result.json    its numbers
starts/KEY.json          held-out scores of starting policies, which cells share
"""

import json
from pathlib import Path
from typing import Any

from balcap_jax.errors import UserError

EVIDENCE, CELLS, STARTS = "evidence.json", "cells", "starts"
CELL, RESULT, RUN, LOG = "cell.json", "result.json", "run", "log.txt"


def read_json(path: Path) -> Any:
    """The value of a file that this room has written.

    Raises:
      UserError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); restore it.") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); remove it, and the same command makes it again."
        ) from error
