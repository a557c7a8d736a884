"""Rows of data as examples: images are opened when asked for, bad ones are passed over."""

import copy
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePath

from rich.console import Console
from rich.progress import Progress

from balcap_jax.data.examples import Example
from balcap_jax.data.images import (
    AS_IS,
    BadImageError,
    Part,
    Pixels,
    image_key,
    image_size,
    open_image,
)
from balcap_jax.data.rows import BadRowError, Row
from balcap_jax.errors import UserError

# Up to this many images are all opened before the first step; of more, only the first `SAMPLED`.
CHECKED = 2_000
SAMPLED = 100

_MISSING = "there is no such file"
_log = logging.getLogger(__name__)


class BadImages:
    """The bad images and rows of a file: each is logged once, and too many of them stop the run.

    Attributes:
      reasons: why each is bad, by the name of the image or the place of the row, in the order in
        which they were met.
    """

    def __init__(self, name: str, *, limit: int):
        self.name, self.limit = name, limit
        self.reasons: dict[str, str] = {}
        self._rows: set[str] = set()
        self._lock = threading.Lock()

    def add(self, found: dict[str, str], *, read: str, rows: Iterable[str] = ()) -> None:
        """Counts the images and rows in `found`, which are among the ones that `read` tells of.

        Args:
          rows: the names in `found` that are rows.

        Raises:
          UserError: there are more than `limit` now.
        """
        with self._lock:
            new = {name: reason for name, reason in found.items() if name not in self.reasons}
            self.reasons |= new
            self._rows.update(rows)
            count = len(self.reasons)
        if count > self.limit:
            # A count of all asks for just that limit; a count so far can only grow.
            wish = str(count) if read.startswith("of") else f"and a number above {count}"
            raise UserError(
                f"{self.name} has {count} bad {self._what()} {read}, more than "
                f"data.max_bad_images={self.limit}: {self._listing()}; {self._remedy()}, or skip "
                f"them with --data.max-bad-images {wish}."
            )
        for name, reason in new.items():
            if name in self._rows:
                _log.warning("skipped a row: %s %s", name, reason)
            else:
                _log.warning("skipped the image %s: %s", name, reason)

    def none_good(self, found: dict[str, str], *, read: str, rows: Iterable[str] = ()) -> UserError:
        """The error that none of the images that `read` tells of is good."""
        self.reasons |= found
        self._rows.update(rows)
        what = "row that can be used" if self._rows else "image that can be read"
        return UserError(f"{self.name} has no {what} {read}: {self._listing()}; {self._remedy()}.")

    def _what(self) -> str:
        if not self._rows:
            return "images"
        return "rows" if len(self._rows) == len(self.reasons) else "images and rows"

    def _remedy(self) -> str:
        if set(self.reasons.values()) == {_MISSING}:
            return "give the folder that the paths start from as --data.images"
        return "fix them"

    def _listing(self) -> str:
        """The first few with their reasons."""
        items = list(self.reasons.items())
        first = ", ".join(
            f"{name} {reason.rstrip('.')}" if name in self._rows else f"{name} ({reason})"
            for name, reason in items[:3]
        )
        return first + (", ..." if len(items) > 3 else "")


