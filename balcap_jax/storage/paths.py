"""A path on this machine's disk, or in a bucket of Google Cloud Storage.

All paths that a user names go through `as_path`; what is done with them is the same for both, and
what buckets cannot do (append, rename, lock) has its place in this room.
"""

import os
import re
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeGuard

from balcap_jax.errors import UserError

if TYPE_CHECKING:
    from balcap_jax.storage.bucket import BucketPath

# A Path, or a `BucketPath`, which is no Path: what it does not have must not reach the local disk.
AnyPath = PurePath
# pathlib makes gs:/bucket of gs://bucket.
_URL = re.compile(r"(gs|s3):/{1,2}(?=[^/])|([a-z][a-z0-9+.-]*)://")


def as_path(value: str | os.PathLike) -> Any:
    """A local path as it is; one that begins with gs:// as a `BucketPath`, which has the methods of
    a Path that are used here.

    Raises:
      UserError: another kind of URL, or the packages for buckets are not installed.
    """
    text = os.fspath(value)
    found = _URL.match(text)
    if found is None:
        return value if isinstance(value, Path) else Path(value)
    if found[1] != "gs":
        raise UserError(
            f"{text} is neither a local path nor in a bucket of Google Cloud Storage (gs://): "
            "nothing else is read or written, as other stores have no safe lock for a run; give a "
            "gs:// path, or mount the store and give its folder."
        )
    if _is_bucket_path(value):
        return value
    try:
        from balcap_jax.storage.bucket import BucketPath  # noqa: PLC0415 - takes a second
    except ImportError as error:
        raise UserError(
            f"{text} is in a bucket, for which {error.name or 'gcsfs'} is missing; run "
            "pip install 'balcap_jax[gcs]'."
        ) from error
    return BucketPath(f"gs://{text[found.end() :]}")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether it is in a bucket."""
    return os.fspath(path).startswith(("gs://", "gs:/"))


def _is_bucket_path(path: object) -> TypeGuard["BucketPath"]:
    return type(path).__name__ == "BucketPath"
