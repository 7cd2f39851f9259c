"""Trimming: which pieces stay, that everything else stays what it was, and what is said to a mistake."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from data_prep.cli import UserError
from data_prep.encode import load_encoder
from data_prep.shards import open_corpus, write_manifest
from pipeline.models.vocabulary import load_trimmed
from pipeline.trim_vocab import files
from pipeline.trim_vocab import pieces as vocabulary
from pipeline.trim_vocab.__main__ import main, trim
from pipeline.trim_vocab.figures import lines_of
from pipeline.trim_vocab.spec import read_spec
from tests.parts.launching import ROOT
from tests.parts.trimming import RARE, make_corpus, make_model, texts

KINDS = {"bert": "WordPiece", "xlm-roberta": "Unigram", "roberta": "BPE"}

SCORES = """model-index:
- name: m
  results:
  - task: {type: text-classification}
    dataset: {name: d, type: org/d}
    metrics: [{type: accuracy, value: 1.0}]
"""
CARD = f"---\nlicense: mit\n{SCORES}---\n# a model\n"


class Parts:
    """A model, its corpus, and the model trimmed to German and Swahili."""

    def __init__(self, kind, root):
        self.kind = kind
        self.model = make_model(kind, root / "model")
        self.data = make_corpus(root / "data", self.model)
        self.out = root / "trimmed"
        (self.model / "distillation.json").write_text("[]\n")
        (self.model / "README.md").write_text(CARD)
        (self.model / "pytorch_model.bin").write_bytes(b"the whole table once more")
        (self.model / "1_Pooling").mkdir()
        (self.model / "1_Pooling" / "config.json").write_text("{}")
        self.report = trim(self.model, self.data, self.out, ["de", "sw"], 0.95)
        self.new = load_trimmed(self.out)
        self.before, self.after = (AutoTokenizer.from_pretrained(folder) for folder in (self.model, self.out))

    def kept_texts(self):
        """(text, old ids, new ids) of texts whose pieces are all kept."""
        for text in texts("de", 60, seed=5) + texts("sw", 60, seed=5):
            old = np.array(self.before(text)["input_ids"])
            if (self.new[old] >= 0).all():
                yield text, old, self.new[old]


@pytest.fixture(scope="module", params=KINDS)
def parts(request, tmp_path_factory):
    return Parts(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    root = tmp_path_factory.mktemp("bert")
    model = make_model("bert", root / "model")
    return model, make_corpus(root / "data", model)


# --- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_outputs_are_identical_on_texts_whose_pieces_are_kept(parts):
    models_ = [AutoModel.from_pretrained(folder).eval() for folder in (parts.model, parts.out)]
    kept = list(parts.kept_texts())
    assert len(kept) > 20
    for text, old, new in kept:
        assert parts.after(text)["input_ids"] == new.tolist()
        with torch.no_grad():
            a, b = (m(torch.tensor(ids)[None]) for m, ids in zip(models_, (old, new), strict=True))
        assert torch.equal(a.last_hidden_state, b.last_hidden_state)
        assert torch.equal(a.pooler_output, b.pooler_output)


def test_a_padded_batch_gives_the_same_too(parts):
    batch = [text for text, _, _ in parts.kept_texts()][:8]
    outputs = []
    for folder, tokenizer in ((parts.model, parts.before), (parts.out, parts.after)):
        with torch.no_grad():
            outputs.append(
                AutoModel.from_pretrained(folder).eval()(**tokenizer(batch, padding=True, return_tensors="pt"))
            )
    assert torch.equal(outputs[0].last_hidden_state, outputs[1].last_hidden_state)


def test_rows_of_the_embeddings_follow_their_pieces_and_nothing_else_changes(parts):
    before, after = (load_file(folder / "model.safetensors") for folder in (parts.model, parts.out))
    name = "embeddings.word_embeddings.weight"
    words = before.pop(name)
    kept = torch.from_numpy(np.flatnonzero(parts.new >= 0))
    assert torch.equal(after.pop(name), words[kept]) and len(kept) < len(words)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    own = parts.before.get_vocab()
    assert parts.after.get_vocab() == {piece: parts.new[i] for piece, i in own.items() if parts.new[i] >= 0}


def test_tensors_lie_in_memory_as_they_did(parts):
    """By 64 bytes: a CPU's products round by it, and outputs would differ in their last bits."""
    starts = []
    for folder in (parts.model, parts.out):
        with (folder / "model.safetensors").open("rb") as file:
            starts.append((8 + int.from_bytes(file.read(8), "little")) % 64)
    assert starts[0] == starts[1]