class Photos:
    """Random access to the examples of `rows`, in their order.

    Up to `CHECKED` images are all opened at the start, and bad ones are left out: then the length
    is that of the good ones. Of more images the first `SAMPLED` are opened, as an early word about
    a wrong folder, and the others when their turn comes: a bad one is replaced by the next good one
    behind it, so that index -> example is a function of the files alone. A row that is none is
    treated as one whose image is bad; the first `CHECKED` rows are always read at the start.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        name: str,
        max_bad_images: int = 0,
        pixels: Pixels = AS_IS,
    ):
        """
        Args:
          name: what messages call the file.
          max_bad_images: more bad images or rows than this stop the run.
          pixels: how large images may be and are made.

        Raises:
          UserError: more bad images than that, or no good one.
        """
        self.rows, self.bad = rows, BadImages(name, limit=max_bad_images)
        self.pixels = pixels
        self.places: Sequence[int] = range(len(rows))
        self.verified = len(rows) <= CHECKED
        self._apart: frozenset[str] = frozenset()
        self._told: frozenset[str] = frozenset()
        self.told: set[str] = set()  # shared with the parts, like `passed_over`
        self.passed_over: set[str] = set()
        if self.verified:
            self.places = self._good(self.places, read=f"of {len(rows)}")
        else:
            self._good(self.places[:SAMPLED], read=f"among the first {SAMPLED}")
            found, _ = self._read(self.places[SAMPLED:CHECKED])
            self.bad.add(found, read=f"among the first {CHECKED}", rows=found)

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

    def without(self, others: "Photos") -> "Photos":
        """These examples but for those that show an image of `others`, which are all verified.

        Of verified ones they are left out now; otherwise they are passed over when they are met.

        Raises:
          UserError: nothing is left.
        """
        keys = others.image_keys()
        left = copy.copy(self)
        if not self.verified:
            left._apart = self._apart | keys
            return left
        left.places = [p for p in self.places if not _shows(self.rows[p], keys)]
        count = len(self.places) - len(left.places)
        if count:
            _log.warning(
                "%s: left out %d of %d examples to train on, because their images are held out",
                self.bad.name,
                count,
                len(self.places),
            )
        if not left.places:
            raise self._all_held_out(count)
        return left

    def _all_held_out(self, count: int) -> UserError:
        return UserError(
            f"{self.bad.name} has {count} examples to train on, whose images are all held out as "
            "well; hold out fewer with --data.heldout, or name other data with "
            "--data.heldout-path."
        )

    def image_keys(self) -> frozenset[str]:
        """The keys of all images of these examples, see `image_key`."""
        rows = (self.row(i) for i in range(len(self)))
        return frozenset(image_key(image) for row in rows for image in row.all_images)

    def shared(self, others: "Photos") -> int:
        """How many of these examples show an image of `others`."""
        keys = others.image_keys()
        return sum(_shows(self.row(i), keys) for i in range(len(self)))

    def telling(self, others: "Photos") -> "Photos":
        """These examples, which tell once they meet an image of `others`, and use it all the same:
        for unverified ones, which cannot be counted beforehand.
        """
        told = copy.copy(self)
        told._told = others.image_keys()
        return told

    def __len__(self) -> int:
        return len(self.places)

    def row(self, index: int) -> Row:
        """What the file says at `index`; its image is not opened.

        Raises:
          BadRowError: the row is none.
        """
        return self.rows[self.places[index]]

    def image_sizes(self, index: int) -> list[tuple[int, int]]:
        """Width and height that the images at `index` will be opened with, by the heads of their
        files; none where the row or an image is bad.
        """
        try:
            return [image_size(image, pixels=self.pixels) for image in self.row(index).all_images]
        except (BadRowError, BadImageError):
            return []

    def exactly(self, index: int) -> Example | None:
        """The example at `index` and no other; None where its row or image is bad, which counts.

        Raises:
          UserError: too many bad images.
        """
        try:
            row = self.row(index)
        except BadRowError as error:
            self._count(error)
            return None
        try:
            return self._example(row)
        except BadImageError as error:
            self.bad.add({_name(row): str(error)}, read="so far")
            return None

    def __getitem__(self, index: int) -> Example:
        """The example at `index`, or the next one whose image is good; after the last, the first.

        Raises:
          UserError: too many bad images, a row that is none, or an image that was good at the start
            and is not any more.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        for offset in range(len(self)):
            try:
                row = self.row((index + offset) % len(self))
            except BadRowError as error:
                if self.verified:
                    raise
                self._count(error)
                continue
            try:
                if self._apart and _shows(row, self._apart):
                    self._pass_over(row)
                    continue
                if self._told and not self.told and _shows(row, self._told):
                    self._tell(row)
                return self._example(row)
            except BadImageError as error:
                if self.verified:
                    raise UserError(
                        f"The image {_name(row)} was good at the start of the run and now is not "
                        f"({error}); restore it and resume the run."
                    ) from error
                self.bad.add({_name(row): str(error)}, read="so far")
        if self.passed_over and not self.bad.reasons:
            raise self._all_held_out(len(self))
        raise self.bad.none_good({}, read="in this part")

    def _example(self, row: Row) -> Example:
        return Example(
            id=row.id,
            image=open_image(row.image, pixels=self.pixels),
            more_images=tuple(open_image(i, pixels=self.pixels) for i in row.more_images),
            turns=row.turns,
            questions=row.questions,
            prompt=row.prompt,
            reference=row.reference,
            scene=row.scene,
            references=row.references,
            boxes=row.boxes,
            units=row.units,
            messages=row.messages,
            columns=row.columns,
        )

    def _pass_over(self, row: Row) -> None:
        """Counts a row whose image is held out, and says it once."""
        if not self.passed_over:
            _log.warning(
                "%s: rows of images that are held out are passed over in training; the first is %s",
                self.bad.name,
                row.id,
            )
        self.passed_over.add(row.id)

    def _tell(self, row: Row) -> None:
        self.told.add(row.id)
        _log.warning(
            "%s: some examples to train on have images that are held out as well; the first is %s",
            self.bad.name,
            row.id,
        )

    def _count(self, error: BadRowError) -> None:
        self.bad.add({error.where: error.fault}, read="so far", rows=[error.where])

    def _good(self, places: Sequence[int], *, read: str) -> list[int]:
        """The places whose row and image are good; images are opened by threads."""
        found, chosen = self._read(places)
        rows = list(found)
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            checks = pool.map(self._why_bad, chosen.values())
            reasons = list(_with_progress(checks, total=len(chosen)))
        good = []
        for (place, row), reason in zip(chosen.items(), reasons, strict=True):
            if reason is None:
                good.append(place)
            else:
                found[_name(row)] = reason
        if not good:
            raise self.bad.none_good(found, read=read, rows=rows)
        self.bad.add(found, read=read, rows=rows)
        return good

    def _read(self, places: Iterable[int]) -> tuple[dict[str, str], dict[int, Row]]:
        """(what is wrong with the bad rows, the others by their place)."""
        found, chosen = {}, {}
        for place in places:
            try:
                chosen[place] = self.rows[place]
            except BadRowError as error:
                found[error.where] = error.fault
        return found, chosen

    def _why_bad(self, row: Row) -> str | None:
        try:
            for image in row.all_images:
                open_image(image, pixels=self.pixels)
        except BadImageError as error:
            return str(error)
        return None


def _shows(row: Row, keys: frozenset[str]) -> bool:
    """Whether one of its images has one of these keys.

    Raises:
      BadImageError: an image in memory cannot be decoded.
    """
    return any(image_key(image) in keys for image in row.all_images)


def _name(row: Row) -> str:
    return str(row.image) if isinstance(row.image, str | PurePath | Part) else f"of {row.id}"


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
