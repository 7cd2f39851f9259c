"""Text -> token ids, by ``tokenizers`` (WordPiece and its like) or ``sentencepiece`` (XLM-R's kind), as one ``Encoder``.

The ids are those of transformers' tokenizer of the same file (to the rounding that ``_sentencepiece`` describes), with one
intended difference: whatever a text says, it stays text, and "[SEP]" in a document never becomes a control id.
"""

import base64
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Normalizer, Precompiled, Sequence
from tokenizers.pre_tokenizers import BertPreTokenizer

from data_prep.cli import UserError
from data_prep.files import file_sha256
from data_prep.shards import token_dtype, vocabulary_hash

# Encoded into every fingerprint: whoever loads a tokenizer for this data must get the same ids from it.
PROBE = "Ünïcode CASE, don't & 3.14! Ελληνικά Привет мир עברית العربية हिन्दी ไทย 日本語テスト 한국어 ﬁne ½ e\u0301 🙂"

# Two tokenizers must agree on these too, to count as the same: kinds of space, decomposed letters, control tokens, runs
# of unknown characters.
_TRIALS = [
    PROBE,
    " a  b\t\nc\u00a0d\u200be ",
    "o\u0323\u0301 \u1025\u102e:",
    "<s>a</s><mask> [SEP]",
    "a\U000f0000\U000f0001 b",
]

_ROLES = {
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
}

# In characters. Sentencepiece adds up the scores of a whole stretch in 32 bits, so that in one of 2^17 a difference of
# 0.01 between two ways to cut a word would be lost; and both libraries need a multiple of a stretch's size in memory.
_STRETCH = 2**12
_LONGEST_STRETCH = 2**17

_Encode = Callable[[str], np.ndarray]
_Pieces = Iterable[tuple[str, float]]  # with their log probabilities


