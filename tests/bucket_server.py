"""A bucket on this machine: the part of the JSON API of Google Cloud Storage that our clients use.

`gcp-storage-emulator` ignores `ifGenerationMatch`, so a second conditional create overwrites the
first there, and with it every lock. This one keeps objects in memory and speaks what gcsfs,
google-cloud-storage and tensorstore ask for: conditional writes and deletions, ranges, listings by
page, multipart and resumable uploads, copies and batches; and it fails on request.

    python tests/bucket_server.py 8900 bucket   # stays until it is ended
"""

import base64
import hashlib
import itertools
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

_NOW = "2026-01-01T00:00:00.000Z"
_PAGE = 1000
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")


@dataclass
class Faults:
    """What the server does beside answering.

    Attributes:
      every: each request of this number, counted from 1, is answered with the next of `statuses`.
      match: of the method and path of the requests that are counted.
      seconds: each request waits.
      forbidden: of the methods and paths that are answered with `refusal`.
    """

    every: int = 0
    statuses: tuple[int, ...] = (503, 429)
    match: str = ""
    seconds: float = 0.0
    forbidden: str = ""
    refusal: int = 403


@dataclass
class Stored:
    """An object."""

    data: bytes
    generation: int
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)


class _Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class BucketServer:
    """Buckets by their names, each a dictionary of objects; starts listening when it is made.

    Args:
      port: 0: any.
      buckets: names of those that exist.
    """

    def __init__(self, *buckets: str, port: int = 0):
        self.buckets: dict[str, dict[str, Stored]] = {name: {} for name in buckets}
        self.faults = Faults()
        self.requests: list[str] = []  # each as "GET /storage/v1/b/..."
        self.failed = 0  # how many were answered with a fault
        self._counted = 0
        self._generations = itertools.count(1)
        self._uploads: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._http = _Server(("127.0.0.1", port), _handler_of(self))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Of the server, without a slash at the end."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What points gcsfs, google-cloud-storage and tensorstore here."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCE_METADATA_ROOT": "127.0.0.1:9",  # tensorstore asks there for credentials
            "GOOGLE_CLOUD_PROJECT": "test",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # gRPC, which is not spoken here
        }

    def close(self) -> None:
        """Ends the server; its objects stay."""
        self._http.shutdown()
        self._http.server_close()

    def put(self, bucket: str, name: str, data: bytes) -> None:
        """Stores an object, whatever was there."""
        self._store(bucket, name, data, {})

    @contextmanager
    def failing(self, **faults: Any) -> Iterator[None]:
        """Faults while the block runs."""
        self.faults, self._counted, self.failed = Faults(**faults), 0, 0
        try:
            yield
        finally:
            self.faults = Faults()

    # ---- answers: (status, headers, body)

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """What a request is answered with."""
        url = urlsplit(target)
        line = f"{method} {unquote(url.path)}"
        with self._lock:
            if url.path.startswith("/_faults"):
                self.faults, self._counted, self.failed = Faults(**json.loads(body)), 0, 0
                return _json({})
            self.requests.append(line)
            status = self._fault(line)
        if self.faults.seconds:
            time.sleep(self.faults.seconds)
        try:
            if status:
                raise _Refused(status, "as it was asked to")
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            if url.path.startswith("/batch"):
                return self._batch(headers, body)
            return self._one(method, url.path, query, headers, body)
        except _Refused as refused:
            return _json(
                {"error": {"code": refused.status, "message": refused.message}}, refused.status
            )

    def _fault(self, line: str) -> int:
        faults = self.faults
        if faults.forbidden and re.search(faults.forbidden, line):
            return faults.refusal
        if not faults.every or not re.search(faults.match, line):
            return 0
        self._counted += 1
        if self._counted % faults.every:
            return 0
        self.failed += 1
        return faults.statuses[(self.failed - 1) % len(faults.statuses)]

    def _one(
        self, method: str, path: str, query: dict, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        parts = path.strip("/").split("/")
        place = parts.index("b") if "b" in parts else len(parts)
        names = [unquote(part) for part in parts[place + 1 :]]
        if not names:
            return _json({"items": [{"name": name} for name in self.buckets]})
        with self._lock:
            objects = self.buckets.get(names[0])
            if objects is None:
                raise _Refused(404, "The specified bucket does not exist.")
            if parts[0] in ("upload", "resumable"):
                return self._upload(method, names[0], query, headers, body)
            if len(names) == 1:
                return _json({"kind": "storage#bucket", "name": names[0], "id": names[0]})
            if names[1] != "o":
                return _json({})
            if len(names) == 2:
                return self._listing(objects, query)
            if len(names) > 3:
                return self._between(names, query, body)
            if method == "DELETE":
                self._check(objects.get(names[2]), query)
                if objects.pop(names[2], None) is None:
                    raise _Refused(404, "No such object")
                return 204, {}, b""
            return self._read(names[0], names[2], query, headers)

    def _read(
        self, bucket: str, name: str, query: dict, headers: Mapping[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        stored = self.buckets[bucket].get(name)
        if stored is None:
            raise _Refused(404, f"No such object: {bucket}/{name}")
        if query.get("ifGenerationNotMatch") == str(stored.generation):
            return 304, {}, b""
        self._check(stored, query)
        if query.get("alt") != "media":
            return _json(_resource(bucket, name, stored))
        found, size = stored.data, len(stored.data)
        told = {
            "Content-Type": stored.content_type,
            "X-Goog-Generation": str(stored.generation),
            "X-Goog-Hash": f"md5={_md5(found)}",
            "X-Goog-Stored-Content-Length": str(size),
        }
        wanted = _RANGE.fullmatch(headers.get("Range", ""))
        if wanted is None or not any(wanted.groups()):
            return 200, told, found
        first, last = wanted.groups()
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last), size - 1) if first and last else size - 1
        if start >= size:
            raise _Refused(416, "Request range not satisfiable")
        told["Content-Range"] = f"bytes {start}-{end}/{size}"
        return 206, told, found[start : end + 1]

    def _listing(self, objects: dict[str, Stored], query: dict) -> tuple[int, dict, bytes]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        after = query.get("pageToken", "")
        most = min(int(query.get("maxResults", _PAGE)), _PAGE)
        items, prefixes, token, last = [], [], None, ""
        for name in sorted(objects):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            rest = name[len(prefix) :]
            folded = delimiter and delimiter in rest
            shown = prefix + rest.split(delimiter)[0] + delimiter if folded else name
            if after and shown <= after:
                continue
            if folded and prefixes and prefixes[-1] == shown:
                continue
            if len(items) + len(prefixes) == most:
                token = last
                break
            last = shown
            if folded:
                prefixes.append(shown)
            else:
                items.append(_resource("", name, objects[name]))
        found: dict[str, Any] = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
        return _json(found | ({"nextPageToken": token} if token else {}))

    def _between(self, names: list[str], query: dict, body: bytes) -> tuple[int, dict, bytes]:
        """Copies, rewrites and compositions."""
        source = self.buckets[names[0]].get(names[2])
        if names[3] == "compose":
            parts = [part["name"] for part in json.loads(body)["sourceObjects"]]
            joined = b"".join(self.buckets[names[0]][part].data for part in parts)
            return _json(self._store(names[0], names[2], joined, query))
        if source is None:
            raise _Refused(404, "No such object")
        resource = self._store(names[5], names[7], source.data, query)
        if names[3] == "copyTo":
            return _json(resource)
        size = str(len(source.data))
        told = {"done": True, "objectSize": size, "totalBytesRewritten": size}
        return _json(told | {"resource": resource})

    def _upload(
        self, method: str, bucket: str, query: dict, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict, bytes]:
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self._resumed(query["upload_id"], method, headers, body)
        if kind == "media":
            return _json(self._store(bucket, query["name"], body, query))
        if kind == "multipart":
            told, data = _parts(headers["Content-Type"], body)
            told = json.loads(told)
            name = query.get("name") or told["name"]
            return _json(self._store(bucket, name, data, query, told.get("metadata")))
        told = json.loads(body or b"{}")
        upload = str(next(self._generations))
        self._uploads[upload] = {
            "bucket": bucket, "name": query.get("name") or told["name"], "query": query, "data": b""
        }  # fmt: skip
        where = f"{self.url}/upload/storage/v1/b/{quote(bucket)}/o?upload_id={upload}"
        return 200, {"Location": where}, b""

    def _resumed(
        self, id: str, method: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict, bytes]:
        upload = self._uploads.get(id)
        if upload is None:
            raise _Refused(404, "No such upload")
        if method == "DELETE":
            del self._uploads[id]
            return 499, {}, b""
        told = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        first = int(told[1]) if told and told[1] else len(upload["data"])
        upload["data"] = upload["data"][:first] + body
        if told and told[3] == "*" or told and int(told[3]) > len(upload["data"]):
            end = len(upload["data"]) - 1
            return 308, {"Range": f"bytes=0-{end}"} if end >= 0 else {}, b""
        del self._uploads[id]
        return _json(self._store(upload["bucket"], upload["name"], upload["data"], upload["query"]))

    def _batch(self, headers: Mapping[str, str], body: bytes) -> tuple[int, dict, bytes]:
        """Several deletions in one request."""
        answers = []
        for part in _messages(headers["Content-Type"], body):
            method, target, _ = part.get_payload(decode=True).decode().split(None, 2)
            status, _, told = self.answer(method, target, {}, b"")
            answers.append(
                "--answers\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{part.get('Content-ID', '').strip('<>')}>\r\n\r\n"
                f"HTTP/1.1 {status} told\r\nContent-Type: application/json\r\n\r\n"
                f"{told.decode()}\r\n"
            )
        text = "".join(answers) + "--answers--\r\n"
        return 200, {"Content-Type": "multipart/mixed; boundary=answers"}, text.encode()

    def _check(self, stored: Stored | None, query: dict) -> None:
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != (stored.generation if stored else 0):
            raise _Refused(412, "At least one of the pre-conditions you specified did not hold.")

    def _store(
        self, bucket: str, name: str, data: bytes, query: dict, metadata: dict | None = None
    ) -> dict[str, Any]:
        with self._lock:
            objects = self.buckets[bucket]
            self._check(objects.get(name), query)
            stored = Stored(bytes(data), next(self._generations), metadata=metadata or {})
            objects[name] = stored
            return _resource(bucket, name, stored)


def _resource(bucket: str, name: str, stored: Stored) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{stored.generation}",
        "name": name,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": "1",
        "contentType": stored.content_type,
        "size": str(len(stored.data)),
        "md5Hash": _md5(stored.data),
        "etag": str(stored.generation),
        "timeCreated": _NOW,
        "updated": _NOW,
        "storageClass": "STANDARD",
        "metadata": stored.metadata,
    }


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _json(value: dict[str, Any], status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _parts(content_type: str, body: bytes) -> list[bytes]:
    """The bodies of a multipart text, byte by byte (which email's parser would not keep)."""
    boundary = re.search(r"boundary=['\"]?([^'\";]+)", content_type)
    assert boundary, content_type
    pieces = body.split(b"--" + boundary[1].encode())[1:-1]
    return [
        re.sub(rb"\r?\n\Z", b"", re.split(rb"\r?\n\r?\n", piece, maxsplit=1)[1]) for piece in pieces
    ]


def _messages(content_type: str, body: bytes) -> list[Any]:
    whole = f"Content-Type: {content_type}\r\n\r\n".encode() + body
    parts = BytesParser().parsebytes(whole).get_payload()
    assert isinstance(parts, list)
    return parts


class Bucket:
    """One bucket of a server, made new."""

    def __init__(self, server: BucketServer, name: str):
        self.server, self.name = server, name
        server.buckets[name] = {}

    @property
    def url(self) -> str:
        """As paths begin with it."""
        return f"gs://{self.name}"

    @property
    def objects(self) -> dict[str, Stored]:
        """What it holds, by name."""
        return self.server.buckets[self.name]

    def text(self, name: str) -> str:
        """An object as text."""
        return self.objects[name].data.decode()

    def put(self, name: str, data: bytes) -> None:
        """Stores an object, whatever was there."""
        self.server.put(self.name, name, data)

    def put_folder(self, local: Path, name: str) -> None:
        """Stores the files of a local folder under a name."""
        for path in sorted(local.rglob("*")):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(local)}", path.read_bytes())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of clients that have gone."""


def _handler_of(server: BucketServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _do(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(iter(self._chunk, b""))
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, told = server.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(told)

        def _chunk(self) -> bytes:
            size = int(self.rfile.readline(), 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            return data

        do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    return Handler


if __name__ == "__main__":
    BucketServer(*sys.argv[2:], port=int(sys.argv[1]))
    threading.Event().wait()
