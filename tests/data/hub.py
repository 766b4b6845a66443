"""A Hugging Face hub on this machine: one data set, over HTTP, by the hub's API, for the real
clients to read.

What it leaves out is what readers do not ask for. Its content network is the same server by another
name (127.0.0.1, where the hub is localhost), so that clients see a redirect to another host.
"""

import contextlib
import functools
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

NAME = "HuggingFaceFW/fineweb-edu"
TOKEN = "hf_test"
PAGE = 3  # entries of a listing, where the hub has 1000
# as FineWeb-Edu's card has them
CONFIGS = [
    {"config_name": name, "data_files": [{"split": "train", "path": path}]}
    for name, path in (
        ("default", "data/*/*"),
        ("sample-10BT", "sample/10BT/*"),
        ("sample-100BT", "sample/100BT/*"),
        ("sample-350BT", "sample/350BT/*"),
        ("CC-MAIN-2024-10", "data/CC-MAIN-2024-10/*"),
    )
]


class Request(NamedTuple):
    """kind: info, tree, paths, resolve, cdn or none of them. path: of the file or folder. start,
    stop: the bytes asked for.
    """

    kind: str
    path: str
    start: int
    stop: int
    authorized: bool


class Hub:
    """commits: {sha: {path: bytes}}, the last is main's. gated: its files are for holders of TOKEN.

    fault: request -> None, a status, or what to do to the answer: "cut" it in the middle, "stall".
        requests: all, in order.
    """

    def __init__(self):
        self.commits: dict[str, dict[str, bytes]] = {}
        self.configs = CONFIGS
        self.gated = False
        self.fault: Callable[[Request], int | str | None] = lambda request: None
        self.requests: list[Request] = []
        self.sent = 0  # bytes of files
        self.url = ""

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(
            repr([(p, hashlib.sha1(b).hexdigest()) for p, b in sorted(files.items())]).encode()
        ).hexdigest()
        self.commits.pop(sha, None)
        self.commits[sha] = {
            "README.md": b"# FineWeb-Edu",
            ".gitattributes": b"*.parquet filter=lfs",
        } | files
        return sha

    def count(self, kind: str) -> int:
        return sum(request.kind == kind for request in self.requests)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://localhost:{server.server_port}"
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Answer(Exception):
    """An answer that is no file's bytes."""

    def __init__(self, status: int, body: object, **headers: str):
        self.status, self.body, self.headers = status, json.dumps(body).encode(), headers


