"""Killed at random, and out of disk: the end is the same, byte for byte.

KILLS=100 in the environment makes the test of random kills that long; it is shorter by default.
"""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from data_prep.cli import UserError
from data_prep.shards import verify
from tests.parts.corpora import ROOT, children, dump, noise, run_cli, start_cli, tree, write_vocab

KILLS = int(os.environ.get("KILLS", "12"))


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """The arguments of a prepare of five formats and some 60 units, without --out."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = noise(12_000)
    (folder / "a.txt.xz").write_bytes(lzma.compress("\n\n".join(texts[:3000]).encode()))
    (folder / "wiki.xml.bz2").write_bytes(bz2.compress(dump([{"text": text} for text in texts[3000:6000]]).encode()))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[6000:9000])
    (folder / "web.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for number in range(30):
        (folder / f"book{number}.txt").write_text("\n".join(texts[9000 + number * 40 : 9040 + number * 40]))
    (folder / "plain.txt").write_text("\n\n".join(texts[10_200:]))
    globs = {
        "a": "cc100:a.*",
        "wiki": "wikipedia:*.bz2",
        "web": "jsonl:*.gz",
        "books": "books:book*",
        "p": "text:plain*",
    }
    sources = [
        option
        for name, (form, pattern) in ((name, text.split(":")) for name, text in globs.items())
        for option in ("--source", f"{name}={form}:{folder}/{pattern}")
    ]
    return ["prepare", *sources, "--tokenizer", write_vocab(folder), "--unit-mib", 0.0625, "--heldout", 0.05]


@pytest.fixture(scope="module")
def whole(prepare, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "d"
    done = run_cli(*prepare, "--out", out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*/*.json"))) > 25 and verify(out, deep=True) == []
    return tree(out)


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(prepare, whole, tmp_path):
    dice = random.Random()
    out, kills, finished = tmp_path / "d", 0, 0
    while kills < KILLS:
        process = start_cli(*prepare, "--out", out, "--workers", dice.choice((1, 2, 3)))
        time.sleep(dice.uniform(0.3, 2.0))
        while process.poll() is None and dice.random() < 0.5:  # one worker, and perhaps another
            if workers := children(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(workers), signal.SIGKILL)
                kills += 1
            time.sleep(dice.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert "Traceback" not in errors, errors
        assert process.returncode in (0, 2, -signal.SIGKILL), errors
        if process.returncode == 0:
            finished += 1
            assert tree(out) == whole
            shutil.rmtree(out)
    done = run_cli(*prepare, "--out", out)
    assert done.returncode == 0, done.stderr
    assert tree(out) == whole


def in_a_small_disk(script, folder):
    """Run a shell script where ``folder`` is a disk of 256 KiB of its own, which nobody else sees."""
    mount = f'mount -t tmpfs -o size=256k none "{folder}" && '
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount + script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_a_full_disk_is_reported_and_with_more_room_the_run_continues(prepare, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None or in_a_small_disk("true", disk).returncode:
        pytest.skip("no small disk can be mounted here (unshare --user --mount)")
    command = " ".join(
        f"'{argument}'" for argument in (sys.executable, "-m", "data_prep", *prepare, "--out", disk / "d")
    )
    script = f"""
        {command} --workers 2; echo "code $?"
        ls -A {disk}/d/a | grep tmp
        mount -o remount,size=64m {disk} && {command} --workers 2 && cp -a {disk}/d {tmp_path}/copy
    """
    done = in_a_small_disk(script, disk)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "code 2" and "tmp" not in done.stdout
    assert "No space left on device; free some space and run the same command again" in done.stderr
    assert "units are done; continuing with the others" in done.stderr and "Traceback" not in done.stderr
    assert tree(tmp_path / "copy") == whole


@pytest.mark.slow
def test_any_flipped_byte_of_a_corpus_is_found(prepare, whole, tmp_path):
    out = tmp_path / "d"
    for name, content in whole.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    dice = random.Random(7)
    names = [name for name in whole if name != "plan.json"]
    places = [("manifest.json", dice.randrange(len(whole["manifest.json"]))) for _ in range(20)]
    for name in dice.choices([name for name in names if name.endswith(".npy")], k=25):
        places.append((name, dice.randrange(128)))  # the header
        if len(whole[name]) > 128:
            places.append((name, dice.randrange(128, len(whole[name]))))
    places += [
        (name, dice.randrange(len(whole[name]))) for name in dice.choices([n for n in names if n[-5:] == ".json"], k=20)
    ]
    for name, offset in places:
        damaged = bytearray(whole[name])
        damaged[offset] ^= 1 << dice.randrange(8)
        (out / name).write_bytes(damaged)
        assert _found(out, name), (name, offset)
        (out / name).write_bytes(whole[name])
    assert verify(out, deep=True) == []


def _found(out, name):
    try:
        findings = verify(out, deep=True)
    except UserError as error:
        return name in str(error)
    return any(name in finding for finding in findings)