class Encoder:
    """A tokenizer, from ``file``. ``vocabulary``: the id of each token. ``special``: the ids of cls, sep, pad and unk."""

    def __init__(self, file: Path, backend: str, vocabulary: dict[str, int], special: dict[str, int], encode: _Encode):
        self.vocabulary = vocabulary
        self.vocab_size = max(vocabulary.values()) + 1
        self.special = special
        self.file = file
        self._backend = backend
        self._encode = encode  # of one stretch
        self._dtype = token_dtype(self.vocab_size)
        self._joint = _find_joint(encode)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text [tokens], of the vocabulary's ``token_dtype``, without special tokens, not truncated.

        A text may have any length, and its ids depend on nothing but the text.
        """
        return [self._encode_text(text) for text in texts]

    def fingerprint(self) -> dict[str, Any]:
        """backend, sha256 of the file, vocab_size, special, and the ids of a fixed probe text."""
        return {
            "backend": self._backend,
            "sha256": file_sha256(self.file),
            "vocab_size": self.vocab_size,
            "vocabulary": vocabulary_hash(self.vocabulary),
            "special": self.special,
            "probe": {"text": PROBE, "ids": self._encode_text(PROBE).tolist()},
        }

    def _encode_text(self, text: str) -> np.ndarray:
        ids = bytearray()  # grows in place, where joining arrays would hold all ids twice
        for stretch in _stretches(text, self._joint):
            ids += self._encode(stretch).astype(self._dtype, copy=False).data
        return np.frombuffer(ids, self._dtype)


def load_encoder(path: str | Path) -> Encoder:
    """Load a Hugging Face folder, a ``tokenizer.json``, a ``vocab.txt`` or a SentencePiece ``.model`` file.

    A folder is read by its tokenizer.json, else its SentencePiece model (taken as XLM-R's), else its vocab.txt.
    A vocab.txt is uncased unless a tokenizer_config.json in its folder says otherwise. Raises UserError if the path is
    none of these or cannot be loaded.
    """
    file = tokenizer_file(Path(path))
    load = {".json": _load_json, ".txt": _load_vocab, ".model": _load_model}[file.suffix]
    try:
        return load(file)
    except UserError:
        raise
    except Exception as error:  # the Rust and C++ loaders raise bare Exception and RuntimeError
        raise UserError(f"{file}: not a tokenizer that can be loaded ({error})") from None


def tokenizer_file(path: Path) -> Path:
    """The file that ``load_encoder`` reads. Raises UserError if there is none."""
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
            f"{path}: {path.suffix!r} is not the suffix of a tokenizer; known are .json, .txt (WordPiece) and .model"
        )
    return path


def _load_json(file: Path) -> Encoder:
    """By ``sentencepiece`` if that is the same tokenizer, as it is ten times faster; else by ``tokenizers``."""
    spec = json.loads(file.read_bytes())
    encoder = _tokenizers_encoder(file, spec, _config_of(file))
    return _sentencepiece_twin(file, spec, encoder) or encoder


def _load_vocab(file: Path) -> Encoder:
    """BERT's WordPiece from its vocabulary, one token a line."""
    config = _config_of(file)
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
    return _tokenizers_encoder(file, json.loads(tokenizer.to_str()), config)


def _load_model(file: Path) -> Encoder:
    """A SentencePiece model under XLM-R's ids: <s> 0, <pad> 1, </s> 2, <unk> 3, then piece id + 1, last <mask>."""
    processor = SentencePieceProcessor(model_file=str(file))
    first = [processor.id_to_piece(number) for number in range(3)]
    if first != ["<unk>", "<s>", "</s>"]:
        raise UserError(f"{file}: its first pieces are {first}, but XLM-R's model has ['<unk>', '<s>', '</s>']")
    own = [(processor.id_to_piece(number), processor.get_score(number)) for number in range(3, len(processor))]
    pieces = [*((token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")), *own, ("<mask>", 0.0)]
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    special = {role: _special_id(file, vocabulary, role, {}) for role in _ROLES}
    rules = _field(_field(file.read_bytes(), 3), 2)
    encode = _sentencepiece(pieces, special["unk"], {"<s>", "<pad>", "</s>", "<mask>"}, rules)
    if [number + 1 if number else special["unk"] for number in processor.encode(PROBE)] != encode(PROBE).tolist():
        raise UserError(
            f"{file}: not a Unigram model with XLM-R's settings; save it as a tokenizer.json by transformers"
        )
    return Encoder(file, "sentencepiece", vocabulary, special, encode)


def _config_of(file: Path) -> dict[str, Any]:
    """The tokenizer_config.json in the file's folder."""
    config = file.with_name("tokenizer_config.json")
    return json.loads(config.read_bytes()) if config.is_file() else {}


def _special_id(file: Path, vocabulary: dict[str, int], role: str, config: dict[str, Any]) -> int:
    """The id of cls, sep, pad or unk: the token that tokenizer_config.json names, else the usual names."""
    named = config.get(f"{role}_token")
    named = named.get("content") if isinstance(named, dict) else named
    for token in (named, *_ROLES[role]):
        if token in vocabulary:
            return vocabulary[token]
    raise UserError(f"{file}: has no {role} token; tried {', '.join(filter(None, (named, *_ROLES[role])))}")


def _tokenizers_encoder(file: Path, spec: dict[str, Any], config: dict[str, Any]) -> Encoder:
    """A tokenizer of the ``tokenizers`` library, from its JSON."""
    vocabulary = Tokenizer.from_str(json.dumps(spec)).get_vocab(with_added_tokens=True)
    tokenizer = Tokenizer.from_str(json.dumps(_without_control_tokens(spec)))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(stretch: str) -> np.ndarray:
        (encoding,) = tokenizer.encode_batch_fast([stretch], add_special_tokens=False)  # computes no offsets
        return np.array(encoding.ids, np.uint32)

    special = {role: _special_id(file, vocabulary, role, config) for role in _ROLES}
    return Encoder(file, "tokenizers", vocabulary, special, encode)


def _without_control_tokens(spec: dict[str, Any]) -> dict[str, Any]:
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


def _sentencepiece_twin(file: Path, spec: dict[str, Any], encoder: Encoder) -> Encoder | None:
    """The tokenizer of a tokenizer.json run by ``sentencepiece``; None unless it can be and gives the trials' ids."""
    steps = _steps(spec["normalizer"]) + _steps(spec["pre_tokenizer"])
    if not (_is_plain_unigram(spec) and all(map(_is_sentencepiece_step, steps))):
        return None
    rules = b"".join(base64.b64decode(step.get("precompiled_charsmap", "")) for step in steps)
    control = {token["content"] for token in spec["added_tokens"]}
    encode = _sentencepiece(spec["model"]["vocab"], spec["model"]["unk_id"], control, rules)
    twin = Encoder(file, "sentencepiece", encoder.vocabulary, encoder.special, encode)
    same = map(np.array_equal, twin.encode_batch(_TRIALS), encoder.encode_batch(_TRIALS))
    return twin if all(same) else None


def _is_plain_unigram(spec: dict[str, Any]) -> bool:
    model, added = spec["model"], spec["added_tokens"]
    plain: bool = model["type"] == "Unigram" and model["unk_id"] is not None and not model.get("byte_fallback")
    return plain and all(token["special"] for token in added)


def _steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, be it a sequence, one step or none."""
    if part is None:
        return []
    return part.get("normalizers") or part.get("pretokenizers") or [part]


def _is_sentencepiece_step(step: dict[str, Any]) -> bool:
    """Whether sentencepiece does the same with spaces by itself: strip, collapse, put one before every text."""
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"Regex": " {2,}"})
    return step["type"] in ("Precompiled", "Strip", "WhitespaceSplit", "Metaspace")


def _sentencepiece(pieces: _Pieces, unk: int, control: set[str], rules: bytes) -> _Encode:
    """Encode by a Unigram model whose ids are the places of its pieces. ``rules``: its precompiled normalisation rules.

    transformers and sentencepiece apply these differently where a letter is followed by marks: of o, dot below, acute,
    transformers drops the acute, and it composes nothing of 6 bytes or more. Students are used with transformers, so text
    that is not composed is normalised its way. Two differences are left: for one in 300,000 tokens, where two ways to cut
    a word score alike to a thousandth, sentencepiece's 32-bit sums choose the other; and it keeps the mark of "½" with an
    acute.
    """
    model = _model_entries(pieces, unk, control)
    whole = SentencePieceProcessor(model_proto=model + _message(3, _message(2, rules)))
    plain = SentencePieceProcessor(model_proto=model)
    normalizer: Normalizer = Precompiled(rules) if rules else Sequence([])

    def encode(stretch: str) -> np.ndarray:
        stretch = stretch.replace("\x85", " ")  # a space to transformers, a letter to the rules
        ids: np.ndarray
        if is_normalized("NFC", stretch):  # takes a twentieth of the time of encoding
            ids = whole.encode(stretch, return_type="numpy")
        else:
            ids = plain.encode(normalizer.normalize_str(stretch), return_type="numpy")
        return ids

    return encode


def _model_entries(pieces: _Pieces, unk: int, control: set[str]) -> bytes:
    """The pieces as a .model file (sentencepiece_model.proto), in which control pieces are never found in a text.

    Written by hand, because the module that sentencepiece ships for it works with the newest protobuf only.
    """
    normal, unknown, not_in_text = 1, 2, 3
    entries = []
    for number, (piece, score) in enumerate(pieces):
        kind = not_in_text if piece in control else normal
        if number == unk:
            kind = unknown
        entries.append(_message(1, _message(1, piece.encode()) + struct.pack("<BfBB", 0x15, score, 0x18, kind)))
    return b"".join(entries)


def _message(field: int, content: bytes) -> bytes:
    """The bytes of a protobuf field that holds a string, bytes or a message."""
    size = len(content)
    head = [field << 3 | 2]
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


def _field(message: bytes, wanted: int) -> bytes:
    """The content of a protobuf message's first field ``wanted``, which is not a number; empty if it has none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind in (0, 2):  # a number itself, or the size of what follows
            size, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}[kind]
        end = at + size if kind else at
        if key >> 3 == wanted:
            return message[at:end]
        at = end
    return b""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits per byte, lowest first, and where it ends."""
    number, shift = 0, 0
    while message[at] > 127:
        number, shift, at = number | (message[at] & 127) << shift, shift + 7, at + 1
    return number | message[at] << shift, at + 1


def _find_joint(encode: _Encode) -> re.Pattern[str]:
    """The places where a text may be cut: before a space, newline or blank line between two words, if no ids change.

    Every two neighbours of the probe are tried. Most tokenizers pass; some that put a space before every text pass at
    spaces only, or not at all.
    """
    gaps = [" ", "\n", "\n\n"]
    for left, right in pairwise(PROBE.split(" ")):
        gaps = [gap for gap in gaps if _keeps_apart(encode, gap, left, right)]
    return re.compile(rf"(?<=\S)(?:{'|'.join(sorted(gaps))})(?=\w)" if gaps else r"(?!)")


def _keeps_apart(encode: _Encode, gap: str, left: str, right: str) -> bool:
    parts = np.concatenate([encode(left), encode(gap + right)])
    return np.array_equal(parts, encode(left + gap + right))


def _stretches(text: str, joint: re.Pattern[str]) -> Iterator[str]:
    """Cut a text before the first joint after _STRETCH characters.

    Where there is none up to _LONGEST_STRETCH (a blob of base64), the cut is there, whatever the ids on both sides.
    """
    begin = 0
    while len(text) - begin > _STRETCH:
        found = joint.search(text, begin + _STRETCH, begin + _LONGEST_STRETCH)
        end = found.start() if found else begin + _LONGEST_STRETCH
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]