def _error(status: int, code: str, message: str) -> _Answer:
    return _Answer(status, {"error": message}, **{"X-Error-Code": code, "X-Error-Message": message})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self._authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self._query = parse_qs(url.query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for pattern, method in (
                (rf"/api/datasets/{NAME}(?:/revision/(?P<revision>[^/]+))?", self._info),
                (rf"/api/datasets/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", self._tree),
                (
                    rf"/api/datasets/{NAME}/paths-info/(?P<revision>[^/]+)",
                    lambda revision: self._paths(revision, body),
                ),
                (rf"/datasets/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._resolve),
                (r"/cdn/(?P<digest>\w+)/(?P<path>.+)", self._cdn),
            ):
                if found := re.fullmatch(pattern, url.path):
                    method(**{k: v and unquote(v) for k, v in found.groupdict().items()})
                    return
            self._faulty("none", url.path)
            # the hub does not tell strangers whether a data set is missing or private
            if self._authorized:
                raise _error(404, "RepoNotFound", "Repository not found")
            raise _Answer(
                401,
                {"error": "Invalid username or password."},
                **{"X-Error-Message": "Invalid username or password."},
            )
        except _Answer as answer:
            self._send(answer.status, answer.body, **answer.headers)

    do_HEAD = do_POST = do_GET

    def _info(self, revision: str | None) -> None:
        self._faulty("info", "")
        sha, files = self._commit(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        card = {"license": "odc-by", "configs": self.hub.configs}
        gated = "auto" if self.hub.gated else False
        raise _Answer(
            200,
            {
                "id": NAME,
                "sha": sha,
                "gated": gated,
                "private": False,
                "cardData": card,
                "siblings": siblings,
            },
        )

    def _tree(self, revision: str, path: str | None) -> None:
        path = path or ""
        self._faulty("tree", path)
        _, files = self._commit(revision)
        folder = path and path + "/"
        entries = {}
        for name, data in sorted(files.items()):
            if name.startswith(folder):
                parts = name[len(folder) :].split("/")
                folders = [folder + "/".join(parts[:n]) for n in range(1, len(parts))]
                entries |= {
                    f: {"type": "directory", "oid": _oid(f.encode()), "size": 0, "path": f}
                    for f in folders
                }
                entries[name] = self._entry(name, data)
        if path and not entries:
            raise _error(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
        if self._query.get("recursive", ["false"])[0] != "true":
            entries = {name: e for name, e in entries.items() if "/" not in name[len(folder) :]}
        start = int(self._query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            kept = "&".join(f"{k}={v[0]}" for k, v in self._query.items() if k != "cursor")
            here = f"{self.hub.url}{urlsplit(self.path).path}?{kept}&cursor={start + PAGE}"
            headers["Link"] = f'<{here}>; rel="next"'
        raise _Answer(
            200, [entries[name] for name in sorted(entries)][start : start + PAGE], **headers
        )

    def _paths(self, revision: str, body: bytes) -> None:
        self._faulty("paths", "")
        _, files = self._commit(revision)
        raise _Answer(
            200, [self._entry(p, files[p]) for p in parse_qs(body.decode())["paths"] if p in files]
        )

    def _resolve(self, revision: str, path: str) -> None:
        self._faulty("resolve", path)
        sha, files = self._commit(revision)
        if self.hub.gated and not self._authorized:
            raise _error(
                401,
                "GatedRepo",
                f"Access to dataset {NAME} is restricted. You must have access to it and be "
                "authenticated",
            )
        if path not in files:
            raise _error(404, "EntryNotFound", "Entry not found")
        data = files[path]
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if not path.endswith(".parquet"):
            self._send_range(data, ETag=f'"{_oid(data)}"', **headers)
            return
        digest = _digest(data)
        storage = self.hub.url.replace("localhost", "127.0.0.1")
        there = f"{storage}/cdn/{digest}/{quote(path)}?Expires=1&Signature=x"
        headers |= {
            "Location": there,
            "X-Linked-Size": str(len(data)),
            "X-Linked-ETag": f'"{digest}"',
            "ETag": f'"{digest}"',
        }
        self._send(302, f"Found. Redirecting to {there}".encode(), **headers)

    def _cdn(self, digest: str, path: str) -> None:
        fault = self._faulty("cdn", path)
        files = [
            data for commit in self.hub.commits.values() for p, data in commit.items() if p == path
        ]
        data = next(data for data in files if _digest(data) == digest)
        self._send_range(data, fault, ETag=f'"{digest}"')

    def _entry(self, path: str, data: bytes) -> dict:
        entry = {"type": "file", "oid": _oid(data), "size": len(data), "path": path}
        if path.endswith(".parquet"):
            digest = _digest(data)
            entry |= {
                "lfs": {"oid": digest, "size": len(data), "pointerSize": 135},
                "xetHash": digest,
            }
        return entry

    def _commit(self, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = [*self.hub.commits][-1] if revision == "main" else revision
        if sha not in self.hub.commits:
            raise _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, self.hub.commits[sha]

    def _range(self) -> tuple[int, int | None]:
        start, _, stop = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return int(start), int(stop) + 1 if stop else None

    def _faulty(self, kind: str, path: str) -> str | None:
        start, stop = self._range()
        request = Request(kind, path, start, -1 if stop is None else stop, self._authorized)
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        if isinstance(fault, int):
            raise _Answer(fault, {"error": "no"}, **({"Retry-After": "1"} if fault == 429 else {}))
        if fault == "stall":
            time.sleep(1.5)
        return fault

    def _send_range(self, data: bytes, fault: str | None = None, **headers: str) -> None:
        start, stop = self._range()
        if start >= len(data):
            self._send(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            return
        part = data[start:stop]
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        self.hub.sent += len(part)
        self._send(206 if "Range" in self.headers else 200, part, fault, **headers)

    def _send(self, status: int, body: bytes, fault: str | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@functools.lru_cache
def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
