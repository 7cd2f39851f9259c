"""A hub on the loopback interface that takes uploads: the part of the Hugging Face hub's HTTP interface that a commit needs."""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

TOKEN = "hf_of_the_tests"


class Hub:
    """What the server holds: the files of its one model, whether that is private, its commits and requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] | None = None  # None: no such model yet
        self.private = False
        self.commits: list[str] = []
        self.log: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.refuses = ""  # a part of a path that is answered with 403

    def commit(self, lines: bytes) -> None:
        assert self.files is not None
        files = dict(self.files)
        for line in map(json.loads, lines.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                self.commits.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        self.files = files


@contextmanager
def uploads(home: Path) -> Iterator[tuple[dict[str, str], Hub]]:
    """Serve one model, org/name; yields the environment of a client with a token, and what the server holds."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def log_message(self, *_: object) -> None:
            state.log.append(f"{self.command} {self.path}")

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlparse(self.path).path
            allowed = path.startswith("/blobs/") or self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if not allowed or (state.refuses and state.refuses in path):
                self._send(403, {"error": "you may not write here"})
            elif path == "/api/repos/create":
                asked = json.loads(body)
                assert (asked["name"], asked["organization"]) == ("name", "org")
                private = asked.get("private") or asked.get("visibility") == "private"
                state.private = private if state.files is None else state.private
                code = 200 if state.files is None else 409
                state.files = state.files or {}
                self._send(code, {"url": f"{place}/org/name", "name": "org/name", "id": "org/name"})
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif path.startswith("/api/models/org/name/preupload/"):
                files = json.loads(body)["files"]
                ways = {True: "lfs", False: "regular"}
                answer = [
                    {"path": f["path"], "uploadMode": ways[is_large(f["path"])], "shouldIgnore": False} for f in files
                ]
                self._send(200, {"files": answer})
            elif path == "/org/name.git/info/lfs/objects/batch":
                objects = [
                    each | {"actions": {"upload": {"href": f"{place}/blobs/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self._send(200, {"transfer": "basic", "objects": objects})
            elif path.startswith("/blobs/"):
                assert hashlib.sha256(body).hexdigest() == path.removeprefix("/blobs/")
                state.blobs[path.removeprefix("/blobs/")] = body
                self._send(200, {})
            elif path.startswith("/api/models/org/name/commit/"):
                state.commit(body)
                self._send(200, {"commitUrl": f"{place}/org/name/commit/1", "commitOid": "1" * 40, "success": True})
            elif path.startswith("/api/models/org/name/tree/"):
                files = state.files or {}
                self._send(
                    200, [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                )
            elif path.startswith("/api/models/org/name"):
                siblings = [{"rfilename": name} for name in state.files or {}]
                self._send(200, {"id": "org/name", "sha": "1" * 40, "siblings": siblings, "tags": []})
            else:
                self._send(404, {})

        def _send(self, code: int, content: object) -> None:
            encoded = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    place = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": place,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        yield environment, state
    finally:
        server.shutdown()
        server.server_close()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".onnx", ".bin"))
