"""A Hugging Face hub on this machine: what huggingface_hub asks of one to fetch a repository."""

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class HubServer:
    """Serves 127.0.0.1 in a thread: `with HubServer({"a/b": folder}) as hub: ... hub.url`.

    Attributes:
      repositories: name -> its folder; it is read anew at every request.
      gated: names whose files need the licence; also the API refuses them without it.
      refused: name -> HTTP status of every answer about it.
      broken: file -> how it is sent: "short" (fewer bytes than announced when it was asked about)
        or "half" (the connection ends in the middle).
      fetched: file -> how often it was sent.
      tokens: the Authorization headers that came.
    """

    def __init__(self, repositories: dict[str, Path]):
        self.repositories = dict(repositories)
        self.gated: set[str] = set()
        self.refused: dict[str, int] = {}
        self.broken: dict[str, str] = {}
        self.fetched: Counter[str] = Counter()
        self.tokens: set[str | None] = set()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Nobody listens afterwards; closing twice is fine."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def commit(self, name: str) -> str:
        """The commit of a repository, 40 hex digits: a function of what its files hold."""
        files = sorted(path for path in self.repositories[name].rglob("*") if path.is_file())
        return hashlib.sha1(b"".join(path.read_bytes() for path in files)).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer()

    def do_GET(self) -> None:  # noqa: N802
        self._answer()

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        path = unquote(urlsplit(self.path).path)
        if match := _API.fullmatch(path):
            name, kind, revision = match.groups()
            if self._open(name, revision or "main"):
                self._json(self._tree(name) if kind == "tree" else self._info(name))
        elif match := _FILE.fullmatch(path):
            name, revision, file = match.groups()
            if self._open(name, revision):
                self._file(name, file)
        else:
            self._error(404, "")

    def _open(self, name: str, revision: str) -> bool:
        """Whether there is such a repository for the caller; else the refusal has been sent."""
        if name in self.hub.refused:
            self._error(self.hub.refused[name], "")
        elif name not in self.hub.repositories:
            self._error(404, "RepoNotFound")
        elif name in self.hub.gated:
            self._error(403, "GatedRepo")
        elif revision not in ("main", self.hub.commit(name)):
            self._error(404, "RevisionNotFound")
        else:
            return True
        return False

    def _info(self, name: str) -> dict:
        files = [{"rfilename": entry["path"]} for entry in self._tree(name)]
        return {"id": name, "sha": self.hub.commit(name), "siblings": files}

    def _tree(self, name: str) -> list[dict]:
        folder, entries = self.hub.repositories[name], []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            data = path.read_bytes()
            entry = {
                "type": "file", "path": str(path.relative_to(folder)), "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
            }  # fmt: skip
            if path.suffix == ".safetensors":
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return entries

    def _file(self, name: str, file: str) -> None:
        path = self.hub.repositories[name] / file
        if not path.is_file():
            self._error(404, "EntryNotFound")
            return
        data = path.read_bytes()
        get = self.command == "GET"
        how = self.hub.broken.get(file) if get else None
        sent = data[: len(data) // 2] if how else data
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.hub.commit(name))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        if path.suffix == ".safetensors":
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", str(len(sent) if how == "short" else len(data)))
        self.end_headers()
        if get:
            self.hub.fetched[file] += 1
            self.wfile.write(sent)
        if how:
            self.close_connection = True

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode())

    def _error(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "refused"}', **({"X-Error-Code": code} if code else {}))

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
