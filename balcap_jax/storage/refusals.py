"""What clients of buckets raise, as the errors of a disk."""

import errno
import re
from collections.abc import Iterator

_REMEDIES = {
    401: "the bucket wants credentials and there are none that it takes: run `gcloud auth "
    "application-default login`, or give the machine a service account",
    403: "the credentials of this machine may not do that (403): give its service account the role "
    "Storage Object User on the bucket",
    404: "there is no such object or bucket",
    412: "it was changed by another process",
    429: "the bucket refused too many requests (429) for a minute",
}
# What tensorstore and google's clients say, by the status that it means.
_SAID = (
    (403, re.compile(r"PERMISSION_DENIED|Forbidden|does not have storage\.\S+ access|\b403\b")),
    (401, re.compile(r"UNAUTHENTICATED|default credentials were not found|\b401\b|Anonymous")),
    (412, re.compile(r"FAILED_PRECONDITION|\b412\b")),
    (429, re.compile(r"RESOURCE_EXHAUSTED.*(gcs|storage)|Too Many Requests|\b429\b")),
    (503, re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|\b50[0234]\b")),
    (404, re.compile(r"bucket does not exist|NOT_FOUND.*gs://")),
)
_ERRNO = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 412: errno.EBUSY}
_SAID_OF = 160  # letters of what a client says
_CLIENTS = ("gcsfs", "google", "aiohttp", "requests", "urllib3")


def as_disk_error(error: Exception, path: str) -> OSError:
    """An OSError of the same meaning, with its reason in `strerror`."""
    ours = type(error).__module__.split(".")[0] not in _CLIENTS
    if ours and isinstance(error, OSError) and error.errno is not None:
        return error
    if isinstance(error, FileNotFoundError):
        status: int | None = 404
    else:
        status = _status(error)
    number = _ERRNO.get(status or 0, errno.EIO)
    kind = {errno.ENOENT: FileNotFoundError, errno.EACCES: PermissionError}.get(number, OSError)
    return kind(number, _reason(status, error), path)


def bucket_reason(error: BaseException) -> str | None:
    """Why a bucket refused, in words, where `error` or what it comes from is of a bucket's client;
    else None.
    """
    for cause in _chain(error):
        if type(cause).__module__.split(".")[0] in _CLIENTS:
            return _reason(_status(cause), cause)
        if isinstance(cause, OSError) and str(cause.filename or "").startswith("gs://"):
            return f"{cause.filename}: {cause.strerror}"
    text = str(error)
    if "gs://" in text or "storage/v1" in text or "gcs" in text:  # tensorstore's are ValueErrors
        status = _status(error)
        if status is not None:
            return _reason(status, error)
    return None


def _status(error: BaseException) -> int | None:
    code = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(code, int) or (isinstance(code, str) and code.isdigit()):
        return int(code)
    if type(error).__module__.startswith("google.auth"):
        return 401
    text = f"{type(error).__name__} {error}"
    return next((status for status, said in _SAID if said.search(text)), None)


def _reason(status: int | None, error: BaseException) -> str:
    if status in _REMEDIES:
        return _REMEDIES[status]
    text = " ".join(str(error).split())[:_SAID_OF] or type(error).__name__
    return f"the bucket did not answer ({text})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
