"""Encoders: the same ids as transformers, texts of any length, and text that stays text."""

import io
import json

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from data_prep import encode
from data_prep.cli import UserError
from data_prep.encode import PROBE, load_encoder
from data_prep.shards import token_dtype, vocabulary_hash
from tests.parts.corpora import TINY_VOCAB, paragraphs, write_sentencepiece, write_vocab

TEXTS = [
    *paragraphs(20, seed=9),
    "River, STONE; light! don't it's 3.14 - (the) [of] unaffable",
    "café Ünïcode naïve",
    "日本語 テスト\nnew line\ttab\u00a0space",
    "a\u0301 e\u0300 \ufffd x" + "y" * 200,
    PROBE,
    "",
]
# Letters with marks, as typed and as composed, in the scripts where sentencepiece and transformers part.
MARKS = [
    "o\u0323\u0301",
    "\u1ecd\u0301",
    "\u1025\u102e:",
    "\u1026:",
    "\u0995\u09c7\u09be",
    "\u0c95\u0cc6\u0cc2",
    "1\u20442\u0301",
]
LONG = "\n".join(
    [*paragraphs(40), "Привет мир", "日本語\n\nテスト", "two  spaces , \t tab", "x\n\n\ny", *paragraphs(40, seed=1)]
)
PUNCTUATION = {"type": "Punctuation", "behavior": "Isolated"}
REPLACE = {"type": "Replace", "pattern": {"String": "lk"}, "content": "l"}
ADDED = {"id": 9999, "content": "river", "special": False, "normalized": False}
ADDED |= {"single_word": False, "lstrip": False, "rstrip": False}
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
def many(tmp_path_factory):
    """A SentencePiece model in XLM-R's ids that knows every character of MARKS."""
    return train_sentencepiece(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="module")
def unigram(many, tmp_path_factory):
    """The same SentencePiece model as transformers' own tokenizer.json."""
    from transformers import XLMRobertaTokenizer

    folder = tmp_path_factory.mktemp("unigram")
    XLMRobertaTokenizer.from_pretrained(many.parent).save_pretrained(folder)
    return folder


def train_sentencepiece(folder, **settings):
    model = io.BytesIO()
    lines = [*paragraphs(300, seed=3), *[" ".join(MARKS)] * 20, *[PROBE] * 20]
    settings = {"vocab_size": 300, "hard_vocab_limit": False, "character_coverage": 1.0} | settings
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, normalization_rule_name="nmt_nfkc", minloglevel=2, **settings
    )
    path = folder / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return path


def write_byte_level(folder, add_prefix_space=False):
    """RoBERTa's kind of tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    control = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(paragraphs(100), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def rewrite(folder, unigram, **parts):
    """The Unigram tokenizer.json with other parts."""
    spec = json.loads((unigram / "tokenizer.json").read_bytes()) | parts
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return folder


def ids_of(encoder, texts):
    return [ids.tolist() for ids in encoder.encode_batch(texts)]


def control_ids(encoder):
    return {encoder.special[role] for role in ("cls", "sep", "pad")}


def raw_ids(folder, text):
    """What the library says of the whole text in one call."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


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
    assert ids_of(load_encoder(vocab), TEXTS) == wanted


def test_sentencepiece_ids_are_those_of_transformers(spm):
    from transformers import XLMRobertaTokenizer

    reference = XLMRobertaTokenizer.from_pretrained(spm.parent)
    texts = [text for text in TEXTS if "y" * 200 not in text]
    encoder = load_encoder(spm)
    assert ids_of(encoder, texts) == [reference.encode(text, add_special_tokens=False) for text in texts]
    assert encoder.vocab_size == len(reference)
    ids = {"cls": reference.cls_token_id, "sep": reference.sep_token_id}
    assert encoder.special == ids | {"pad": reference.pad_token_id, "unk": reference.unk_token_id}


def test_a_unigram_tokenizer_json_gives_the_ids_of_its_sentencepiece_model(many, unigram):
    one, other = load_encoder(many), load_encoder(unigram)
    assert ids_of(other, TEXTS + MARKS) == ids_of(one, TEXTS + MARKS)
    assert (other.vocab_size, other.special) == (one.vocab_size, one.special)


def test_a_unigram_tokenizer_json_is_run_by_sentencepiece(unigram):
    assert load_encoder(unigram).fingerprint()["backend"] == "sentencepiece"


def changed(unigram, part, value):
    spec = json.loads((unigram / "tokenizer.json").read_bytes())
    return {part: spec[part] | value} if isinstance(value, dict) else {part: [*spec[part], *value]}


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("pre_tokenizer", lambda old: old["pretokenizers"][1] | {"prepend_scheme": "never"}),
        ("pre_tokenizer", lambda old: old | {"pretokenizers": [*old["pretokenizers"], PUNCTUATION]}),
        ("normalizer", lambda old: {"type": "Sequence", "normalizers": [old, REPLACE]}),
        ("model", lambda old: old | {"byte_fallback": True}),
        ("added_tokens", lambda old: [*old, ADDED]),
    ],
)
def test_a_unigram_tokenizer_json_that_sentencepiece_would_read_otherwise_is_not_run_by_it(
    unigram, tmp_path, part, change
):
    old = json.loads((unigram / "tokenizer.json").read_bytes())[part]
    encoder = load_encoder(rewrite(tmp_path, unigram, **{part: change(old)}))
    assert encoder.fingerprint()["backend"] == "tokenizers"
    assert ids_of(encoder, TEXTS) == [raw_ids(tmp_path, text) for text in TEXTS]


