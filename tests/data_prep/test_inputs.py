"""Input files, local and of the hub: the real client against a server on the loopback interface."""

import pytest

from data_prep.cli import UserError
from data_prep.inputs import hub_files, local_files
from tests.parts.corpora import paragraphs, run_cli, tree, write_vocab
from tests.parts.hub import COMMIT, hub

CORPUS = """
heldout = 0
unit_mib = 0.0625
[[source]]
name = "web"
format = "text"
hub = "org/name"
revision = "{revision}"
files = "{files}"
"""


@pytest.fixture
def files():
    texts = ["\n\n".join(paragraphs(400, seed=seed)).encode() for seed in range(3)]
    return {"en/0.txt": texts[0], "en/1.txt": texts[1], "en/partial-train/0.txt": b"x", "small.txt": b"x"}


def prepared(tmp_path, vocab, env, revision=COMMIT, pattern="en/?.txt", out="hub", tokenizer=None):
    corpus = tmp_path / "corpus.toml"
    corpus.write_text(CORPUS.format(revision=revision, files=pattern))
    arguments = ["prepare", corpus, "--out", tmp_path / out, "--tokenizer", tokenizer or vocab, "--workers", 2]
    return run_cli(*arguments, env=env)


@pytest.mark.slow
def test_files_of_the_hub_give_the_same_shards_as_local_ones(tmp_path, files):
    vocab = write_vocab(tmp_path)
    with hub(files, tmp_path / "home") as (env, log):
        done = prepared(tmp_path, vocab, env)
        assert done.returncode == 0, done.stderr
        assert sum("GET /datasets/org/name/resolve" in line for line in log) == 2  # each file once, by two workers
        assert all(COMMIT in line for line in log if "org/name" in line)
        again = run_cli("verify", tmp_path / "hub", "--deep", "--roundtrip", 20, env=env)
        assert again.returncode == 0 and "20 documents compared with their source" in again.stderr, again.stderr
    (tmp_path / "en").mkdir()
    for name in ("en/0.txt", "en/1.txt"):
        (tmp_path / name).write_bytes(files[name])
    source = ["--source", f"web=text:{tmp_path}/en/*.txt", "--heldout", 0, "--unit-mib", 0.0625]
    assert run_cli("prepare", "--out", tmp_path / "local", "--tokenizer", vocab, *source).returncode == 0
    from_hub, local = tree(tmp_path / "hub"), tree(tmp_path / "local")
    arrays = [name for name in local if name.endswith(".npy")]
    assert len(arrays) > 4 and all(from_hub[name] == local[name] for name in arrays)


@pytest.mark.slow
def test_a_finished_corpus_needs_its_hub_no_more(tmp_path, files):
    vocab = write_vocab(tmp_path)
    with hub(files, tmp_path / "home") as (env, _):
        assert prepared(tmp_path, vocab, env).returncode == 0
    done = run_cli("prepare", "--out", tmp_path / "hub", env=env)
    assert done.returncode == 0 and "already complete" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"revision": "main"},
            f"source web: revision 'main' can move; pin a commit; today main of org/name is revision = \"{COMMIT}\"",
        ),
        ({"pattern": "en/*.txt"}, "source web: en/partial-train/0.txt of org/name is a conversion that was cut off"),
        ({"pattern": "de/*.txt"}, f"no file of org/name at {COMMIT[:12]} matches de/*.txt; it has en/0.txt, en/1.txt"),
        ({"pattern": "small.txt"}, "the hub keeps no sha256 of small.txt of org/name; download it"),
    ],
)
def test_what_the_hub_cannot_give_for_sure_is_rejected(tmp_path, files, options, message):
    with hub(files, tmp_path / "home") as (env, _):
        done = prepared(tmp_path, write_vocab(tmp_path), env, **options)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_other_bytes_than_the_hub_lists_are_rejected(tmp_path, files):
    lie = files["en/1.txt"].replace(b"the", b"teh")
    with hub(files, tmp_path / "home", lies={"en/1.txt": lie}) as (env, _):
        done = prepared(tmp_path, write_vocab(tmp_path), env)
    assert done.returncode == 2
    assert "en/1.txt: sha256" in done.stderr and "that the hub lists; delete it and run again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_reported_in_one_line(tmp_path, files):
    vocab = write_vocab(tmp_path)
    with hub(files, tmp_path / "home") as (env, _):
        pass
    done = prepared(tmp_path, vocab, env)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "source web: the hub does not list org/name" in line and "Traceback" not in done.stderr
    done = prepared(tmp_path, vocab, env, tokenizer="org/name")
    assert (
        done.returncode == 2 and "--tokenizer org/name: no such file or folder, nor a model of the hub" in done.stderr
    )


@pytest.mark.slow
def test_a_tokenizer_may_be_a_model_of_the_hub(tmp_path, files):
    vocab = write_vocab(tmp_path)
    with hub(files | {"vocab.txt": vocab.read_bytes()}, tmp_path / "home") as (env, _):
        done = prepared(tmp_path, vocab, env, tokenizer="org/name")
        assert done.returncode == 0, done.stderr
        done = prepared(tmp_path, vocab, env)
        assert done.returncode == 0 and "already complete" in done.stderr, done.stderr


def test_a_revision_that_is_not_a_commit_is_rejected_also_without_a_hub():
    with pytest.raises(
        UserError, match=r"revision 'v1' can move; pin a commit: revision = the 40 digits shown at hugg"
    ):
        hub_files("org/name", "v1", "*", "source web")


def test_a_folder_in_the_place_of_files_is_reported(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(UserError, match=r"texts is a folder, so name the files in it, as .*/texts/\*$"):
        local_files(f"{tmp_path}/texts", "source a")
