"""bench: the measurements run, compare like with like, and are reported; how fast anything is, no test says."""

import json

import pytest

from data_prep.bench import alternating, library_twin, read_texts
from data_prep.cli import UserError
from tests.parts.corpora import paragraphs, run_cli, write_sentencepiece, write_vocab


@pytest.fixture
def texts(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n\n".join(paragraphs(200, seed=number)))
    return f"{tmp_path}/?.txt"


@pytest.mark.slow
def test_every_case_is_measured_for_every_tokenizer_and_reported_by_line(tmp_path, texts):
    wordpiece, xlmr = (["--tokenizer", make(tmp_path)] for make in (write_vocab, write_sentencepiece))
    sizes = ["--mib", 0.1, "--repeats", 1, "--memory-mib", 5]
    done = run_cli("bench", "--text", texts, *wordpiece, *sizes, "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 3 + 2 + 3
    assert all(row["value"] > 0 for row in rows)
    assert [row["value"] for row in rows if "same ids" in row["name"]] == [100]
    assert [row["beside"] for row in rows if row["ratio"]] == ["the library alone", "one worker"]
    shown = run_cli("bench", "tokenizer", "--text", texts, *wordpiece, *xlmr, *sizes)
    assert shown.returncode == 0 and shown.stdout.count(" x the library alone") == 2, shown.stderr


def test_texts_are_taken_from_all_files_alike(texts):
    assert len(read_texts(texts, 10)) == 600
    some = read_texts(texts, 0.03)
    assert sum(len(text) for text in some) == pytest.approx(0.03 * 2**20, rel=0.1)
    assert set(some) & {*paragraphs(200, seed=2)}


@pytest.mark.parametrize("make", [write_vocab, write_sentencepiece])
def test_the_twin_is_the_librarys_own_of_the_same_file(tmp_path, make):
    from data_prep.encode import load_encoder

    twin, encoder = library_twin(make(tmp_path)), load_encoder(make(tmp_path))
    lines = paragraphs(20)
    assert [ids.tolist() for ids in encoder.encode_batch(lines)] == [
        found.ids for found in twin.encode_batch(lines, add_special_tokens=False)
    ]


def test_a_ratio_is_that_of_the_second_to_the_first(monkeypatch):
    clock = iter([0, 1, 10, 14, 20, 22, 30, 36])
    monkeypatch.setattr("data_prep.bench.time.perf_counter", lambda: next(clock))
    assert alternating(lambda: None, lambda: None, 2) == (1.5, 5, 3.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "argument case: invalid choice: 'speed'"),
        ([], "--tokenizer: none is named"),
        (["--tokenizer", "none.model"], "--text: none is named; give text files"),
        (["--tokenizer", "none.model", "--text", "nothing*"], "--text: no file matches nothing*"),
        (["--repeats", "0"], "argument --repeats: '0' is not a whole number of at least 1"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments, message):
    done = run_cli("bench", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and message in done.stderr, done.stderr


def test_files_without_text_are_reported(tmp_path):
    (tmp_path / "0.txt").write_text("\n")
    with pytest.raises(UserError, match=r"--text .*: holds no text"):
        read_texts(f"{tmp_path}/0.txt", 1)
