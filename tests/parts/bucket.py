"""A real S3 server (moto's) on the loopback interface, in a process of its own; and a proxy before it that slows or cuts."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.request import urlopen

import boto3

from pipeline.processes import free_port

BUCKET = "corpora"
SECRET = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
_PIECE = 2**16


class Bucket:
    """A server with the bucket ``corpora``. ``environment`` leads a client of S3 to it."""

    def __init__(self) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = SECRET | {"AWS_ENDPOINT_URL": self.address}
        self.start()

    def start(self) -> None:
        """Begin, with an empty bucket: the server keeps its objects in memory."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            with suppress(OSError), urlopen(f"{self.address}/moto-api/", timeout=5):
                break
            time.sleep(0.05)
        self.client = boto3.client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.client.create_bucket(Bucket=BUCKET)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def names(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET)
        return [entry["Key"] for entry in listed.get("Contents", [])]


class Proxy:
    """Passes connections on to ``port``: all together at ``rate`` bytes/s towards the client; ``cut``: no more of them.

    ``cut_after``: each connection ends after so many bytes, as a lost one does.
    """

    def __init__(self, port: int, rate: float | None = None):
        self.to, self.rate, self.cut, self.cut_after = port, rate, False, None
        self.passed = 0  # bytes, towards clients
        self._due, self._lock = 0.0, threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.environment = SECRET | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self.cut:
                    client.close()
                    continue
                try:
                    server = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    client.close()
                    continue
                for ends in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, slowed: bool) -> None:
        own = 0
        with suppress(OSError):
            while piece := source.recv(_PIECE):
                if self.cut:
                    break
                if slowed:
                    own += len(piece)
                    self.passed += len(piece)
                    self._wait(len(piece))
                    if self.cut_after is not None and own > self.cut_after:
                        break
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _wait(self, size: int) -> None:
        """As long as ``size`` bytes take on the link, which all connections share."""
        if self.rate is None:
            return
        with self._lock:
            self._due = max(self._due, time.monotonic()) + size / self.rate
            due = self._due
        if (left := due - time.monotonic()) > 0:
            time.sleep(left)


@contextmanager
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    try:
        yield made
    finally:
        made.kill()


@contextmanager
def proxy(port: int, rate: float | None = None) -> Iterator[Proxy]:
    made = Proxy(port, rate)
    try:
        yield made
    finally:
        made.close()