def test_a_text_of_any_language_has_no_more_unknown_pieces_than_before(parts):
    unknown = parts.before.unk_token_id, parts.after.unk_token_id
    for text in texts("el", 40, seed=3) + [f"x {letter} y" for letter in RARE.values()] + ["日本 w"]:
        counts = [t(text)["input_ids"].count(u) for t, u in zip((parts.before, parts.after), unknown, strict=True)]
        assert counts[0] == counts[1]


def test_control_tokens_config_and_padding_are_right(parts):
    config = AutoConfig.from_pretrained(parts.out)
    assert config.vocab_size == len(parts.after) == parts.report["vocabulary"]["after"]
    for role in ("pad", "cls", "sep", "unk", "mask"):
        assert getattr(parts.after, f"{role}_token") == getattr(parts.before, f"{role}_token")
        old, new = (getattr(t, f"{role}_token_id") for t in (parts.before, parts.after))
        assert parts.new[old] == new
    assert config.pad_token_id == parts.after.pad_token_id
    if parts.kind != "bert":
        assert config.pad_token_id == 1 and parts.after.mask_token_id == len(parts.after) - 1
    ids = parts.after("Tag", "wa")["input_ids"]
    assert ids[0] == parts.after.cls_token_id and ids[-1] == parts.after.sep_token_id
    assert parts.after.decode(ids, skip_special_tokens=True).lower().split() == ["tag", "wa"] or parts.kind == "roberta"


def test_of_each_language_the_stated_share_of_tokens_keeps_its_pieces(parts):
    for name, one in parts.report["languages"].items():
        corpus = open_corpus(parts.data)
        tokens = corpus.sources[name].shards[0].open()
        tokens = tokens[tokens != corpus.tokenizer["special"]["sep"]]
        share = (parts.new[tokens] >= 0).mean()
        assert share >= 0.95 and one["covered"] == pytest.approx(share)
    assert "el" not in parts.report["languages"]


def test_the_report_records_what_was_done(parts):
    report = json.loads((parts.out / "trimming.json").read_text())
    assert report == parts.report
    assert report["tokenizer"] == KINDS[parts.kind]
    assert report["dropped"]["pieces"] == (parts.new < 0).sum() and report["dropped"]["most_frequent"]
    assert report["bytes"]["after"] < report["bytes"]["before"]
    lost = (parts.new < 0).sum() * 32
    assert report["parameters"]["before"] - report["parameters"]["after"] == lost
    assert report["left_out"] == ["pytorch_model.bin"]
    for one in report["languages"].values():
        text = one["heldout"]
        assert text["texts"] == 30 and text["tokens"]["after"] >= text["tokens"]["before"] > 0
        assert text["unknown"]["after"] == text["unknown"]["before"] == 0
        assert 0 < text["cut_otherwise"] < 0.2
    assert str(parts.model.parent) not in json.dumps(report)
    lines = "\n".join(lines_of(report))
    for word in ("size on disk", "parameters", "vocabulary", "de ", "sw ", "dropped: ", "most frequent of them: "):
        assert word in lines


def test_what_belongs_to_the_model_is_kept(parts):
    names = {str(path.relative_to(parts.out)) for path in parts.out.rglob("*") if path.is_file()}
    assert names >= {"distillation.json", "1_Pooling/config.json", "README.md", "trimming.json", "vocabulary.npy"}
    assert "pytorch_model.bin" not in names
    card = (parts.out / "README.md").read_text()  # the scores are those of the whole model
    assert card.startswith("---\nlicense: mit\n---\n# a model\n\n## Vocabulary\n")
    assert "\nLoads in transformers 4.57 (tested" in card
    assert not list(parts.out.parent.glob(".*"))