@pytest.mark.parametrize(
    "text",
    [
        *MARKS[:-1],
        "a\u0085b",  # next line
        " a  b\tc\u00a0d\u2003e\u3000f\u2028g\u200bh\u200ci\u200dj\ufeffk ",  # kinds of space and joiners
        "a\x01\x1c\x7f\x00b \ufffd \ue000",  # control characters and what is none of ours
        "\U000f0000\U000f0001 \U000f0002 a",  # runs of unknown characters
        "ﬁne ½ ② ™ … ﷺ",  # compatibility characters
        "the ",
        "",
    ],
)
def test_every_class_of_text_has_the_ids_of_transformers(many, text):
    from transformers import XLMRobertaTokenizer

    reference = XLMRobertaTokenizer.from_pretrained(many.parent)
    assert ids_of(load_encoder(many), [text, f"the {text} river"]) == [
        reference.encode(each, add_special_tokens=False) for each in (text, f"the {text} river")
    ]


def test_a_mark_on_a_compatibility_character_is_kept(many):
    """transformers drops it: its normalizer replaces ½ and all marks on it by 1⁄2."""
    half, spelled = ids_of(load_encoder(many), ["½\u0301", "1\u20442\u0301"])
    assert half == spelled


def test_the_way_to_cut_a_word_does_not_depend_on_how_far_into_a_text_it_stands(tmp_path, unigram):
    """Sums of 32 bits: after 40,000 words a difference of 0.001 between two ways would be lost."""
    scores = {"ab": -5.0, "c": -5.0, "a": -5.001, "bc": -5.0, "d": -5.0, "ef": -5.0, "de": -5.001, "f": -5.0, "▁": -9.0}
    control = [[token, 0.0] for token in ("<s>", "<pad>", "</s>", "<unk>")]
    model = {"type": "Unigram", "unk_id": 3, "vocab": control + [[piece, score] for piece, score in scores.items()]}
    encoder = load_encoder(rewrite(tmp_path, unigram, model=model, added_tokens=[]))
    assert encoder.fingerprint()["backend"] == "sentencepiece"
    words = [encoder.vocabulary[piece] for piece in ("▁", "ab", "c", "▁", "d", "ef")]
    assert ids_of(encoder, [" ".join(["abc def"] * 40000)]) == [words * 40000]


@pytest.mark.parametrize("kind", ["wordpiece", "sentencepiece", "byte level", "byte level with space", "metaspace"])
def test_a_long_text_has_the_ids_of_the_whole(kind, vocab, many, unigram, tmp_path, monkeypatch):
    from transformers import BertTokenizer, XLMRobertaTokenizer

    match kind:
        case "wordpiece":
            path, reference = vocab, BertTokenizer.from_pretrained(vocab.parent)
            wanted = reference.encode(LONG, add_special_tokens=False)
        case "sentencepiece":
            path, reference = many, XLMRobertaTokenizer.from_pretrained(many.parent)
            wanted = reference.encode(LONG, add_special_tokens=False)
        case "metaspace":  # "first": not for sentencepiece
            metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
            path = rewrite(tmp_path, unigram, pre_tokenizer=metaspace)
            wanted = raw_ids(path, LONG)
        case _:
            path = write_byte_level(tmp_path, add_prefix_space=kind.endswith("space"))
            wanted = raw_ids(path, LONG)
    monkeypatch.setattr(encode, "_STRETCH", 10)
    encoder = load_encoder(path)
    stretches = record(encoder)
    assert ids_of(encoder, [LONG]) == [wanted]
    assert len(stretches) > 300 and max(map(len, stretches)) < 60


def test_a_text_is_cut_at_no_other_spaces_than_single_ones(tmp_path, monkeypatch):
    """Here a stretch loses the spaces at its ends, of which this tokenizer gives ids for all but one."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(names[:4])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(encode, "_STRETCH", 5)
    encoder = load_encoder(tmp_path)
    stretches, text = record(encoder), "a a  a   a  a a  a a   a a" * 20
    assert ids_of(encoder, [text]) == [raw_ids(tmp_path, text)]
    assert len(stretches) > 20


def record(encoder):
    """The list to which the encoder's library calls will be added."""
    seen, inner = [], encoder._encode
    encoder._encode = lambda stretch: seen.append(stretch) or inner(stretch)
    return seen


def test_a_tokenizer_that_puts_a_space_before_every_text_is_given_it_in_one(unigram, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "_STRETCH", 10)
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    normalizer = json.loads(normalizer.__getstate__())
    encoder = load_encoder(rewrite(tmp_path, unigram, normalizer=normalizer, pre_tokenizer=None))
    stretches = record(encoder)
    assert ids_of(encoder, [LONG]) == [raw_ids(tmp_path, LONG)]
    assert stretches == [LONG]


