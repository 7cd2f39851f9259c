"""A student with a smaller vocabulary than its teacher's, by a real run."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

from data_prep.cli import UserError
from data_prep.shards import MANIFEST, write_manifest
from pipeline.artifacts import checkpoints
from pipeline.artifacts.distillation import read_distillation
from pipeline.artifacts.metrics import read_metrics
from pipeline.distill import read_what_is_named
from pipeline.export import export
from pipeline.models.cut import split
from pipeline.models.fit import check_teacher, student_tokenizer, teacher_config_of, untrained_student
from pipeline.models.loading import load_model, weights_of
from pipeline.models.vocabulary import own_ids, student_ids_of
from pipeline.report import run as run_report
from pipeline.settings.reading import load_recipe
from pipeline.training.monitor import Monitor
from pipeline.training.resuming import check_same_vocabulary
from tests.parts import launching, tiny
from tests.parts.runs import assert_recomputed, job

EXTRA = [f"x{i}" for i in range(10)]  # of the teacher's vocabulary, never in the corpus
DROPPED = {"w3", "w20", *EXTRA}
INIT = ["student.init=teacher", "student.hidden=32", "steps=4", "checkpoint_every=2", "eval_every=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher of 60 pieces, a corpus of 50 of them, and two smaller vocabularies: those 50, and 48 of them."""
    folder = tmp_path_factory.mktemp("vocab")
    words = tiny.WORDS + EXTRA
    tiny.make_corpus(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WORDS", words)
        tiny.make_recipe(folder)
        manifest = json.loads((folder / "data" / MANIFEST).read_text()) | {"tokenizer": tiny.fingerprint()}
        write_manifest(folder / "data", manifest)
    for name, dropped in (("used", set(EXTRA)), ("fewer", DROPPED)):
        write_vocabulary(folder / f"vocab-{name}", folder / "teacher", words, dropped)
    return folder


def write_vocabulary(folder, teacher, words, dropped):
    """A folder as pipeline.trim_vocab leaves it, but for the weights."""
    small = [word for word in words if word not in dropped]
    folder.mkdir()
    np.save(folder / "vocabulary.npy", np.array([-1 if w in dropped else small.index(w) for w in words], np.int32))
    config = json.loads((teacher / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(small)}))
    (folder / "vocab.txt").write_text("\n".join(small) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    shutil.copyfile(teacher / "model.safetensors", folder / "model.safetensors")  # nobody reads it


@pytest.fixture(scope="module")
def runs(folder):
    """Runs from the teacher's weights: whole vocabulary; what the corpus uses; fewer, whole and in two halves."""
    used, fewer = (f"student.vocab={folder}/vocab-{name}" for name in ("used", "fewer"))
    jobs = [
        job(folder, "whole", *INIT),
        job(folder, "used", *INIT, used),
        job(folder, "fewer", *INIT, fewer),
        job(folder, "halves", *INIT, fewer, stop_at=2),
        job(folder, "halves", *INIT, fewer),
    ]
    launching.finish_jobs(folder, 1, jobs)
    return folder


def losses(run) -> list[float]:
    return [row["loss"] for row in read_metrics(run) if row["kind"] in ("train", "heldout")]


@pytest.mark.slow
def test_pieces_that_no_text_has_are_not_missed(runs):
    assert len(losses(runs / "whole")) == 7
    assert losses(runs / "used") == losses(runs / "whole")
    whole, used = (checkpoints.latest(runs / name).weights() for name in ("whole", "used"))
    table = "embeddings.word_embeddings.weight"
    assert used[table].shape == (50, 32) and whole[table].shape == (60, 32)
    assert torch.equal(used[table], whole[table][:50])
    assert all(torch.equal(used[name], whole[name]) for name in used if name != table)


@pytest.mark.slow
def test_dropped_pieces_are_unknown_to_the_student_and_not_to_the_teacher(runs):
    recipe = load_recipe(runs / "tiny.toml", [*INIT, f"student.vocab={runs}/vocab-fewer"])
    config = teacher_config_of(recipe)
    teacher = load_model(recipe.teacher.model, "main", torch.float32)
    student = untrained_student(recipe, config, weights_of(recipe.teacher.model, "main", config)).eval()
    words = tiny.WORDS + EXTRA
    kept = [i for i, word in enumerate(words) if word not in DROPPED]
    assert torch.equal(student.embeddings.word_embeddings.weight, teacher.embeddings.word_embeddings.weight[kept])
    cut, *_ = split(student, own_ids=own_ids(recipe))
    ids = [words.index(word) for word in ("[CLS]", "w2", "w3", "w44", "x1", "[SEP]")]
    own = AutoTokenizer.from_pretrained(runs / "vocab-fewer").convert_tokens_to_ids(
        ["[CLS]", "w2", "[UNK]", "w44", "[UNK]", "[SEP]"]
    )
    plain, *_ = split(student)
    for ours, theirs in zip(cut(torch.tensor([ids])), plain(torch.tensor([own])), strict=True):
        assert torch.equal(ours, theirs)
    assert "own_ids" not in cut.state_dict()


@pytest.mark.slow
def test_it_continues_from_a_checkpoint_and_is_exported_with_its_own_tokenizer(runs, tmp_path):
    assert losses(runs / "halves") == losses(runs / "fewer")
    assert not np.array_equal(losses(runs / "fewer"), losses(runs / "used"))
    export(runs / "fewer", tmp_path / "student")
    model, tokenizer = (
        AutoModel.from_pretrained(tmp_path / "student"),
        AutoTokenizer.from_pretrained(tmp_path / "student"),
    )
    assert model.config.vocab_size == len(tokenizer) == 48
    assert tokenizer.tokenize("w2 w3 w44") == ["w2", "[UNK]", "w44"]
    (made,) = read_distillation(tmp_path / "student")
    assert made["recipe"]["student"]["vocab"] == "vocab-fewer"  # its name, not this machine's path
    assert "| student | 2 | 32 |" in run_report.report(runs / "fewer", tmp_path / "student")
    assert_recomputed(tmp_path / "student")


@pytest.mark.slow
def test_much_unknown_text_is_reported(runs):
    logs = {name: (runs / name / "log.txt").read_text() for name in ("whole", "used", "fewer")}
    assert "unknown to the student" not in logs["whole"] + logs["used"]
    assert "% of the held-out tokens are unknown to the student; trim its vocabulary" in logs["fewer"]


@pytest.mark.slow
def test_another_vocabulary_is_not_continued(runs, tmp_path):
    checkpoint = checkpoints.latest(runs / "fewer")
    # As many pieces, not the same.
    write_vocabulary(tmp_path / "other", runs / "teacher", tiny.WORDS + EXTRA, {"w4", "w20", *EXTRA})
    for name, same in ((runs / "vocab-fewer", True), (tmp_path / "other", False)):
        recipe = load_recipe(runs / "tiny.toml", [*INIT, f"student.vocab={name}"])
        refusal = pytest.raises(UserError, match=r"other: not the vocabulary that .*step-0")
        with contextlib.nullcontext() if same else refusal:
            check_same_vocabulary(checkpoint, recipe)


def test_a_vocabulary_that_does_not_fit_the_teacher_is_named(folder, tmp_path):
    write_vocabulary(tmp_path / "small", folder / "teacher", tiny.WORDS, {"w3"})
    recipe = load_recipe(folder / "tiny.toml", [*INIT, f"student.vocab={tmp_path / 'small'}"])
    with pytest.raises(UserError, match=r"student.vocab = .*made from a vocabulary of 50, the teacher's has 60"):
        check_teacher(recipe, teacher_config_of(recipe))
    recipe = load_recipe(folder / "tiny.toml", [*INIT, f"student.vocab={tmp_path / 'none'}"])
    with pytest.raises(
        UserError, match=r"none/vocabulary.npy: no such file; need a folder that python -m pipeline.trim_vocab"
    ):
        check_teacher(recipe, teacher_config_of(recipe))


@pytest.mark.parametrize("becomes", ["gone", "another"])
def test_a_vocabulary_is_read_once_in_a_process_whatever_becomes_of_its_folder(folder, tmp_path, becomes):
    own = shutil.copytree(folder / "vocab-used", tmp_path / "vocab")
    recipe = load_recipe(folder / "tiny.toml", [f"student.vocab={own}"])
    first = student_ids_of(recipe)
    read_what_is_named(recipe)
    shutil.rmtree(own)
    if becomes == "another":
        shutil.copytree(folder / "vocab-fewer", own)
    assert student_ids_of(recipe) is first
    assert (own_ids(recipe).numpy() == np.where(first < 0, 1, first)).all()
    assert len(student_tokenizer(recipe)) == 50


@pytest.mark.slow
@pytest.mark.parametrize("becomes", ["gone", "another"])
def test_a_run_ends_as_if_the_folders_that_it_names_had_stayed(runs, tmp_path, monkeypatch, becomes):
    """Vocabulary, ds_config and teacher are taken away when its first step is logged; then come checkpoints and the export."""
    for name in ("vocab-fewer", "teacher"):
        shutil.copytree(runs / name, tmp_path / name)
    config = tmp_path / "mine.json"
    config.write_text('{"zero_optimization": {"stage": 1}}')
    log = Monitor.log

    def take_away(monitor, step, *arguments, **others):
        if step == 1:
            for name in ("vocab-fewer", "teacher"):
                shutil.rmtree(tmp_path / name)
            config.unlink()
            if becomes == "another":
                shutil.copytree(runs / "vocab-used", tmp_path / "vocab-fewer")
                config.write_text("{}")
        log(monitor, step, *arguments, **others)

    monkeypatch.setattr(Monitor, "log", take_away)
    named = f"student.vocab={tmp_path}/vocab-fewer", f"teacher.model={tmp_path}/teacher", f"student.ds_config={config}"
    launching.finish_jobs(runs, 1, [job(tmp_path, "run", *INIT, *named, recipe=str(runs / "tiny.toml"))])
    assert losses(tmp_path / "run") == pytest.approx(losses(runs / "fewer"), rel=1e-5)
    infos = [checkpoints.latest(run).info for run in (tmp_path / "run", runs / "fewer")]
    assert infos[0]["student_ids"] == infos[1]["student_ids"] and infos[0]["step"] == 4
    export(tmp_path / "run", tmp_path / "student")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "student")) == 48
