"""Text -> token ids, by WordPiece and its like (``tokenizers``) or by ``sentencepiece``, behind one small interface.

Whatever a text says, it stays text: "[SEP]" or "</s>" in a document never becomes a control id.
"""

import hashlib
import json
from pathlib import Path
from typing import Protocol

import sentencepiece
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from data_prep.errors import UserError
from data_prep.shards import vocabulary_hash

# Encoded into every fingerprint: whoever loads a tokenizer for this data must get the same ids from it.
PROBE = "Ünïcode CASE, don't & 3.14! Ελληνικά Привет мир עברית العربية हिन्दी ไทย 日本語テスト 한국어 ﬁne ½ e\u0301 🙂"

_ROLES = {
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
}


class Encoder(Protocol):
    """What the rest of the package knows of a tokenizer. ``special``: the ids of cls, sep, pad and unk."""

    vocab_size: int
    special: dict[str, int]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens, not truncated."""

    def fingerprint(self) -> dict:
        """backend, sha256 of the file, vocab_size, special, and the ids of a fixed probe text."""


def load_encoder(path: str | Path) -> Encoder:
    """Load a Hugging Face folder, a ``tokenizer.json``, a ``vocab.txt`` or a SentencePiece ``.model`` file.

    A folder is read by its tokenizer.json, else its SentencePiece model (taken as XLM-R's), else its vocab.txt.
    A vocab.txt is uncased unless a tokenizer_config.json beside it says otherwise. Raises UserError if the path is none
    of these or cannot be loaded.
    """
    file = _tokenizer_file(Path(path))
    load = {".json": _load_json, ".txt": _load_vocab, ".model": SentencePieceEncoder}[file.suffix]
    try:
        return load(file)
    except UserError:
        raise
    except Exception as error:  # the Rust and C++ loaders raise bare Exception and RuntimeError
        raise UserError(f"{file}: not a tokenizer that can be loaded ({error})") from None


class TokenizersEncoder:
    """A tokenizer of the ``tokenizers`` library, from its JSON."""

    def __init__(self, file: Path, spec: dict, config: dict):
        whole = Tokenizer.from_str(json.dumps(spec))
        self._file = file
        self.vocabulary = whole.get_vocab(with_added_tokens=True)
        self.vocab_size = whole.get_vocab_size(with_added_tokens=True)
        self.special = {role: _special_id(file, whole, role, config) for role in _ROLES}
        self._tokenizer = Tokenizer.from_str(json.dumps(_without_control_tokens(spec)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def fingerprint(self) -> dict:
        return _fingerprint(self, "tokenizers", self._file)


class SentencePieceEncoder:
    """A SentencePiece model under XLM-R's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, then piece id + 1, last <mask>."""

    special = {"cls": 0, "sep": 2, "pad": 1, "unk": 3}  # noqa: RUF012

    def __init__(self, file: Path):
        self._file = file
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
        ids = self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id()
        if ids != (0, 1, 2):
            raise UserError(f"{file}: ids of <unk>, <s>, </s> are {ids}, but XLM-R's model has (0, 1, 2)")
        self.vocab_size = self._processor.get_piece_size() + 2  # <pad> and <mask> are not in the model
        self.vocabulary = {self._processor.id_to_piece(i): i + 1 for i in range(3, self.vocab_size - 2)}

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        pieces = self._processor.encode(texts, out_type=int, num_threads=1)
        unk = self.special["unk"]
        return [[piece + 1 if piece else unk for piece in document] for document in pieces]

    def fingerprint(self) -> dict:
        return _fingerprint(self, "sentencepiece", self._file)


def _tokenizer_file(path: Path) -> Path:
    if path.is_dir():
        candidates = [path / "tokenizer.json", *sorted(path.glob("*.model")), path / "vocab.txt"]
        found = [file for file in candidates if file.is_file()]
        if not found:
            raise UserError(f"{path}: holds neither tokenizer.json, nor a SentencePiece .model, nor vocab.txt")
        return found[0]
    if not path.is_file():
        raise UserError(
            f"{path}: no such tokenizer; name a Hugging Face folder, tokenizer.json, vocab.txt or .model file"
        )
    if path.suffix not in (".json", ".txt", ".model"):
        raise UserError(
            f"{path}: {path.suffix!r} is no tokenizer's suffix; known are .json, .txt (WordPiece) and .model"
        )
    return path


def _load_json(file: Path) -> TokenizersEncoder:
    return TokenizersEncoder(file, json.loads(file.read_bytes()), _config_beside(file))


def _load_vocab(file: Path) -> TokenizersEncoder:
    """BERT's WordPiece from its vocabulary, one token a line."""
    config = _config_beside(file)
    tokens = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {token.rstrip("\r"): number for number, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or "[UNK]" not in vocab:
        raise UserError(
            f"{file}: {len(tokens)} lines, {len(vocab)} different, must hold [UNK]: not a WordPiece vocabulary"
        )
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(
        lowercase=config.get("do_lower_case", True),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens([token for names in _ROLES.values() for token in names if token in vocab])
    return TokenizersEncoder(file, json.loads(tokenizer.to_str()), config)


def _config_beside(file: Path) -> dict:
    config = file.with_name("tokenizer_config.json")
    return json.loads(config.read_bytes()) if config.is_file() else {}


def _special_id(file: Path, tokenizer: Tokenizer, role: str, config: dict) -> int:
    """The id of cls, sep, pad or unk: the token that tokenizer_config.json names, else the usual names."""
    named = config.get(f"{role}_token")
    named = named.get("content") if isinstance(named, dict) else named
    for token in (named, *_ROLES[role]):
        if token and (number := tokenizer.token_to_id(token)) is not None:
            return number
    raise UserError(f"{file}: has no {role} token; tried {', '.join(filter(None, (named, *_ROLES[role])))}")


def _without_control_tokens(spec: dict) -> dict:
    """The same tokenizer, unable to find a control token in a text: each gets a name that no text contains.

    Special tokens are matched by the added-token matcher and then by the model's vocabulary, to which Unigram's "</s>"
    is a piece like any other; ``Tokenizer.encode_special_tokens`` stops only the first. Every id stays as it was.
    """
    hidden = {token["content"]: f"\uffff{token['id']}\uffff" for token in spec["added_tokens"] if token["special"]}
    added = [token | {"content": hidden.get(token["content"], token["content"])} for token in spec["added_tokens"]]
    model = dict(spec["model"])
    if isinstance(model["vocab"], list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {hidden.get(piece, piece): number for piece, number in model["vocab"].items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    return spec | {"model": model, "added_tokens": added, "post_processor": None}


def _fingerprint(encoder: Encoder, backend: str, file: Path) -> dict:
    return {
        "backend": backend,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "vocab_size": encoder.vocab_size,
        "vocabulary": vocabulary_hash(encoder.vocabulary),
        "special": encoder.special,
        "probe": {"text": PROBE, "ids": encoder.encode_batch([PROBE])[0]},
    }
