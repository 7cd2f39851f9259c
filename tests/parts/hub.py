"""A hub on the loopback interface: the part of the Hugging Face hub's HTTP interface that listing and fetching files needs.

The client is the real ``huggingface_hub``, in a process of its own with HF_ENDPOINT set.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(files: dict[str, bytes], home: Path, lies: dict[str, bytes] | None = None) -> Iterator[tuple[dict, list[str]]]:
    """Serve ``files`` as dataset or model org/name; yields the environment of a client and the log of requests.

    ``lies``: what is sent in the place of a file's bytes.
    """
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            log.append(f"{self.command} {self.path}")

        def _answer(self, body: bool) -> None:
            path = unquote(urlparse(self.path).path)
            name = path.partition("/resolve/")[2].partition("/")[2]
            if path.startswith(("/api/datasets/org/name", "/api/models/org/name")):
                answer = _tree(files) if "/tree/" in path else _listing(files)
                self._send(200, json.dumps(answer).encode(), body, {"Content-Type": "application/json"})
            elif "/org/name/resolve/" in path and name in files:
                digest = hashlib.sha256(files[name]).hexdigest()
                headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(files[name]))}
                self._send(200, (lies or {}).get(name, files[name]), body, headers)
            else:
                self._send(404, b"{}", body, {"X-Error-Code": "EntryNotFound" if name else "RepoNotFound"})

        def _send(self, code: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
    }
    try:
        yield environment, log
    finally:
        server.shutdown()
        server.server_close()


def _listing(files: dict[str, bytes]) -> dict:
    siblings = [
        {"rfilename": name, "size": len(content), "blobId": "0" * 40}
        | ({} if name.startswith("small") else {"lfs": _lfs(content)})
        for name, content in files.items()
    ]
    return {
        "id": "org/name",
        "sha": COMMIT,
        "siblings": siblings,
        "private": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }


def _tree(files: dict[str, bytes]) -> list[dict]:
    return [{"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in files.items()]


def _lfs(content: bytes) -> dict:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
