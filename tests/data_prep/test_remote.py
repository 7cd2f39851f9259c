"""A corpus at a URL: a real S3 server on the loopback interface, killed, slowed and lied to; and the bounded cache."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_prep import mirror as mirrors
from data_prep import remote as remotes
from data_prep.cli import UserError
from data_prep.files import encode_json, sealed
from data_prep.mirror import Cache
from data_prep.push import push
from data_prep.remote import Remote
from data_prep.shards import MANIFEST, open_corpus
from pipeline.processes import free_port
from tests.parts.bucket import BUCKET, bucket, proxy
from tests.parts.corpora import ROOT, run_cli, write_corpus
from tests.parts.hub import hub
from tests.parts.tiny import make_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with bucket() as made:
        yield made


@pytest.fixture
def s3(server, monkeypatch):
    """The server, to which this process's clients are led."""
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    return server


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "data", {"a": 6000, "b": 2000})


@pytest.fixture
def url(s3, data, request):
    """The corpus pushed to a place of the test's own."""
    there = f"s3://{BUCKET}/{request.node.name}"
    push(data, there, print)
    return there


def cache(folder: Path, size: float = 1e9) -> Cache:
    return Cache(folder / "cache", int(size))


def arrays(corpus) -> list[np.ndarray]:
    sources = [*corpus.sources.values(), *corpus.heldout.values()]
    return [array() for source in sources for shard in source.shards for array in (shard.open, shard.ends)]


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("**/*.npy"))


def test_a_mirrored_corpus_is_that_of_the_disk_and_is_fetched_once(url, data, tmp_path):
    here, there = open_corpus(data), open_corpus(url, cache(tmp_path))
    assert there.id == here.id and not kept(tmp_path)  # the manifest is enough to open it
    assert (here.place, there.place) == (str(data), url)  # which people know it by
    assert there.sources == {name: there.sources[name] for name in here.sources}
    assert all(np.array_equal(a, b) for a, b in zip(arrays(here), arrays(there), strict=True))
    times = {path: path.stat().st_ino for path in kept(tmp_path)}
    assert len(times) == 12 and not list((tmp_path / "cache").glob("**/.*.part"))
    arrays(open_corpus(url, cache(tmp_path)))
    assert {path: path.stat().st_ino for path in kept(tmp_path)} == times


def test_push_resumes_and_writes_the_manifest_last(s3, data, capsys, monkeypatch):
    url, written = f"s3://{BUCKET}/pushed", []
    write = Remote.write

    def failing(self, name, path):
        if len(written) == 5:
            raise UserError("the connection fails")
        written.append(name)
        write(self, name, path)

    monkeypatch.setattr(remotes.Remote, "write", failing)
    monkeypatch.setattr("data_prep.push.AT_ONCE", 1)
    with pytest.raises(UserError, match="connection"):
        push(data, url)
    assert f"pushed/{MANIFEST}" not in s3.names()
    with pytest.raises(UserError, match=r"manifest.json: is not there.*push DIR URL"):
        open_corpus(url)
    monkeypatch.setattr(remotes.Remote, "write", write)
    push(data, url)
    assert "18 files" in (said := capsys.readouterr().out) and "; 13 of them copied now" in said
    push(data, url)
    assert "; 0 of them copied now" in capsys.readouterr().out


def test_push_copies_only_what_is_whole_and_replaces_no_other_corpus(url, tmp_path, data):
    other = write_corpus(tmp_path / "other")
    with pytest.raises(UserError, match=r"holds another corpus .*name another URL, or remove that one"):
        push(other, url)
    shard = next((other / "a").glob("*.tokens.npy"))
    shard.write_bytes(shard.read_bytes()[:-2] + b"xx")
    with pytest.raises(UserError, match=r"tokens.npy: .*; push copies a corpus that is whole"):
        push(other, f"{url}-other")


def test_push_mends_what_is_damaged_at_the_url(url, s3, data, tmp_path, capsys):
    key = next(
        key for key in s3.names() if url.endswith(key.split("/")[0]) and key.endswith("/a/00000-00000.tokens.npy")
    )
    content = (data / "a" / "00000-00000.tokens.npy").read_bytes()
    s3.put(key, content[:-1] + b"!")
    with pytest.raises(UserError, match=r"a/00000-00000.tokens.npy: sha256 is not the manifest's"):
        arrays(open_corpus(url, cache(tmp_path)))
    assert not list((tmp_path / "cache").glob("**/*00000-00000.tokens.npy*"))
    push(data, url)
    assert "1 of them copied now" in capsys.readouterr().out
    arrays(open_corpus(url, cache(tmp_path)))


