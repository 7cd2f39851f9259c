"""Small inputs that the tests of data_prep make for themselves: tokenizers, texts, dumps, whole corpora."""

import io
import random
import signal
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase
from xml.sax.saxutils import escape

import numpy as np
import sentencepiece

from data_prep.shards import ENDS_DTYPE, shard_folder, token_dtype, write_manifest, write_shard

ROOT = Path(__file__).parents[2]
WORDS = ["the", "of", "and", "river", "stone", "light", "under", "winter", "house", "wind", "old", "letter", "silver"]
TINY_VOCAB = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS,
    *"abcdefghijklmnopqrstuvwxyz0123456789.,;:!?-'[]<>/()",
]
TINY_VOCAB += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]


def write_vocab(folder: Path) -> Path:
    """A WordPiece vocab.txt that knows some words and every ASCII letter."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(TINY_VOCAB) + "\n", encoding="utf-8")
    return path


def write_sentencepiece(folder: Path) -> Path:
    """A small SentencePiece model with XLM-R's special ids, under XLM-R's file name."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(paragraphs(400, seed=3)),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return path


def paragraphs(count: int, seed: int = 0) -> list[str]:
    """Paragraphs of 40 random words, each with its own number in it."""
    dice = random.Random(seed)
    return [f"{' '.join(dice.choices(WORDS, k=40))} {number}." for number in range(count)]


def noise(count: int, seed: int = 0) -> list[str]:
    """Paragraphs of 40 random words of random letters, which do not compress well."""
    dice = random.Random(seed)
    return [" ".join("".join(dice.choices(ascii_lowercase, k=5)) for _ in range(40)) for _ in range(count)]


def dump(
    pages: list[dict], language: str = "en", namespaces: dict[int, str] | None = None, siteinfo: bool = True
) -> str:
    """A MediaWiki export. A page: text, and if they are not the usual ones ns (None: without), title, redirect.

    ``model`` and ``format`` say what the text is; ``slots`` and ``earlier`` are XML in the revision after its text, and
    before the revision.
    """
    names = {0: "", 6: "File", 14: "Category"} | (namespaces or {})
    spaces = "".join(f'<namespace key="{key}" case="first-letter">{name}</namespace>' for key, name in names.items())
    info = f"<siteinfo><sitename>W</sitename><namespaces>{spaces}</namespaces></siteinfo>"
    body = "".join(_page(page, number) for number, page in enumerate(pages))
    return (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="{language}">'
        f"{info * siteinfo}\n{body}</mediawiki>\n"
    )


def _page(page: dict, number: int) -> str:
    ns = page.get("ns", 0)
    kind = "".join(f"<{key}>{page[key]}</{key}>" for key in ("model", "format") if key in page)
    return (
        f"<page><title>{escape(page.get('title', f'P{number}'))}</title>"
        + (f"<ns>{ns}</ns>" if ns is not None else "")
        + f"<id>{number}</id>"
        + ('<redirect title="P0" />' if page.get("redirect") else "")
        + page.get("earlier", "")
        + f"<revision><id>1</id><comment>not this</comment>{kind}"
        + f'<text xml:space="preserve">{escape(page["text"])}</text>{page.get("slots", "")}</revision></page>\n'
    )


def run_cli(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """``python -m data_prep ARGUMENTS`` to its end."""
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def start_cli(*arguments: object) -> subprocess.Popen:
    """``python -m data_prep ARGUMENTS`` in a process group of its own, deaf to no signal.

    Tests that were started in the background of a script inherit an ignored SIGINT, and would pass it on.
    """
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "data_prep", *map(str, arguments)]


def children(pid: int) -> list[int]:
    """The worker processes of a running prepare."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            line = (entry / "cmdline").read_bytes()
        except (OSError, IndexError, ValueError):
            continue
        if parent == pid and b"spawn_main" in line:
            found.append(int(entry.name))
    return found


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a corpus with its bytes; locks and .inputs.json aside, which name processes and places."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[:5] not in (".lock", ".inpu"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_corpus(folder: Path, documents: list[list[int]] | None = None, vocab_size: int = 100) -> Path:
    """A whole corpus without any text: source "a" with two shards, one of them empty, and a held-out shard."""
    tokenizer = {"backend": "tokenizers", "sha256": "0", "vocab_size": vocab_size}
    tokenizer |= {"special": {"cls": 2, "sep": 3, "pad": 0, "unk": 1}, "probe": {"text": "x", "ids": [5]}}
    documents = documents or [[5, 6, 7], [8], [9, 10]]
    sides = {"train": [documents, []], "heldout": [[[11, 12]], []]}
    entries = {}
    for side, shards in sides.items():
        rows = []
        for number, shard in enumerate(shards):
            tokens = np.array([token for ids in shard for token in (*ids, 3)], token_dtype(vocab_size))
            ends = np.cumsum([len(ids) + 1 for ids in shard], dtype=ENDS_DTYPE)
            rows.append(
                write_shard(shard_folder(folder, "a", side), f"00000-{number:05d}", tokens, ends, {"unknown": 0})
            )
        entries[side] = {key: sum(row[key] for row in rows) for key in ("tokens", "documents")}
        entries[side] |= {"size": entries[side]["tokens"]}
        entries[side] |= {"unknown": 0, "shards": rows, "dropped": {}, "repairs": {}}
    content = {"tokenizer": tokenizer, "sources": {"a": entries["train"]}, "heldout": {"a": entries["heldout"]}}
    write_manifest(folder, content)
    return folder