def test_a_card_of_another_encoding_is_added_to_and_not_damaged(bert, tmp_path):
    model = shutil.copytree(bert[0], tmp_path / "model")
    (model / "README.md").write_bytes(CARD.encode() + b"vid\xe9e\r\n")  # Latin-1, with line ends of Windows
    trim(model, bert[1], tmp_path / "out", ["de"], 0.9)
    card = (tmp_path / "out" / "README.md").read_bytes()
    assert card.startswith(b"---\nlicense: mit\n---\n# a model\nvid\xe9e\r\n\n## Vocabulary\n")


def test_every_file_of_the_vocabulary_says_the_same(parts):
    samples = texts("de", 20, seed=9) + texts("el", 20, seed=9)
    if parts.kind == "bert":
        slow = BertTokenizerLegacy(str(parts.out / "vocab.txt"))
        assert [slow(text)["input_ids"] for text in samples] == parts.after(samples)["input_ids"]
    elif parts.kind == "roberta":
        own = transformers.RobertaTokenizer(vocab=str(parts.out / "vocab.json"), merges=str(parts.out / "merges.txt"))
        assert own(samples)["input_ids"] == parts.after(samples)["input_ids"]
    else:
        model = SentencePieceProcessor(model_file=str(parts.out / "sentencepiece.bpe.model"))
        ids = [[0, *(i + 1 if i else 3 for i in model.encode(text)), 2] for text in samples]
        assert ids == parts.after(samples)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_a_tokenizer_json_is_trimmed_too(kind, tmp_path):
    """It has a vocab.txt, a SentencePiece model, or a vocab.json and merges.txt; and so has the trimmed one."""
    model = make_model(kind, tmp_path / "model")
    data = make_corpus(tmp_path / "data", model)
    (model / "tokenizer.json").unlink()
    trim(model, data, tmp_path / "out", ["de"], 0.9)
    by_json = AutoTokenizer.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    without = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert without.get_vocab() == by_json.get_vocab()
    assert without(texts("sw"))["input_ids"] == by_json(texts("sw"))["input_ids"]


def test_a_trimmed_model_can_be_the_tokenizer_of_new_data_and_be_trimmed_again(parts, tmp_path):
    data = make_corpus(tmp_path / "data", parts.out)
    assert load_encoder(parts.out).vocab_size == len(parts.after)
    report = trim(parts.out, data, tmp_path / "again", ["de"], 0.9)
    assert report["vocabulary"]["before"] == parts.report["vocabulary"]["after"] > report["vocabulary"]["after"]
    assert report["earlier"] == parts.report


@pytest.mark.parametrize(
    "kind, auto_class",
    [
        ("bert", AutoModelForMaskedLM),
        ("electra", AutoModelForMaskedLM),
        ("distilbert", AutoModelForMaskedLM),
        ("xlm-roberta", AutoModelForMaskedLM),
        ("xlm-roberta-xl", AutoModel),
        ("camembert", AutoModelForTokenClassification),
        ("roberta", AutoModelForSequenceClassification),
        ("modernbert", AutoModel),
        ("modernbert", AutoModelForMaskedLM),
        ("eurobert", AutoModelForSequenceClassification),
        ("eurobert", AutoModelForMaskedLM),
    ],
)
def test_a_head_is_kept_and_that_of_a_language_model_is_cut_too(kind, auto_class, tmp_path):
    model = make_model(kind, tmp_path / "model", auto_class)
    report = trim(model, make_corpus(tmp_path / "data", model), tmp_path / "out", ["de"], 0.9)
    new, tensors = load_trimmed(tmp_path / "out"), load_file(model / "model.safetensors")
    assert sorted(report["cut"]) == sorted(name for name, tensor in tensors.items() if len(tensor) == len(new))
    kept = np.flatnonzero(new >= 0)
    ids = torch.from_numpy(kept[5:30])[None]
    both = [auto_class.from_pretrained(folder).eval() for folder in (model, tmp_path / "out")]
    with torch.no_grad():
        before, after = (m(i)[0] for m, i in zip(both, (ids, torch.from_numpy(new)[ids].long()), strict=True))
    if auto_class is AutoModelForMaskedLM:
        assert len(report["cut"]) > 1
        assert torch.allclose(before[..., kept], after, atol=1e-5)  # a product of fewer columns is rounded otherwise
    else:
        assert torch.equal(before, after)