def test_a_manifest_that_has_changed_meanwhile_is_told(url, s3, tmp_path):
    corpus = open_corpus(url, cache(tmp_path))
    other = make_corpus(tmp_path / "other", {"a": 6000, "b": 2000}, seed=5)
    for path in other.rglob("*"):
        if path.is_file():
            s3.put(f"{url.split('/')[-1]}/{path.relative_to(other).as_posix()}", path.read_bytes())
    with pytest.raises(UserError, match=r"is of another corpus: .*manifest.json has changed since this run read it"):
        arrays(corpus)
    assert not kept(tmp_path)


def test_a_killed_server_is_waited_for_and_then_reported(data, tmp_path, monkeypatch):
    with bucket() as own:
        for key, value in own.environment.items():
            monkeypatch.setenv(key, value)
        url = f"s3://{BUCKET}/killed"
        push(data, url)
        corpus = open_corpus(url, cache(tmp_path))
        own.kill()
        monkeypatch.setattr(remotes, "PATIENCE", 1.0)
        with pytest.raises(UserError, match=r"killed/.*: the connection fails \(.*tries in .* s; see that the server"):
            arrays(corpus)
        assert not kept(tmp_path)

        monkeypatch.setattr(remotes, "PATIENCE", 60.0)
        reading = ThreadPoolExecutor(1).submit(arrays, corpus)
        own.start()
        for path in data.rglob("*"):
            if path.is_file():
                own.put(f"killed/{path.relative_to(data).as_posix()}", path.read_bytes())
        # While objects were missing a file may have been found absent: that is not a lost connection.
        try:
            found = reading.result(60)
        except UserError as error:
            assert "is not there" in str(error)
            found = arrays(corpus)
        assert all(np.array_equal(a, b) for a, b in zip(arrays(open_corpus(data)), found, strict=True))


def test_lost_connections_are_made_again_and_truncated_answers_are_never_kept(url, server, data, tmp_path, monkeypatch):
    with proxy(server.port) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL", link.environment["AWS_ENDPOINT_URL"])
        corpus = open_corpus(url, cache(tmp_path))
        link.cut_after = 3000  # of 6 kB
        reading = ThreadPoolExecutor(1).submit(arrays, corpus)
        with pytest.raises(TimeoutError):
            reading.result(1.5)
        assert not kept(tmp_path)
        link.cut_after = None
        assert all(np.array_equal(a, b) for a, b in zip(arrays(open_corpus(data)), reading.result(60), strict=True))


def test_shards_in_the_cache_are_bounded_and_the_least_recently_used_goes(url, data, tmp_path):
    corpus = open_corpus(url, cache(tmp_path, 14_000))  # a's shards have 6128 bytes each, b's 2128, those held out 1528
    a, b = corpus.sources["a"].shards, corpus.sources["b"].shards
    for number, shard in enumerate((a[0], a[1])):
        shard.open()
        os.utime(shard.path, (number, number))
    a[0].open()  # the older one is used again
    b[0].open()
    assert a[0].path.exists() and b[0].path.exists() and not a[1].path.exists()
    assert sum(path.stat().st_size for path in kept(tmp_path)) <= 14_000


def test_a_held_shard_is_never_removed_whoever_wants_room(url, tmp_path, monkeypatch):
    corpus, other = (open_corpus(url, cache(tmp_path, 7000)) for _ in range(2))
    a = corpus.sources["a"].shards
    corpus.mirror.hold(a[0].path)
    a[0].open()
    monkeypatch.setattr(mirrors, "_ROOM_PATIENCE", 0.5)
    with pytest.raises(
        UserError, match=r"no room for 0.0 MB: cache_gb = 7e-06 is full of shards in use; raise cache_gb"
    ):
        other.sources["a"].shards[1].open()
    corpus.mirror.release(a[0].path)
    other.sources["a"].shards[1].open()
    assert not a[0].path.exists()


