"""pipeline.show: what is shown is what a run reads, in each layout."""

import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from data_prep.cli import UserError
from data_prep.encode import load_encoder
from data_prep.shards import open_corpus
from pipeline import show
from pipeline.__main__ import main as door
from pipeline.data.reading import order_of, read, training_windows
from pipeline.settings.reading import load_recipe
from tests.parts.launching import run_main
from tests.parts.tiny import WORDS, make_corpus, make_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("show")
    make_corpus(folder / "data", {"a": 600, "b": 900})
    return make_recipe(folder).parent


def lines_of(folder, *overrides, count=2, source=None):
    recipe = show.recipe_to_show(str(folder / "tiny.toml"), list(overrides))
    return recipe, list(show.samples_of(recipe, count, source))


def pieces(lines):
    """The pieces of a sample's lines, padding spelled out."""
    words, found = " ".join(line.strip() for line in lines[1:]).split(), []
    while words:
        word = words.pop(0)
        if words[:1] == ["×"]:
            found += [word] * int(words[1])
            del words[:2]
        else:
            found.append(word)
    return found


@pytest.mark.parametrize("layout", ["full", "doc", "packed"])
@pytest.mark.parametrize("segments", ["single", "pairs"])
def test_what_is_shown_are_the_first_samples_of_the_run(folder, layout, segments):
    recipe, (_, *samples) = lines_of(folder, f"layout={layout}", f"segments={segments}", "length=32", count=4)
    windows = training_windows(open_corpus(folder / "data"), 32, layout, segments == "pairs")
    order = order_of(windows, recipe.sampling_alpha, recipe.seed)
    for number, sample in enumerate(samples):
        inputs = read(windows, order, number, number + 1)
        assert pieces(sample) == [WORDS[token] for token in inputs.ids[0]]
        name = windows.names[int(order(number, number + 1).source[0])]
        assert sample[0].startswith(f"sample {number}: source {name}, 32 positions, ")
        padded = inputs.ids[0].tolist().count(0)
        assert (f"{padded} of them padding" if padded else "no padding") in sample[0]
    if layout == "packed":
        first = read(windows, order, 0, 1).pieces
        count = int(np.unique(first.first[0][first.stop[0] > 0]).size)
        assert (
            f"{count} sequence" in samples[0][0] and sum(line.startswith("    [CLS]") for line in samples[0]) == count
        )


def test_a_recipe_decides_its_segments_as_its_run_does(folder):
    recipe, _ = lines_of(folder)
    assert recipe.segments == "pairs"
    assert load_recipe(folder / "tiny.toml").segments == "auto"


def test_only_samples_of_a_source_are_shown_by_their_numbers(folder):
    _, (head, *samples) = lines_of(folder, "layout=doc", count=5, source="a")
    assert len(samples) == 5 and all(", source a," in f", {sample[0].split(': ')[1]}" for sample in samples)
    numbers = [int(sample[0].split(":")[0].split()[1]) for sample in samples]
    assert numbers == sorted(set(numbers)) and head[1] == "sources: a, b"
    with pytest.raises(UserError, match=r"--source c: no source of .*data with a window of this length; it has a, b"):
        lines_of(folder, source="c")


def test_a_prepared_folder_is_shown_by_its_own_tokenizer(folder, monkeypatch, capsys):
    data, teacher = str(folder / "data"), f"teacher.model={folder / 'teacher'}"
    code, out, _ = run_main(monkeypatch, capsys, show.main, data, teacher, "length=16", "--samples", 1)
    assert code == 0 and "windows of 16 positions, layout 'full', single texts" in out and out.count("sample ") == 1
    assert "    [CLS] w" in out
    code, _, line = run_main(monkeypatch, capsys, show.main, data)
    assert code == 2 and line == f"error: {data}: does not say where its tokenizer is; give teacher.model=FOLDER\n"


@pytest.mark.slow
def test_what_prep_made_is_shown_by_prep_show(tmp_path, folder, monkeypatch, capsys):
    from data_prep.__main__ import main as prep

    (tmp_path / "text.txt").write_text("w1 w2 w3 unheard w4\n\nw5 w6\n")
    words = ["prepare", "--out", tmp_path / "d", "--tokenizer", folder / "teacher" / "vocab.txt", "--workers", 1]
    assert (
        run_main(monkeypatch, capsys, prep, *words, "--heldout", 0, "--source", f"s=text:{tmp_path}/text.txt")[0] == 0
    )
    monkeypatch.setattr(sys, "argv", ["pipeline", "prep", "show", str(tmp_path / "d"), "layout=doc", "length=9"])
    door()
    out = capsys.readouterr().out
    assert "    [CLS] w1 w2 w3 [UNK] w4 [SEP] [PAD] × 2\n" in out and "    [CLS] w5 w6 [SEP] [PAD] × 5\n" in out


def test_another_vocabulary_is_refused(folder, tmp_path):
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join([*WORDS[:5], *reversed(WORDS[5:])]) + "\n")
    with pytest.raises(UserError, match="made with another vocabulary than that of"):
        lines_of(folder, f"teacher.model={other}", "segments=single")


def test_bytes_are_shown_as_the_text_that_they_are(tmp_path):
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    vocabulary = special | {piece: 4 + n for n, piece in enumerate(["ĠthÃ©", "Ċ", "Ã", "Ġ", "t", "h", "©"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.add_special_tokens([*special])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read_as = show.Pieces(load_encoder(tmp_path / "tokenizer.json"))
    assert read_as.line([0, 4, 5, 6, 2, 1, 1, 1], 1) == "<s> Ġthé Ċ Ã </s> <pad> × 3"