def test_weights_in_several_files_stay_in_several_files(bert, tmp_path):
    model = shutil.copytree(bert[0], tmp_path / "model")
    AutoModel.from_pretrained(model).save_pretrained(model, max_shard_size="20KB")
    (model / "model.safetensors").unlink()
    trim(model, bert[1], tmp_path / "out", ["de"], 0.9)
    before, after = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (model, tmp_path / "out"))
    assert before["weight_map"] == after["weight_map"] and len(set(after["weight_map"].values())) > 1
    sizes = 0
    for name in set(after["weight_map"].values()):
        with safe_open(tmp_path / "out" / name, "pt") as file:
            sizes += sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
    assert after["metadata"]["total_size"] == sizes
    AutoModel.from_pretrained(tmp_path / "out")


def test_robertas_positions_still_start_behind_its_padding(tmp_path):
    """A padding id behind ordinary pieces: these stay, or every position would be another one."""
    model = make_model("roberta", tmp_path / "model")
    spec = json.loads((model / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    by_id = {i: piece for piece, i in vocab.items()}
    vocab[by_id[400]], vocab["<pad>"] = 1, 400
    spec["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    for token in spec["added_tokens"]:
        token["id"] = vocab[token["content"]] if token["content"] in vocab else token["id"]
    (model / "tokenizer.json").write_text(json.dumps(spec))
    config = json.loads((model / "config.json").read_text())
    config |= {"pad_token_id": 400, "max_position_embeddings": 480}
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(model)
    data = make_corpus(tmp_path / "data", model)
    trim(model, data, tmp_path / "out", ["de"], 0.9)
    new = load_trimmed(tmp_path / "out")
    assert new[:401].tolist() == list(range(401)) and (new[401:] < 0).any()


# --- the vocabulary alone ---------------------------------------------------------------------------------------------


def test_covering_takes_the_fewest_ids_that_reach_the_share():
    counts = np.array([0, 5, 1, 90, 4, 0])
    assert vocabulary.covering(counts, 0.9).tolist() == [3]
    assert vocabulary.covering(counts, 0.95).tolist() == [3, 1]
    assert vocabulary.covering(counts, 0.951).tolist() == [3, 1, 4]
    assert vocabulary.covering(counts, 1.0).tolist() == [3, 1, 4, 2]
    assert vocabulary.covering(np.zeros(3, int), 1.0).tolist() == []


def test_new_ids_keep_the_order():
    assert vocabulary.new_ids({4, 0, 2}, 6).tolist() == [0, -1, 1, -1, 2, -1]


def test_counts_are_those_of_all_shards_whatever_the_chunks(bert, monkeypatch):
    source = open_corpus(bert[1]).sources["de"]
    whole = vocabulary.count_pieces(source, 600)
    monkeypatch.setattr(vocabulary, "_CHUNK", 7)
    assert np.array_equal(vocabulary.count_pieces(source, 600), whole)
    assert whole.sum() == source.tokens


def test_pieces_of_bpe_keep_every_merge_that_makes_them():
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("c", "d"), ("a", "bc")]
    vocab = {piece: i for i, piece in enumerate(["a", "b", "c", "d", "ab", "abc", "bc", "cd"])}
    spec = json.loads(Tokenizer(models.BPE(vocab=vocab, merges=merges)).to_str())
    assert vocabulary.closed(spec, {vocab["abc"]}) == {vocab[piece] for piece in ("a", "b", "c", "ab", "bc", "abc")}
    kept = vocabulary.closed(spec, vocabulary.fallbacks(spec) | {vocab["abc"]})
    small = vocabulary.trimmed(spec, vocabulary.new_ids(kept, len(vocab)))
    assert ["c", "d"] not in [list(pair) for pair in small["model"]["merges"]]
    assert Tokenizer.from_str(json.dumps(small)).encode("abcd").tokens == ["abc", "d"]


def test_a_piece_with_a_character_that_nothing_else_spells_stays():
    spec = json.loads(
        Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##a": 2, "##ab": 3, "##aa": 4}, unk_token="[UNK]")).to_str()
    )
    assert vocabulary.fallbacks(spec) == {0, 1, 2, 3}


def test_the_lowest_score_stays_since_that_of_unknown_characters_follows_from_it():
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.5), ("ab", -9.0), ("aa", -2.0)]
    spec = json.loads(Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False)).to_str())
    assert vocabulary.fallbacks(spec) == {0, 1, 2, 3}