def test_processes_that_want_the_same_shards_fetch_each_once(url, server, tmp_path, monkeypatch):
    code = "import sys; from data_prep.shards import open_corpus; from data_prep.mirror import Cache; "
    code += "c = open_corpus(sys.argv[1], Cache.of(sys.argv[2])); [s.open() for s in c.sources['a'].shards]"
    with proxy(server.port) as link:
        environment = os.environ | link.environment
        command = [sys.executable, "-c", code, url, tmp_path / "cache"]
        both = [subprocess.Popen(command, env=environment, cwd=ROOT) for _ in range(3)]
        assert [process.wait(60) for process in both] == [0, 0, 0]
        manifest = len((tmp_path / "cache" / open_corpus(url, cache(tmp_path)).path.name / MANIFEST).read_bytes())
        assert link.passed - 3 * manifest < 2 * 6128 + 20_000  # headers of answers aside, each shard once


def test_what_a_killed_process_left_half_is_removed_and_not_counted(url, tmp_path):
    corpus = open_corpus(url, cache(tmp_path, 13_000))
    a = corpus.sources["a"].shards
    part = a[0].path.with_name(f".{a[0].path.name}.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 6128)
    a[1].open()
    a[0].open()
    assert not part.exists() and a[0].path.exists() and a[1].path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_one_line(url, tmp_path):
    small = tmp_path / "cache"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k", "none", small], check=True)
    try:
        with pytest.raises(UserError, match=r"cache: cannot be written \(No space left on device\); free some space"):
            arrays(open_corpus(url, cache(tmp_path)))
        assert not list(small.glob("**/.*.part"))
        for path in kept(tmp_path):
            assert path.stat().st_size in (6128, 2128, 1528, 128 + 8 * 150, 128 + 8 * 50, 128 + 8 * 35)
    finally:
        subprocess.run(["umount", small], check=True)


def test_rights_places_and_schemes_are_told_in_one_line(s3, data, monkeypatch):
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x/manifest.json: is not there"):
        open_corpus("s3://no-such-bucket/x")
    with pytest.raises(UserError, match=r"npy: is not there; see that no-such-bucket is there, and make it"):
        push(data, "s3://no-such-bucket/x")
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"no right to it \(.*credentials.*\); set AWS_PROFILE"):
        open_corpus(f"s3://{BUCKET}/x")
    with pytest.raises(UserError, match=r"ftp://host/x: not read from here; use a folder, or s3://"):
        open_corpus("ftp://host/x")
    with pytest.raises(UserError, match="not protected on its way; use https://"):
        open_corpus("http://example.org/x")
    with pytest.raises(UserError, match="hf://datasets/a/b: is written to by `hf upload`"):
        Remote("hf://datasets/a/b").write("x", Path("x"))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="gs://x: needs gcsfs; pip install gcsfs"):
        Remote("gs://x")