@pytest.mark.parametrize("kind", ["vocab", "many"])
def test_a_blob_is_cut_at_the_longest_stretch(kind, request, monkeypatch):
    monkeypatch.setattr(encode, "_STRETCH", 100)
    monkeypatch.setattr(encode, "_LONGEST_STRETCH", 1000)
    encoder = load_encoder(request.getfixturevalue(kind))
    stretches, blob = record(encoder), "x1" * 1250
    (ids,) = encoder.encode_batch([f"the river {blob} stone"])
    assert [len(stretch) for stretch in stretches] == [1000, 1000, 510, 6]
    assert np.array_equal(ids, np.concatenate(encoder.encode_batch(stretches[:])))


@pytest.mark.parametrize("kind", ["vocab", "many"])
def test_the_ids_of_a_text_do_not_depend_on_its_batch(kind, request):
    encoder = load_encoder(request.getfixturevalue(kind))
    texts = [*TEXTS, LONG * 3, *MARKS]
    assert ids_of(encoder, texts) == [ids_of(encoder, [text])[0] for text in texts]


@pytest.mark.parametrize("kind", ["vocab", "many"])
def test_ids_are_arrays_of_the_type_that_is_stored(kind, request):
    encoder = load_encoder(request.getfixturevalue(kind))
    for ids in encoder.encode_batch([*TEXTS, LONG]):
        assert isinstance(ids, np.ndarray) and ids.ndim == 1
        assert ids.dtype == token_dtype(encoder.vocab_size)


@pytest.mark.parametrize("kind", ["vocab", "spm", "many", "unigram"])
def test_control_token_literals_stay_text(kind, request):
    encoder = load_encoder(request.getfixturevalue(kind))
    for text, ids in zip(LITERALS, ids_of(encoder, LITERALS), strict=True):
        assert ids and not control_ids(encoder) & set(ids), text


def test_a_literal_that_is_a_whole_word_of_the_vocabulary_stays_text(tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ids_of(load_encoder(tmp_path), ["a [SEP] a"]) == [[4, 0, 4]]


def test_added_tokens_that_are_no_control_tokens_keep_their_ids(vocab, tmp_path):
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 4}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "<extra>"])
    tokenizer.add_tokens(["<word>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = load_encoder(tmp_path)
    assert encoder.vocab_size == 7
    assert ids_of(encoder, ["a <word> a"]) == [[4, 6, 4]]
    assert 5 not in encoder.encode_batch(["<extra>"])[0]


def test_truncation_and_padding_of_a_tokenizer_json_are_switched_off(vocab, tmp_path):
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(TINY_VOCAB)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ids_of(load_encoder(tmp_path), TEXTS) == ids_of(load_encoder(vocab), TEXTS)


def test_a_vocab_txt_is_uncased_unless_its_config_says_otherwise(vocab, tmp_path):
    uncased = load_encoder(vocab)
    assert ids_of(uncased, ["The River"]) == ids_of(uncased, ["the river"])
    write_vocab(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_encoder(tmp_path)
    unk = cased.special["unk"]
    assert ids_of(cased, ["The river"]) == [[unk, *ids_of(uncased, ["river"])[0]]]
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
    assert fingerprint["probe"] == {"text": PROBE, "ids": ids_of(encoder, [PROBE])[0]}
    assert json.loads(json.dumps(fingerprint)) == fingerprint == load_encoder(vocab.parent).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing", None, "missing: no such tokenizer"),
        ("tokenizer.bin", "x", "'.bin' is not the suffix of a tokenizer"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer that can be loaded"),
        ("tokenizer.json", "x", "tokenizer.json: not a tokenizer that can be loaded"),
        ("spm.model", "x", "spm.model: not a tokenizer that can be loaded"),
        ("vocab.txt", "a\nb\n", "vocab.txt: 2 lines, 2 different, must hold .UNK."),
        ("vocab.txt", "a\na\n[UNK]\n", "vocab.txt: 3 lines, 2 different"),
        ("vocab.txt", "a\n[UNK]\n[CLS]\n[PAD]\n", r"vocab.txt: has no sep token; tried \[SEP\], </s>, <sep>"),
        ("folder", None, "folder: holds neither tokenizer.json"),
    ],
)
def test_what_is_no_tokenizer_is_rejected_by_name(tmp_path, name, content, message):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_id": 3, "unk_id": 1, "bos_id": 0, "eos_id": 2}, "its first pieces are .'<s>', '<unk>', '</s>'."),
        ({"model_type": "bpe"}, "not a Unigram model with XLM-R's settings"),
        ({"add_dummy_prefix": False}, "not a Unigram model with XLM-R's settings"),
    ],
)
def test_a_sentencepiece_model_that_is_not_of_the_kind_of_xlm_r_is_rejected(tmp_path, settings, message):
    with pytest.raises(UserError, match=f"sentencepiece.bpe.model: {message}"):
        load_encoder(train_sentencepiece(tmp_path, **settings))