def test_padding_and_post_processors_get_the_new_ids():
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 3]}
    spec = {
        "added_tokens": [{"id": 3, "content": "<s>"}],
        "padding": {"pad_id": 3},
        "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, roberta]},
        "model": {"type": "BPE", "vocab": {"x": 0, "y": 1, "</s>": 2, "<s>": 3}, "merges": []},
    }
    small = vocabulary.trimmed(spec, vocabulary.new_ids({0, 2, 3}, 4))
    assert small["added_tokens"][0]["id"] == small["padding"]["pad_id"] == 2
    assert small["post_processor"]["processors"][1] == roberta | {"sep": ["</s>", 1], "cls": ["<s>", 2]}
    assert spec["added_tokens"][0]["id"] == 3


# --- mistakes ---------------------------------------------------------------------------------------------------------


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipeline.trim_vocab", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.slow
def test_the_command_prints_the_report_and_a_mistake_is_one_line_and_code_2(bert, tmp_path):
    model, data = bert
    done = command(model, "--corpus", data, "--keep-languages", "de,sw", "--out", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == ""
    assert "vocabulary " in done.stdout and "unknown" in done.stdout
    again = command(model, "--corpus", data, "--out", tmp_path / "out")
    assert again.returncode == 2 and again.stdout == "" and again.stderr.count("\n") == 1
    assert again.stderr.startswith(f"error: --out {tmp_path / 'out'}: exists and is not an empty folder")


def rejected(bert, tmp_path, message, **changes):
    arguments = {"model": bert[0], "data": bert[1], "out": tmp_path / "out"} | changes
    with pytest.raises(UserError) as caught:
        trim(**arguments)
    line = str(caught.value)
    assert message in line and "; " in line and "\n" not in line
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("coverage", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_coverage_outside_its_range_is_rejected(bert, tmp_path, coverage):
    rejected(bert, tmp_path, f"--coverage {coverage:g}: is no share", coverage=coverage)


@pytest.mark.parametrize("languages, named", [(["de", "xx", "fr"], "xx, fr"), ([], "''")])
def test_languages_that_the_corpus_lacks_are_named_with_those_it_has(bert, tmp_path, languages, named):
    message = f"--keep-languages {named}: not in {bert[1]}; name some of those it has: de, el, sw"
    rejected(bert, tmp_path, message, languages=languages)


def test_a_language_without_tokens_is_named(bert, tmp_path):
    data = shutil.copytree(bert[1], tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["sources"]["el"] |= {"documents": 0, "tokens": 0, "size": 0, "shards": []}
    write_manifest(data, manifest)
    rejected(bert, tmp_path, f"{data}: holds no tokens of el; ", data=data)
    for source in manifest["sources"].values():
        source |= {"documents": 0, "tokens": 0, "size": 0, "shards": []}
    write_manifest(data, manifest)
    rejected(bert, tmp_path, f"{data}: holds no tokens of de, el, sw; ", data=data)


def test_without_held_out_text_the_rest_is_reported(bert, tmp_path):
    data = shutil.copytree(bert[1], tmp_path / "data")
    manifest = json.loads((data / "manifest.json").read_text())
    write_manifest(data, manifest | {"heldout": {}})
    report = trim(bert[0], data, tmp_path / "out", ["de"])
    assert report["languages"]["de"]["heldout"] is None
    assert any("or a larger --heldout in `prepare`" in line for line in lines_of(report))


def test_a_corpus_of_another_vocabulary_is_rejected(bert, tmp_path):
    other = make_model("roberta", tmp_path / "other")
    data = make_corpus(tmp_path / "data", other)
    rejected(bert, tmp_path, f"{data}: made with another vocabulary", data=data)
    rejected(bert, tmp_path, f"prepare the data with --tokenizer {bert[0]}", data=data)


def test_a_corpus_of_another_normalizer_is_rejected(bert, tmp_path):
    data = make_corpus(tmp_path / "data", bert[0], probe={"text": "Tag wa", "ids": [9, 9]})
    rejected(bert, tmp_path, f"{data}: made with another tokenizer", data=data)


def test_a_corpus_of_other_control_tokens_is_rejected(bert, tmp_path):
    data = make_corpus(tmp_path / "data", bert[0], special={"pad": 0, "unk": 1, "cls": 5, "sep": 6})
    rejected(bert, tmp_path, f"{data}: has unk = 1, the tokenizer of {bert[0]} has 4", data=data)


def test_a_tokenizer_of_another_kind_is_rejected(bert, tmp_path):
    model = shutil.copytree(bert[0], tmp_path / "model")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3}, unk_token="[UNK]"))
    words.save(str(model / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    rejected(
        bert,
        tmp_path,
        f"{model / 'tokenizer.json'}: model type 'WordLevel' of a tokenizer; only WordPiece, BPE and",
        model=model,
    )


def test_a_folder_that_is_no_model_is_rejected(bert, tmp_path):
    rejected(bert, tmp_path, "no such folder", model=tmp_path / "nowhere")
    rejected(bert, tmp_path, "no config.json", model=bert[1])
    rejected(bert, tmp_path, "no manifest.json", data=bert[0])


def test_weights_of_another_size_than_the_config_says_are_rejected(bert, tmp_path):
    model = shutil.copytree(bert[0], tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    rows = len(tensors[name])
    save_file(tensors | {name: tensors[name][:-1].clone()}, model / "model.safetensors")
    rejected(bert, tmp_path, f"{name} has {rows - 1} rows, config.json says vocab_size = {rows}", model=model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    rejected(bert, tmp_path, "config.json says vocab_size = 50", model=model)


def test_an_out_that_holds_something_or_lies_in_the_model_is_rejected(bert, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "file"):
        rejected(bert, tmp_path, f"--out {out}: exists and is not an empty folder", out=out)
    rejected(bert, tmp_path, "lies in the model's own folder", out=bert[0] / "sub")


@pytest.mark.parametrize(
    "error, message",
    [
        (
            OSError(28, "No space left on device", "model.safetensors"),
            "model.safetensors: No space left on device; nothing",
        ),
        (SafetensorError("no space"), "model.safetensors: cannot be written (no space); free some space"),
    ],
)
def test_nothing_is_left_of_a_trimming_that_fails(bert, tmp_path, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(files, "save_file", fail)
    rejected(bert, tmp_path, message)


def test_a_tokenizer_that_cannot_be_loaded_is_rejected(bert, tmp_path):
    model = shutil.copytree(bert[0], tmp_path / "model")
    for content in ('{"model": {"type": "WordPiece"', '{"model": {"type": "WordPiece", "vocab": {}}}', "[]"):
        (model / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=rf"^{model}: .*cannot be loaded"):
            trim(model, bert[1], tmp_path / "out")


def test_a_tokenizer_without_the_tokenizers_library_is_rejected(bert):
    slow = BertTokenizerLegacy(str(bert[0] / "vocab.txt"))
    with pytest.raises(UserError, match=r"a BertTokenizerLegacy, which has no tokenizer.json; only WordPiece"):
        read_spec(bert[0], slow)


def test_a_coverage_that_is_no_number_is_one_line(bert, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["trim_vocab", str(bert[0]), "--corpus", "x", "--out", "y", "--coverage", "most"])
    with pytest.raises(UserError, match=r"argument --coverage: .*'most'; see python -m pipeline.trim_vocab --help"):
        main()


def test_an_id_outside_the_vocabulary_is_named(bert):
    with pytest.raises(UserError, match=r"tokens.npy: id \d+ is outside the vocabulary of 100; run"):
        vocabulary.count_pieces(open_corpus(bert[1]).sources["de"], 100)


def test_the_ids_of_a_folder_that_was_not_trimmed_or_is_damaged_are_rejected(bert, parts, tmp_path):
    with pytest.raises(UserError, match=r"vocabulary.npy: no such file; need a folder that"):
        load_trimmed(bert[0])
    folder = shutil.copytree(parts.out, tmp_path / "copy")
    np.save(folder / "vocabulary.npy", parts.new[:-40])
    with pytest.raises(UserError, match=r"vocabulary.npy: not the ids of the \d+ pieces"):
        load_trimmed(folder)
    (folder / "vocabulary.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"vocabulary.npy: cannot be read"):
        load_trimmed(folder)