class Web(BaseHTTPRequestHandler):
    """Serves ``files``; 403 for names in ``closed``."""

    files: dict[str, bytes]
    closed: set[str]

    def do_HEAD(self):
        self._answer(b"")

    def do_GET(self):
        self._answer(self.files.get(self.path[1:], b""))

    def log_message(self, *_):
        pass

    def _answer(self, content):
        name = self.path[1:]
        self.send_response(403 if name in self.closed else 200 if name in self.files else 404)
        self.send_header("Content-Length", str(len(self.files.get(name, b""))))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def web():
    handler = type("Handler", (Web,), {"files": {}, "closed": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def test_a_web_server_without_ranges_serves_a_corpus(web, data, tmp_path):
    url, handler = web
    handler.files = {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    there = open_corpus(url, cache(tmp_path))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(open_corpus(data)), arrays(there), strict=True))
    handler.closed = {"manifest.json"}
    with pytest.raises(UserError, match=r"manifest.json: no right to it \(403"):
        open_corpus(url, cache(tmp_path))
    handler.closed, handler.files = set(), {}
    with pytest.raises(UserError, match=r"manifest.json: is not there; see that the URL"):
        open_corpus(url, cache(tmp_path))


READ = """
import sys
from pathlib import Path
from data_prep.mirror import Cache
from data_prep.shards import open_corpus

corpus = open_corpus(sys.argv[1], Cache(Path(sys.argv[2]), 10**9))
print(corpus.id, sum(int(shard.open().sum()) for source in corpus.sources.values() for shard in source.shards))
"""


def read_apart(url: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A process that opens a corpus and reads all its tokens."""
    words = [sys.executable, "-c", READ, url, folder / "cache"]
    return subprocess.run(list(map(str, words)), env=environment, cwd=ROOT, capture_output=True, text=True)


def seen_in(data: Path) -> str:
    corpus = open_corpus(data)
    return (
        f"{corpus.id} {sum(int(shard.open().sum()) for source in corpus.sources.values() for shard in source.shards)}\n"
    )


def test_a_data_set_of_the_hub_is_read(data, tmp_path):
    files = {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with hub(files, tmp_path / "home") as (environment, _):
        done = read_apart("hf://datasets/org/name", tmp_path, environment)
        assert done.stdout == seen_in(data), done.stderr
        refused = read_apart("hf://datasets/org/name/below", tmp_path, environment)
    assert "hf://datasets/org/name/below/manifest.json: is not there" in refused.stderr


def test_a_bucket_of_google_is_written_and_read(data, tmp_path):
    pytest.importorskip("gcsfs", reason="needs gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator")
    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    environment = os.environ | {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
    push_apart = [sys.executable, "-m", "data_prep", "push", data, f"gs://{BUCKET}/x"]
    try:
        for copied in ("18", "0"):
            done = subprocess.run(map(str, push_apart), env=environment, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0 and f"{copied} of them copied now" in done.stdout, done.stdout + done.stderr
        done = read_apart(f"gs://{BUCKET}/x", tmp_path, environment)
        assert done.stdout == seen_in(data), done.stderr
    finally:
        server.stop()


def test_a_web_server_that_does_not_answer_is_a_lost_connection_and_no_missing_file(monkeypatch):
    monkeypatch.setattr(remotes, "PATIENCE", 0.7)
    with pytest.raises(UserError, match=r"manifest.json: the connection fails \(.*\), 2 tries in"):
        open_corpus(f"http://127.0.0.1:{free_port()}")


def change(manifest: dict, key: str, value: str) -> dict:
    entry = manifest["sources"].pop("a")
    if key == "source":
        manifest["sources"][value] = entry
    else:
        entry["shards"][0] |= {"file": value}
        manifest["sources"]["a"] = entry
    return sealed(manifest)


@pytest.mark.parametrize("key", ["source", "file"])
@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", ".locks", "a/b", "a\\b"])
def test_names_of_a_manifest_never_leave_the_cache(web, data, tmp_path, key, name):
    url, handler = web
    manifest = json.loads((data / MANIFEST).read_text())
    handler.files = {MANIFEST: encode_json(change(manifest, key, name))}
    with pytest.raises(UserError, match=r"manifest.json: not a manifest \(.* is no name of a source or a shard\)"):
        open_corpus(url, cache(tmp_path))
    assert not list(tmp_path.iterdir())


def test_an_array_of_another_kind_is_refused_although_its_hash_is_the_manifests(web, tmp_path):
    url, handler = web
    data = write_corpus(tmp_path / "data")
    shard = data / "a" / "00000-00000.tokens.npy"
    content = shard.read_bytes().replace(b"'<u2'", b"'|O8'")  # objects, which are unpickled
    manifest = json.loads((data / MANIFEST).read_text())
    manifest["sources"]["a"]["shards"][0]["sha256"]["tokens"] = hashlib.sha256(content).hexdigest()
    handler.files = {MANIFEST: encode_json(sealed(manifest)), "a/00000-00000.tokens.npy": content}
    with pytest.raises(UserError, match="sha256 is not the manifest's"):
        open_corpus(url, cache(tmp_path)).sources["a"].shards[0].open()


def test_a_file_that_is_longer_than_the_manifest_says_does_not_fill_the_disk(web, data, tmp_path, monkeypatch):
    url, handler = web
    handler.files = {MANIFEST: (data / MANIFEST).read_bytes(), "a/00000-00000.tokens.npy": b"x" * 50_000_000}
    monkeypatch.setattr(remotes, "PATIENCE", 0.0)
    with pytest.raises(UserError, match=r"the connection fails \(\d+ or more of 6128 bytes came\)"):
        open_corpus(url, cache(tmp_path)).sources["a"].shards[0].open()
    assert not kept(tmp_path)


def test_stats_reads_a_url_and_other_verbs_refuse_one(s3, tmp_path):
    data, url = write_corpus(tmp_path / "data"), f"s3://{BUCKET}/stats"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "home")}
    pushed = run_cli("push", data, url, env=environment)
    assert pushed.returncode == 0 and "all read back and whole" in pushed.stdout, pushed.stderr
    here, there = (run_cli("stats", place, env=environment) for place in (data, url))
    assert there.returncode == 0 and here.stdout.replace(str(data), url) == there.stdout
    for verb in (["verify"], ["status"], ["prepare", "--out"]):
        refused = run_cli(*verb, url)
        assert refused.returncode == 2 and "is a URL, and this works on a folder" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
