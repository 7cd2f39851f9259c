"""Encoders: the same ids as transformers, and text that stays text."""

import json

import pytest
from data_fixtures import TINY_VOCAB, paragraphs, write_sentencepiece, write_vocab
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from data_prep.encode import PROBE, load_encoder
from data_prep.errors import UserError
from data_prep.shards import vocabulary_hash

TEXTS = [
    *paragraphs(20, seed=9),
    "River, STONE; light! don't it's 3.14 - (the) [of] unaffable",
    "café Ünïcode naïve",
    "日本語 テスト\nnew line\ttab\u00a0space",
    "a\u0301 e\u0300 \ufffd x" + "y" * 200,
    PROBE,
    "",
]
LITERALS = [
    "[SEP] the [CLS] river [PAD] of [MASK] stone",
    "</s> the <s> river <pad> of <mask> stone<unk>",
    "[UNK]",
    "a</s>",
]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    return write_vocab(tmp_path_factory.mktemp("wordpiece"))


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
    return write_sentencepiece(tmp_path_factory.mktemp("sentencepiece"))


@pytest.fixture(scope="module")
def unigram(spm, tmp_path_factory):
    """The same SentencePiece model as transformers' own tokenizer.json."""
    from transformers import XLMRobertaTokenizer

    folder = tmp_path_factory.mktemp("unigram")
    XLMRobertaTokenizer.from_pretrained(spm.parent).save_pretrained(folder)
    return folder


def control_ids(encoder):
    return {encoder.special[role] for role in ("cls", "sep", "pad")}


def test_the_vocabulary_hash_is_that_of_transformers(vocab, spm):
    """Whatever file the ids were read from; and two exchanged words are noticed."""
    from transformers import BertTokenizer, XLMRobertaTokenizer

    for path, kind in ((vocab, BertTokenizer), (spm, XLMRobertaTokenizer)):
        theirs = kind.from_pretrained(path.parent).get_vocab()
        assert load_encoder(path).fingerprint()["vocabulary"] == vocabulary_hash(theirs)
        one, two = [token for token in theirs if token.isalpha()][:2]
        theirs[one], theirs[two] = theirs[two], theirs[one]
        assert load_encoder(path).fingerprint()["vocabulary"] != vocabulary_hash(theirs)


def test_wordpiece_ids_are_those_of_transformers(vocab):
    from transformers import BertTokenizer

    reference = BertTokenizer.from_pretrained(vocab.parent)
    wanted = [reference.encode(text, add_special_tokens=False) for text in TEXTS]
    assert load_encoder(vocab).encode_batch(TEXTS) == wanted


def test_sentencepiece_ids_are_those_of_transformers(spm):
    from transformers import XLMRobertaTokenizer

    reference = XLMRobertaTokenizer.from_pretrained(spm.parent)
    texts = [text for text in TEXTS if "y" * 200 not in text]
    encoder = load_encoder(spm)
    assert encoder.encode_batch(texts) == [reference.encode(text, add_special_tokens=False) for text in texts]
    assert encoder.vocab_size == len(reference)
    ids = {"cls": reference.cls_token_id, "sep": reference.sep_token_id}
    assert encoder.special == ids | {"pad": reference.pad_token_id, "unk": reference.unk_token_id}


def test_a_unigram_tokenizer_json_gives_the_ids_of_its_sentencepiece_model(spm, unigram):
    one, other = load_encoder(spm), load_encoder(unigram)
    assert other.encode_batch(TEXTS) == one.encode_batch(TEXTS)
    assert (other.vocab_size, other.special) == (one.vocab_size, one.special)


@pytest.mark.parametrize("kind", ["vocab", "spm", "unigram"])
def test_control_token_literals_stay_text(kind, request):
    encoder = load_encoder(request.getfixturevalue(kind))
    for text, ids in zip(LITERALS, encoder.encode_batch(LITERALS), strict=True):
        assert ids and not control_ids(encoder) & set(ids), text


def test_a_literal_that_is_a_whole_word_of_the_vocabulary_stays_text(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_encoder(tmp_path).encode_batch(["a [SEP] a"]) == [[4, 0, 4]]


def test_added_tokens_that_are_no_control_tokens_keep_their_ids(vocab, tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "<extra>"])
    tokenizer.add_tokens(["<word>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = load_encoder(tmp_path)
    assert encoder.vocab_size == 7
    assert encoder.encode_batch(["a <word> a"]) == [[4, 6, 4]]
    assert 5 not in encoder.encode_batch(["<extra>"])[0]


def test_truncation_and_padding_of_a_tokenizer_json_are_switched_off(vocab, tmp_path):
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(TINY_VOCAB)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_encoder(tmp_path).encode_batch(TEXTS) == load_encoder(vocab).encode_batch(TEXTS)


def test_a_vocab_txt_is_uncased_unless_its_config_says_otherwise(vocab, tmp_path):
    uncased = load_encoder(vocab)
    assert uncased.encode_batch(["The River"]) == uncased.encode_batch(["the river"])
    write_vocab(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_encoder(tmp_path)
    unk = cased.special["unk"]
    assert cased.encode_batch(["The river"]) == [[unk, *uncased.encode_batch(["river"])[0]]]
    assert cased.fingerprint()["probe"] != uncased.fingerprint()["probe"]


def test_a_folder_is_read_by_its_tokenizer_json_first(vocab, unigram, tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((unigram / "tokenizer.json").read_bytes())
    assert load_encoder(tmp_path).fingerprint() == load_encoder(unigram / "tokenizer.json").fingerprint()


def test_special_tokens_are_those_that_the_config_names(vocab, tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"sep_token": {"content": "[MASK]"}}))
    assert load_encoder(tmp_path).special["sep"] == TINY_VOCAB.index("[MASK]")


def test_the_fingerprint_names_file_ids_and_probe(vocab):
    encoder = load_encoder(vocab)
    fingerprint = encoder.fingerprint()
    assert set(fingerprint) == {"backend", "sha256", "vocab_size", "vocabulary", "special", "probe"}
    assert fingerprint["backend"] == "tokenizers"
    assert fingerprint["probe"] == {"text": PROBE, "ids": encoder.encode_batch([PROBE])[0]}
    assert json.loads(json.dumps(fingerprint)) == fingerprint == load_encoder(vocab.parent).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "missing: no such tokenizer"),
        ("tokenizer.bin", "x", "'.bin' is no tokenizer's suffix"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer that can be loaded"),
        ("tokenizer.json", "x", "tokenizer.json: not a tokenizer that can be loaded"),
        ("spm.model", "x", "spm.model: not a tokenizer that can be loaded"),
        ("vocab.txt", "a\nb\n", "vocab.txt: 2 lines, 2 different, must hold .UNK."),
        ("vocab.txt", "a\na\n[UNK]\n", "vocab.txt: 3 lines, 2 different"),
        ("vocab.txt", "a\n[UNK]\n[CLS]\n[PAD]\n", r"vocab.txt: has no sep token; tried \[SEP\], </s>, <sep>"),
        ("folder", None, "folder: holds neither tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, name, content, message):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / name)
