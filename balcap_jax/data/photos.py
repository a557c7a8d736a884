"""Rows of a data file as examples: images are opened when asked for, bad ones are passed over."""

import copy
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from balcap_jax.data.examples import Example
from balcap_jax.data.images import BadImageError, open_image
from balcap_jax.data.rows import Row
from balcap_jax.errors import UserError

# Up to this many images are all opened before the first step; of more, only the first `SAMPLED`.
CHECKED = 2_000
SAMPLED = 100

_MISSING = "there is no such file"
_log = logging.getLogger(__name__)


class BadImages:
    """The bad images of a file: each is logged once, and too many of them stop the run.

    Attributes:
      reasons: why each is bad, by its name, in the order in which they were met.
    """

    def __init__(self, name: str, *, limit: int):
        self.name, self.limit = name, limit
        self.reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, found: dict[str, str], *, read: str) -> None:
        """Counts the images in `found`, which are among the ones that `read` tells of.

        Raises:
          UserError: there are more than `limit` now.
        """
        with self._lock:
            new = {image: reason for image, reason in found.items() if image not in self.reasons}
            self.reasons |= new
            count = len(self.reasons)
        if count > self.limit:
            # A count of all asks for just that limit; a count so far can only grow.
            wish = str(count) if read.startswith("of") else f"and a number above {count}"
            raise UserError(
                f"{self.name} has {count} bad images {read}, more than data.max_bad_images="
                f"{self.limit}: {self._listing()}; {self._remedy()}, or skip them with "
                f"--data.max-bad-images {wish}."
            )
        for image, reason in new.items():
            _log.warning("skipped the image %s: %s", image, reason)

    def none_good(self, found: dict[str, str], *, read: str) -> UserError:
        """The error that none of the images that `read` tells of is good."""
        self.reasons |= found
        return UserError(
            f"{self.name} has no image that can be read {read}: {self._listing()}; "
            f"{self._remedy()}."
        )

    def _remedy(self) -> str:
        if set(self.reasons.values()) == {_MISSING}:
            return "give the folder that the paths start from as --data.images"
        return "fix them"

    def _listing(self) -> str:
        """The first few with their reasons."""
        items = list(self.reasons.items())
        first = ", ".join(f"{image} ({reason})" for image, reason in items[:3])
        return first + (", ..." if len(items) > 3 else "")


class Photos:
    """Random access to the examples of `rows`, in their order.

    Up to `CHECKED` images are all opened at the start, and bad ones are left out: then the length
    is that of the good ones. Of more images the first `SAMPLED` are opened, as an early word about
    a wrong folder, and the others when their turn comes: a bad one is replaced by the next good one
    behind it, so that index -> example is a function of the files alone.
    """

    def __init__(self, rows: Sequence[Row], *, name: str, max_bad_images: int = 0):
        """
        Args:
          name: what messages call the file.
          max_bad_images: more bad images than this stop the run.

        Raises:
          UserError: more bad images than that, or no good one.
        """
        self.rows, self.bad = rows, BadImages(name, limit=max_bad_images)
        self.places: Sequence[int] = range(len(rows))
        self.verified = len(rows) <= CHECKED
        if self.verified:
            self.places = self._good(self.places, read=f"of {len(rows)}")
        else:
            self._good(self.places[:SAMPLED], read=f"among the first {SAMPLED}")

    def part(self, start: int, stop: int, *, verify: bool = False) -> "Photos":
        """The examples from `start` to `stop`; bad images count for both.

        Args:
          verify: all its images are opened now and the bad ones left out.

        Raises:
          UserError: as at the start.
        """
        part = copy.copy(self)  # shares the rows and the count of bad images
        part.places, part.verified = self.places[start:stop], self.verified or verify
        if part.verified and not self.verified:
            part.places = part._good(part.places, read="so far")
        return part

    def __len__(self) -> int:
        return len(self.places)

    def row(self, index: int) -> Row:
        """What the file says at `index`; its image is not opened."""
        return self.rows[self.places[index]]

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, or the next one whose image is good; after the last, the first.

        Raises:
          UserError: too many bad images, a row that is none, or an image that was good at the start
            and is not any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        for offset in range(len(self)):
            row = self.row((index + offset) % len(self))
            try:
                return _example(row)
            except BadImageError as error:
                if self.verified:
                    raise UserError(
                        f"The image {_name(row)} was good at the start of the run and now is not "
                        f"({error}); restore it and resume the run."
                    ) from error
                self.bad.add({_name(row): str(error)}, read="so far")
        raise self.bad.none_good({}, read="in this part")

    def _good(self, places: Sequence[int], *, read: str) -> list[int]:
        """The places whose image is good, told by threads."""
        chosen = [self.rows[place] for place in places]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            reasons = list(_with_progress(pool.map(_why_bad, chosen), total=len(chosen)))
        pairs = zip(chosen, reasons, strict=True)
        found = {_name(row): reason for row, reason in pairs if reason}
        good = [place for place, reason in zip(places, reasons, strict=True) if reason is None]
        if not good:
            raise self.bad.none_good(found, read=read)
        self.bad.add(found, read=read)
        return good


def _example(row: Row) -> Example:
    return Example(
        id=row.id,
        image=open_image(row.image),
        prompt=row.prompt,
        reference=row.reference,
        scene=row.scene,
        references=row.references,
        boxes=row.boxes,
        units=row.units,
        messages=row.messages,
        columns=row.columns,
    )


def _name(row: Row) -> str:
    return str(row.image) if isinstance(row.image, str | Path) else f"of {row.id}"


def _why_bad(row: Row) -> str | None:
    try:
        open_image(row.image)
    except BadImageError as error:
        return str(error)
    return None


def _with_progress(checks: Iterable[str | None], *, total: int) -> Iterator[str | None]:
    """Passes `checks` on, with a bar on stderr when they take more than a moment."""
    bar = Progress(*Progress.get_default_columns(), console=Console(stderr=True), transient=True)
    task = bar.add_task("checking images", total=total)
    began, shown = time.monotonic(), False
    try:
        for check in checks:
            bar.advance(task)
            if not shown and time.monotonic() - began > 2:  # seconds
                bar.start()
                shown = True
            yield check
    finally:
        if shown:
            bar.stop()
