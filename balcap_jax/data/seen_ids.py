"""Ids of rows that have been read, so that no two rows are taken for one."""

import threading

from balcap_jax.errors import UserError


class SeenIds:
    """The place of each id; many threads may ask at once.

    Args:
      name: what messages call the data.
    """

    def __init__(self, name: str):
        self._name = name
        self._places: dict[str, int] = {}
        self._lock = threading.Lock()

    def check(self, id_: str, place: int) -> None:
        """Notes that the row at `place` has this id.

        Raises:
          UserError: a row at another place has it, too.
        """
        with self._lock:
            first = self._places.setdefault(id_, place)
        if first != place:
            raise UserError(
                f"{self._name} has the id {id_!r} twice, in the rows {first} and {place}; give "
                "each row its own id."
            )
