"""What a source's user is told of its pages: templates that stood beside words, and pages that are torn or broken."""

import json

import pytest

from data_prep.counts import most_common
from data_prep.shards import open_corpus
from data_prep.stats import stats_lines
from tests.data_prep.test_pages import arguments, deadly
from tests.parts.corpora import noise, paragraphs, tree, write_corpus, write_vocab


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two files of several units, with 150 templates of which number n stands beside words in n documents."""
    folder = tmp_path_factory.mktemp("inputs")
    names = [f"t{number:03d}" for number in range(1, 151) for _ in range(number)]
    texts = [f"beside {name} | {text}" for name, text in zip(names, noise(len(names)), strict=True)]
    texts = [text for number in range(7) for text in texts[number::7]]
    (folder / "a.txt").write_text("\n\n".join(texts[:6000]))
    (folder / "b.txt").write_text("\n\n".join([*texts[6000:], "beside t150 t150 t001 | the river"]))
    write_vocab(folder)
    return folder


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "data"
    done = deadly(*arguments(out, inputs))
    assert done.returncode == 0, done.stderr
    return out


def test_templates_are_counted_by_name_in_receipts_and_manifest(made):
    entry = open_corpus(made).manifest["sources"]["s"]
    assert entry["words"] == 40 * 11325 + 2
    receipts = [json.loads(path.read_text()) for path in sorted((made / "s").glob("*.json"))]
    assert len(receipts) > 5 and sum(receipt["words"] for receipt in receipts) == entry["words"]
    counted = sum(sum(count for _, count in each["beside"]) + each["beside_others"] for each in receipts)
    assert sum(count for _, count in entry["beside"]) + entry["beside_others"] == counted == 11328
    assert entry["beside"][:2] == [["t150", 152], ["t149", 149]] and len(entry["beside"]) == 100
    assert json.loads((made / "heldout" / "s" / "00000-00000.json").read_text())["words"] == receipts[0]["words"]


def test_the_most_common_names_come_first_then_by_name():
    counts = {f"n{number:03d}": 1 for number in range(120)} | {"z": 2}
    names, others = most_common(counts)
    assert names[:3] == [["z", 2], ["n000", 1], ["n001", 1]] and len(names) == 100 and others == 21


@pytest.mark.slow
def test_any_number_of_workers_counts_alike(inputs, made, tmp_path):
    done = deadly(*arguments(tmp_path / "data", inputs, workers=3))
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "data") == tree(made)


def test_stats_show_the_twenty_most_common(made, tmp_path):
    [line] = [line for line in stats_lines(made) if line.startswith("  templates: ")]
    rate = 11328 / (40 * 11325 + 2) * 1000
    words = f"  templates: {rate:.2f} of 1,000 words stood next to a template without a text: "
    assert line.startswith(words + "{{t150}} 152, {{t149}} 149, ")
    assert line.count("{{") == 20 and line.endswith(f", others {11328 - sum(range(131, 151)) - 2:,}")
    assert not any("templates" in line for line in stats_lines(write_corpus(tmp_path / "data")))


def prepared(folder, *texts):
    write_vocab(folder)
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text)
    done = deadly(*arguments(folder / "data", folder, "*.txt"))
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if "warning: source s: " in line]


def test_torn_and_broken_pages_are_warned_of_with_their_files(tmp_path):
    text = "\n\n".join(paragraphs(3))
    torn, broken = f"{text}\n\ntorn", f"broken_xml\n\n{text}\n\nbroken_xml"
    [line] = prepared(tmp_path, text, torn, text)
    assert line == (
        "prepare: warning: source s: 1 document is broken off in the middle, in 1.txt; fetch that file again, and run the same "
        "command with --refresh"
    )
    assert open_corpus(tmp_path / "data").manifest["sources"]["s"]["dropped"] == {"torn": 1}

    (tmp_path / "more").mkdir()
    first, second = prepared(tmp_path / "more", *[broken] * 5, torn, torn)
    assert first.endswith(
        "2 documents are broken off in the middle, in 5.txt, 6.txt; fetch these files again, and run the same command with "
        "--refresh"
    )
    assert second.endswith(
        "10 documents are no well-formed XML, in 0.txt, 1.txt, 2.txt and 2 others; left out, and the rest is whole"
    )


def test_words_without_any_template_are_told_as_that(tmp_path):
    prepared(tmp_path, "beside | the river and the wind")
    assert "  templates: none of 5 words stood next to one without a text" in stats_lines(tmp_path / "data")
