"""The on-disk format: what is written is read back, and what is not whole is named."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from data_prep import files as files_module
from data_prep.cli import UserError
from data_prep.files import write_json
from data_prep.shards import open_corpus, token_dtype, verify, write_manifest, write_shard
from tests.parts.corpora import run_cli, write_corpus


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "data")


def rewrite(path, array):
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version=(1, 0))


def test_documents_are_read_back_with_one_separator_each(corpus):
    opened = open_corpus(corpus)
    source = opened.sources["a"]
    assert (source.documents, source.tokens) == (3, 9)
    [shard] = source.shards
    assert shard.open().tolist() == [5, 6, 7, 3, 8, 3, 9, 10, 3]
    assert shard.open().dtype == np.uint16
    assert isinstance(shard.open(), np.memmap)
    assert shard.ends().tolist() == [4, 6, 9]
    assert opened.heldout["a"].shards[0].open().tolist() == [11, 12, 3]
    assert opened.tokenizer["special"]["sep"] == 3


def test_ids_take_two_bytes_up_to_65536_and_four_above():
    assert token_dtype(65536).itemsize == 2
    assert token_dtype(65537).itemsize == 4


def test_a_big_vocabulary_keeps_its_ids(tmp_path):
    corpus = write_corpus(tmp_path / "data", [[70000, 250001]], vocab_size=250002)
    assert open_corpus(corpus).sources["a"].shards[0].open().tolist() == [70000, 250001, 3]
    assert verify(corpus, deep=True) == []


def test_a_whole_corpus_has_no_findings(corpus):
    assert verify(corpus, deep=False) == verify(corpus, deep=True) == []


def test_empty_shards_are_checked_but_not_handed_to_readers(corpus):
    assert len(open_corpus(corpus).sources["a"].shards) == 1
    (corpus / "a" / "00000-00001.tokens.npy").unlink()
    with pytest.raises(UserError, match=r"a/00000-00001\.tokens\.npy: is missing"):
        open_corpus(corpus)


@pytest.mark.parametrize("cut", [1, 10, 140])
def test_truncated_shard_is_named(corpus, cut):
    path = corpus / "a" / "00000-00000.tokens.npy"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        UserError, match=r"a/00000-00000\.tokens\.npy: has .*; delete that file if it is there, and run the same"
    ):
        open_corpus(corpus)
    [finding] = verify(corpus, deep=True)
    assert str(path) in finding


def test_a_longer_shard_is_named(corpus):
    path = corpus / "heldout" / "a" / "00000-00000.docs.npy"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"heldout/a/00000-00000\.docs\.npy: has 137 bytes instead of 136"):
        open_corpus(corpus)


def test_wrong_dtype_and_length_are_named(corpus):
    path = corpus / "a" / "00000-00000.tokens.npy"
    rewrite(path, np.zeros(9, np.uint32))
    with pytest.raises(UserError, match="has 164 bytes instead of 146"):
        open_corpus(corpus)
    rewrite(path, np.zeros(8, np.uint16))
    with pytest.raises(UserError, match="has 144 bytes instead of 146"):
        open_corpus(corpus)
    rewrite(path, np.zeros(9, np.int16))
    with pytest.raises(UserError, match=r"has another \.npy header than that of uint16\[9\]"):
        open_corpus(corpus)


def test_a_pickled_array_is_never_loaded(corpus):
    path = corpus / "a" / "00000-00000.tokens.npy"
    np.save(path, np.array([print] * 9, object), allow_pickle=True)
    with pytest.raises(UserError, match=r"00000-00000\.tokens\.npy: has (\d+ bytes instead of|another .npy header)"):
        open_corpus(corpus)


def test_a_flipped_byte_is_found_by_deep_verify(corpus):
    for name in ("00000-00000.tokens.npy", "00000-00000.docs.npy"):
        path = corpus / "a" / name
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
        assert verify(corpus, deep=False) == []
        assert any(f"a/{name}: sha256" in finding for finding in verify(corpus, deep=True))
        data[-5] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("tokens", "ends", "finding"),
    [
        ([5, 6, 7, 3, 100, 3, 9, 10, 3], [4, 6, 9], "id 100 is outside the vocabulary of 100"),
        ([5, 6, 7, 3, 8, 3, 9, 10, 3], [4, 6, 8], "the last document ends at 8, the tokens at 9"),
        ([5, 6, 7, 3, 8, 3, 9, 10, 3], [6, 4, 9], "document ends are not ascending"),
        ([5, 6, 7, 3, 8, 3, 9, 10, 3], [4, 2**63, 9], "document ends are not ascending"),
        ([5, 6, 7, 3, 8, 3, 9, 3, 3], [4, 6, 9], "separators do not stand exactly where documents end"),
        ([5, 6, 3, 7, 8, 3, 9, 10, 3], [4, 6, 9], "separators do not stand exactly where documents end"),
        ([5, 6, 7, 8, 8, 3, 9, 10, 3], [4, 6, 9], "separators do not stand exactly where documents end"),
    ],
)
def test_deep_verify_reads_the_content_not_only_the_hashes(corpus, tokens, ends, finding):
    rewrite(corpus / "a" / "00000-00000.tokens.npy", np.array(tokens, np.uint16))
    rewrite(corpus / "a" / "00000-00000.docs.npy", np.array(ends, np.uint64))
    findings = verify(corpus, deep=True)
    assert any(line.endswith(finding) for line in findings), findings


def test_a_receipt_that_disagrees_or_is_missing_is_found_by_deep_verify(corpus):
    path = corpus / "a" / "00000-00000.json"
    receipt = json.loads(path.read_text())
    receipt["shard"]["documents"] = 4
    write_json(path, receipt)
    assert verify(corpus, deep=True) == [f"{path}: does not agree with the manifest, or with itself"]
    path.write_text("{")
    assert "not valid JSON" in verify(corpus, deep=True)[0]
    path.unlink()
    assert verify(corpus, deep=True) == [f"{path}: is missing"]


def test_an_edited_manifest_is_named(corpus):
    path = corpus / "manifest.json"
    path.write_text(path.read_text().replace('"unknown": 0', '"unknown": 1', 1))
    with pytest.raises(UserError, match=r"manifest\.json: id .* was edited"):
        open_corpus(corpus)
    assert len(verify(corpus, deep=True)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"version": 99}', "format version 99, but this program reads 2"),
        ('{"version": 2}', "not a manifest"),
    ],
)
def test_a_broken_manifest_is_rejected_in_one_line(corpus, content, message):
    (corpus / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_corpus(corpus)
    assert run_cli("verify", corpus).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["00000-00000.tokens.npy", "00000-00000.docs.npy", "00000-00000.json"])
def test_a_full_disk_is_reported_as_such_and_leaves_no_half_file(tmp_path, name):
    aside = files_module.aside(tmp_path / name)
    aside.symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        write_shard(tmp_path, "00000-00000", np.zeros(9000, np.uint16), np.arange(1, 3000), {})
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / name))
    assert not aside.is_symlink() and not (tmp_path / name).exists()
    assert not (tmp_path / "00000-00000.json").exists()


def test_the_corpus_id_is_a_function_of_the_content_alone(tmp_path):
    one, two = (json.loads((write_corpus(tmp_path / name) / "manifest.json").read_text()) for name in ("x", "y"))
    assert one == two
    content = {key: value for key, value in one.items() if key not in ("id", "version")}
    content["tokenizer"] = content["tokenizer"] | {"sha256": "1"}
    assert write_manifest(tmp_path / "x", content)["id"] != one["id"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no manifest.json, so not a prepared corpus"),
        (["plan.json", "a.bin"], "unfinished .* continues where it stopped"),
        (["wiki_text_document.bin", "wiki_text_document.idx"], "a Megatron dataset"),
        (["000.ds", "000.ds.index"], "a datatrove dataset"),
    ],
)
def test_what_is_not_a_corpus_is_called_by_its_name(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    for open_it in (open_corpus, lambda path: verify(path, deep=False)):
        with pytest.raises(UserError, match=message):
            open_it(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_corpus(tmp_path / "nowhere")


def test_verify_exits_0_when_whole_1_with_findings_2_when_not_data(corpus, tmp_path):
    assert run_cli("verify", corpus, "--deep").returncode == 0
    (corpus / "a" / "00000-00000.docs.npy").unlink()
    damaged = run_cli("verify", corpus)
    assert damaged.returncode == 1
    assert damaged.stdout == f"{corpus / 'a' / '00000-00000.docs.npy'}: is missing\n"
    nothing = run_cli("verify", tmp_path)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: ") and nothing.stderr.count("\n") == 1
