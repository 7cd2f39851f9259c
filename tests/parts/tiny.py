"""Small parts for the pipeline's tests: a tokenizer, a random teacher, and a corpus of random tokens."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, BertTokenizerFast

from data_prep.shards import shard_folder, vocabulary_hash, write_manifest, write_shard

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3}
PROBE = "w1 w7 w44"


def make_teacher(
    folder: Path, model_type: str = "bert", layers: int = 4, hidden: int = 32, positions: int = 64, **extra
) -> Path:
    """A random model with 4 heads, saved with its tokenizer."""
    torch.manual_seed(7)
    sizes = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden,
    }
    config = AutoConfig.for_model(
        model_type,
        max_position_embeddings=positions,
        initializer_range=0.25,
        **({"vocab_size": len(WORDS), "pad_token_id": 0} | sizes | extra),
    )
    AutoModel.from_config(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def make_corpus(folder: Path, tokens: dict[str, int] | None = None, heldout: int = 700, seed: int = 0) -> Path:
    """Sources of random documents in two shards each, written in the real format."""
    content = {"tokenizer": fingerprint(), "sources": {}, "heldout": {}}
    for name, count in (tokens or {"a": 6000}).items():
        content["sources"][name] = _source(folder, name, "train", [count // 2, count - count // 2], seed)
        content["heldout"][name] = _source(folder, name, "heldout", [heldout], seed + 1)
    write_manifest(folder, content)
    return folder


def fingerprint() -> dict:
    return {
        "backend": "tokenizers",
        "sha256": hashlib.sha256(" ".join(WORDS).encode()).hexdigest(),
        "vocab_size": len(WORDS),
        "vocabulary": vocabulary_hash({word: number for number, word in enumerate(WORDS)}),
        "special": SPECIAL,
        "probe": {"text": PROBE, "ids": [WORDS.index(word) for word in PROBE.split()]},
    }


def _source(folder: Path, name: str, side: str, sizes: list[int], seed: int) -> dict:
    rows = []
    for number, size in enumerate(sizes):
        salt = int.from_bytes(name.encode()[:4])
        tokens = np.random.default_rng([seed, salt, number]).integers(5, len(WORDS), size).astype(np.uint16)
        ends = np.unique(np.append(np.arange(20, size, 20), size)) if size else np.empty(0)
        if size:
            tokens[ends.astype(int) - 1] = SPECIAL["sep"]
        where = shard_folder(folder, name, side)
        rows.append(write_shard(where, f"00000-{number:05d}", tokens, ends, {}))
    return {
        "documents": sum(row["documents"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "size": sum(row["tokens"] for row in rows),
        "shards": rows,
    }


RECIPE = """
data = "{data}"
out = "{out}"
length = 16
batch = 8
micro_batch = 2
steps = 6
warmup_steps = 2
learning_rate = 1e-2
pairs = ["qk", "vv"]
relation_heads = 4
precision = "fp32"
arithmetic = "native"
compile = "none"
log_every = 1
eval_every = 3
eval_samples = 10
checkpoint_every = 3

[teacher]
model = "{teacher}"
layer = 3

[student]
layers = 2
hidden = 16
heads = 4
"""


def make_recipe(folder: Path, **changes: str) -> Path:
    """A whole small run's recipe beside its teacher and corpus, all below ``folder``."""
    paths = {"data": folder / "data", "out": folder / "run", "teacher": folder / "teacher"}
    if not paths["teacher"].exists():
        make_teacher(paths["teacher"])
    if not paths["data"].exists():
        make_corpus(paths["data"])
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(**(paths | changes)))
    return path
