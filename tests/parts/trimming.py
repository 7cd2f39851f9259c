"""Small parts for the tests of trimming: a model of each kind of tokenizer, and a corpus of two languages."""

import io
import random
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, BertTokenizer, RobertaTokenizer, XLMRobertaTokenizer

from data_prep.encode import load_encoder
from data_prep.shards import shard_folder, token_dtype, write_manifest, write_shard

_SYLLABLES = {
    "de": ["der", "un", "lich", "keit", "ge", "schau", "flö", "ßen", "ber", "tag", "nacht", "wö", "rer", "str", "ahl"],
    "sw": ["wa", "ki", "na", "mwa", "li", "tu", "ku", "ha", "ri", "ngo", "ya", "si", "mba", "ta", "zi", "pe"],
    "el": ["και", "το", "να", "ση", "μου", "λο", "γος", "θα", "λασ", "σα", "φω", "τιά"],
}
RARE = {"de": "ÿ", "sw": "ŋ", "el": "ᾧ"}  # in a single text of the corpus


def texts(language: str, count: int = 120, seed: int = 1) -> list[str]:
    """Sentences of words of a few hundred, of which some are far more frequent than others."""
    dice = random.Random(f"words {language}")
    words = ["".join(dice.choices(_SYLLABLES[language], k=dice.choice([1, 2, 3]))) for _ in range(150)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    dice = random.Random(f"{language} {seed}")
    return [" ".join(dice.choices(words, weights, k=12)).capitalize() + "." for _ in range(count)]


EVERYTHING = [text for language in _SYLLABLES for text in [*texts(language, 300), f"a {RARE[language]} b"]]


def make_model(kind: str, folder: Path, auto_class: type = AutoModel, layers: int = 2) -> Path:
    """A random model of 2 layers × 32, with a trained tokenizer: WordPiece, Unigram or byte-level BPE, as its kind has."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _TOKENIZERS[kind](folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    roles = ("pad", "bos", "eos", *(("cls", "sep") if kind == "modernbert" else ("mask",)))
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer) + 5, hidden_size=32, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=80, initializer_range=0.3,
        **{"hidden_dim" if kind == "distilbert" else "intermediate_size": 64},
        **(ids if kind in ("modernbert", "eurobert") else {"pad_token_id": ids["pad_token_id"]}),
    )  # fmt: skip
    auto_class.from_config(config).save_pretrained(folder)
    return folder


def _wordpiece(folder: Path):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first = [*(f"[unused{i}]" for i in range(3)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[PAD]", *first], show_progress=False)
    tokenizer.train_from_iterator(EVERYTHING, trainer)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return BertTokenizer(vocab=str(folder / "vocab.txt"))


def _unigram(folder: Path):
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(EVERYTHING), model_writer=made, vocab_size=400, hard_vocab_limit=False,
        character_coverage=1.0, normalization_rule_name="nmt_nfkc", minloglevel=2,
    )  # fmt: skip
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(made.getvalue())
    return XLMRobertaTokenizer.from_pretrained(folder)


def _bpe(folder: Path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(EVERYTHING, trainer)
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer.model.save(str(folder))
    return RobertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


_TOKENIZERS = {
    "bert": _wordpiece,
    "electra": _wordpiece,
    "distilbert": _wordpiece,
    "xlm-roberta": _unigram,
    "xlm-roberta-xl": _unigram,
    "camembert": _unigram,
    "roberta": _bpe,
    "modernbert": _bpe,
    "eurobert": _bpe,
}


def make_corpus(folder: Path, model: Path, languages: tuple[str, ...] = ("de", "sw", "el"), **changes) -> Path:
    """Texts of these languages as ``data_prep`` would store them, cut by the model's tokenizer."""
    encoder = load_encoder(model)
    content = {"tokenizer": encoder.fingerprint() | changes, "sources": {}, "heldout": {}}
    for name in languages:
        rare = [f"a {RARE[name]} b"]
        content["sources"][name] = _source(folder, name, "train", encoder, texts(name) + rare)
        content["heldout"][name] = _source(folder, name, "heldout", encoder, texts(name, 30, seed=2))
    write_manifest(folder, content)
    return folder


def _source(folder: Path, name: str, side: str, encoder, documents: list[str]) -> dict:
    ids = [np.append(one, encoder.special["sep"]) for one in encoder.encode_batch(documents)]
    tokens = np.concatenate(ids).astype(token_dtype(encoder.vocab_size))
    ends = np.cumsum([len(one) for one in ids])
    row = write_shard(shard_folder(folder, name, side), "00000-00000", tokens, ends, {})
    return {"documents": len(ids), "tokens": len(tokens), "size": len(tokens), "shards": [row]}
