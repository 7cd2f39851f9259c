"""verify --roundtrip: documents are read again from their source and compared."""

import hashlib
import json

import numpy as np
import pytest

from data_prep.cli import UserError
from data_prep.files import sealed, write_json
from data_prep.roundtrip import roundtrip
from data_prep.shards import open_corpus, verify, write_manifest
from tests.parts.corpora import noise, run_cli, write_vocab


@pytest.fixture
def made(tmp_path):
    """A corpus of two sources, many units, and its folder of texts."""
    texts = tmp_path / "in"
    texts.mkdir()
    (texts / "a.txt").write_text("\n\n".join(noise(3000, 1)))
    (texts / "b.txt").write_text("\n\n".join([*noise(20, 2), "\u200b", "\n", *noise(10, 3)]))
    sources = ["--source", f"a=text:{texts}/a.txt", "--source", f"b=text:{texts}/b.txt"]
    vocab = write_vocab(tmp_path)
    done = run_cli(
        "prepare", "--out", tmp_path / "d", *sources, "--tokenizer", vocab, "--unit-mib", 0.0625, "--heldout", 0.1
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "d"


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 40, 100_000])
def test_a_whole_corpus_comes_out_as_it_is(made, count):
    corpus = open_corpus(made)
    documents = sum(source.documents for source in (*corpus.sources.values(), *corpus.heldout.values()))
    compared, findings = roundtrip(made, count)
    assert findings == []
    assert compared == {1: 2, 40: 40}.get(count, documents)  # at least one document of each source


def forge(data, source, change):
    """Change a shard's ids and all hashes with it, as no honest program would."""
    path = next(path for path in sorted((data / source).glob("*.tokens.npy")) if np.load(path).size)
    tokens = np.load(path)
    change(tokens)
    np.save(path, tokens)
    manifest = json.loads((data / "manifest.json").read_text())
    [row] = [row for row in manifest["sources"][source]["shards"] if row["file"] == path.name]
    row["sha256"]["tokens"] = hashlib.sha256(path.read_bytes()).hexdigest()
    receipt = path.with_name(path.name.replace(".tokens.npy", ".json"))
    write_json(receipt, sealed(json.loads(receipt.read_text()) | {"shard": row}))
    write_manifest(data, {key: value for key, value in manifest.items() if key not in ("id", "version")})


@pytest.mark.slow
def test_an_id_that_its_source_never_gave_is_found(made):
    def change(tokens):
        tokens[0] = tokens[0] - 1 if tokens[0] > 10 else tokens[0] + 1

    forge(made, "b", change)
    assert verify(made, deep=True) == []
    _, [finding] = roundtrip(made, 10_000)
    assert "in/b.txt bytes 0 to " in finding and "document 0 of train is not what its source gives now" in finding


@pytest.mark.slow
def test_a_source_that_has_lost_a_document_is_found(made):
    path = made.parent / "in" / "b.txt"
    path.write_text("\n\n".join(path.read_text().split("\n\n")[:-1]))
    _, findings = roundtrip(made, 10_000)
    assert findings and all("in/b.txt" in finding for finding in findings)
    done = run_cli("verify", made, "--roundtrip", 10_000)
    assert done.returncode == 1 and "in/b.txt" in done.stdout


def test_sources_that_are_missing_are_reported(made):
    path = made.parent / "in" / "b.txt"
    path.rename(made.parent / "elsewhere")
    _, findings = roundtrip(made, 5)
    assert any("b.txt: cannot be read (No such file" in finding and "put it back" in finding for finding in findings)
    (made.parent / "vocab.txt").unlink()
    with pytest.raises(UserError, match=r"vocab.txt: no such tokenizer"):
        roundtrip(made, 5)
    (made / ".inputs.json").unlink()
    with pytest.raises(UserError, match="it is not known where the sources are; run the same prepare once more"):
        roundtrip(made, 5)


@pytest.mark.parametrize("count", ["-1", "some", "1.5"])
def test_a_count_that_is_not_a_number_is_reported(made, count):
    done = run_cli("verify", made, f"--roundtrip={count}")
    assert done.returncode == 2 and "is not a whole number of at least 0" in done.stderr
