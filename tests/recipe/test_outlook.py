"""recipe: a recipe next to its data and this machine."""

import pytest

from data_prep.cli import UserError
from pipeline.data.fits import about_heldout, times_read
from pipeline.models.loading import load_config
from pipeline.recipe.describe import described
from pipeline.recipe.outlook import data_lines
from pipeline.settings.plausible import doubts
from pipeline.settings.reading import load_recipe
from tests.parts.tiny import make_corpus, make_recipe, make_teacher


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_recipe(tmp_path_factory.mktemp("outlook"))


def looked_at(path, *overrides) -> str:
    recipe = load_recipe(path, overrides)
    return "\n".join(data_lines(recipe, load_config(recipe.teacher.model)))


def test_epochs_held_out_windows_and_time_here_are_told(path):
    text = "\n".join(described(str(path), []))
    assert "# data: 6,000 tokens in 300 documents to train on (a)" in text
    assert "# the run reads 0.13 times that number: 48 samples of 460 windows, 0.1 epochs" in text
    assert "# held out: 53 windows, of which 10 are evaluated" in text
    assert "# time on this machine (1 process on the CPU): " in text and "measured now" in text
    assert "# memory: about " in text


def test_more_samples_than_held_out_windows_are_told(path):
    note = "note: eval_samples = 64, but 53 windows are held out: held-out losses are means over 53"
    assert note in looked_at(path, "eval_samples=64")
    assert "held out: 53 windows" in looked_at(path, "eval_samples=53")
    assert "note: eval_samples = 0: no held-out losses" in looked_at(path, "eval_samples=0")
    assert about_heldout(path, 0, 16, 5).endswith("prepare the data with a larger --heldout")


def test_data_that_is_absent_or_half_prepared_is_told(path, tmp_path):
    assert looked_at(path, f"data={tmp_path}/none").startswith(f"note: {tmp_path}/none: no such folder; make a corpus")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/plan.json").write_text("{}")
    assert "unfinished (there is no manifest.json)" in looked_at(path, f"data={tmp_path}/half")


def test_data_of_another_tokenizer_is_refused(path, tmp_path):
    other = make_teacher(tmp_path / "other")
    words = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(words.replace('"w44"', '"v44"'))
    with pytest.raises(UserError, match="made with another vocabulary"):
        looked_at(path, f"teacher.model={other}")


def test_a_teacher_without_a_tokenizer_is_told_so(path, tmp_path):
    other = make_teacher(tmp_path / "bare")
    for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (other / file).unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"no tokenizer there .* put the files of the model's own tokenizer into the folder"
    ):
        looked_at(path, f"teacher.model={other}")


def test_the_rest_of_a_recipe_is_told_without_the_teachers_tokenizer(path, monkeypatch):
    monkeypatch.setattr("pipeline.recipe.outlook.tokenizer_here", lambda recipe: None)
    assert "not on this machine: not compared with the data's" in looked_at(path)


def test_a_small_part_of_the_data_is_told_in_percent():
    assert times_read(43, 100) == "0.43 times that number"
    assert times_read(1, 1000) == "0.1 % of that number" and times_read(1.2, 100_000) == "0.0012 % of that number"


def test_packed_rows_are_told_without_making_their_index(path):
    make_corpus(path.parent / "fresh")
    text = looked_at(path, f"data={path.parent}/fresh", "layout=packed")
    assert "the run reads up to 0.13 times that number" in text and not (path.parent / "fresh/packed").exists()


@pytest.mark.parametrize(
    ("override", "doubt"),
    [
        ("learning_rate=0.5", "learning_rate = 0.5 is unusual; the papers' runs have 3e-4 to 6e-4"),
        ("student.dropout=0.9", "student.dropout = 0.9 is unusual"),
        ("weight_decay=1", "weight_decay = 1 is unusual"),
        ("gradient_clipping=1e-5", "gradient_clipping = 1e-05 is unusual"),
        ("adam_betas=[0.9, 0.1]", "adam_betas = [0.9, 0.1] is unusual"),
        ("warmup_steps=6", "the run ends inside the warm-up"),
        ("gradient_clipping=0", ""),
        ("steps=7", ""),
    ],
)
def test_an_implausible_value_is_doubted(path, override, doubt):
    assert "\n".join(doubts(load_recipe(path, [override]))).startswith(doubt)
    assert bool(doubts(load_recipe(path, [override]))) == bool(doubt)
