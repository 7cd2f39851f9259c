"""pipeline.rehearse: the walk through a paper's table is made of commands that exist; a failed one ends it."""

import importlib
import subprocess

import pytest

from data_prep.cli import UserError
from pipeline import rehearse
from pipeline.__main__ import VERBS
from pipeline.models.configs import planned_config
from pipeline.settings.reading import SHIPPED, load_stages
from tests.test_docs import words_of

PAPERS = sorted(path.stem for path in SHIPPED.glob("minilm*.toml"))


def walk(tmp_path, name="minilmv2_bert_base", *overrides):
    return rehearse.walk_of(name, ["teacher.model=own", *overrides], tmp_path)


@pytest.mark.parametrize("name", PAPERS)
def test_every_command_is_understood_here_and_on_a_cluster(tmp_path, name):
    steps = rehearse.steps_of(walk(tmp_path, name))
    used = set()
    for step in steps:
        for verb, *arguments in (step.here, words_of(f"./run.sh {step.cluster}")[1:]):
            parser = importlib.import_module(VERBS[verb][0]).parser()
            intermixed = not any(action.nargs == "A..." for action in parser._actions)
            (parser.parse_intermixed_args if intermixed else parser.parse_args)(arguments)
            used.add(verb)
    assert used == {"doctor", "plan", "prep", "show", "recipe", "distill", "export", "evaluate", "speed", "report"} - (
        {"export"} if name.endswith("_ta") else set()
    )


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_is_shrunk_in_steps_batch_and_data_alone(tmp_path, name):
    made = walk(tmp_path, name)
    papers = [recipe for stage in load_stages(name) for recipe in stage]
    shrunk = {"steps", "warmup_steps", "batch", "micro_batch", "log_every", "eval_every", "eval_samples"}
    shrunk |= {"checkpoint_every", "data", "out", "teacher"}
    for small, paper in zip(made.recipes, papers, strict=True):
        ours, theirs = small.to_dict(), paper.to_dict()
        assert {key for key in ours if ours[key] != theirs[key]} <= shrunk
        assert small.steps == paper.steps // 10_000
        assert {key: value for key, value in ours["teacher"].items() if key != "model"} == {
            key: value for key, value in theirs["teacher"].items() if key != "model"
        }


def test_each_student_is_exported_scored_and_reported(tmp_path):
    steps = rehearse.steps_of(walk(tmp_path))
    exports = [step for step in steps if step.here[0] == "export"]
    assert [step.cluster for step in exports] == [
        "export runs/minilmv2_bert_base/6x768 runs/minilmv2_bert_base/6x768-student",
        "export runs/minilmv2_bert_base/6x384 runs/minilmv2_bert_base/6x384-student",
    ]
    for step in steps:
        if step.here[0] in ("evaluate", "speed"):
            assert {"own", *(export.here[2] for export in exports)} <= set(step.here)


@pytest.mark.parametrize("name", ["demo", "embedding_en"])
def test_a_recipe_of_another_corpus_is_rejected(tmp_path, name):
    with pytest.raises(UserError, match=r"its data, data/\w+, are no corpus of the papers"):
        walk(tmp_path, name)


def test_without_hub_and_tokenizer_a_folder_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(rehearse, "_is_on_the_hub", lambda name, revision: False)
    with pytest.raises(UserError, match=r"FacebookAI/roberta-large: .*give teacher.model=DIR"):
        rehearse.walk_of("minilmv2_roberta_large", [], tmp_path)


def test_a_stand_in_has_the_published_shape_and_the_packages_tokenizer(tmp_path, monkeypatch, capsys):
    packaged = tmp_path / "packaged" / "teacher"
    packaged.mkdir(parents=True)
    (packaged / "tokenizer.json").write_text("{}")
    built = []
    monkeypatch.setattr(rehearse, "_is_on_the_hub", lambda name, revision: False)
    monkeypatch.setattr(rehearse, "_fetch", lambda folder: None)
    monkeypatch.setattr(rehearse, "TOKENIZERS", {("bert", 30522): packaged})

    class Model:
        def __init__(self, config):
            built.append(config)

        def save_pretrained(self, folder):
            folder.mkdir(parents=True)

    monkeypatch.setattr(rehearse, "build_student", lambda config, seed: Model(config))
    made = rehearse.walk_of("minilmv2_bert_base", [], tmp_path / "walk")
    assert (
        made.teacher == str(tmp_path / "walk" / "teacher")
        and (tmp_path / "walk" / "teacher" / "tokenizer.json").is_file()
    )
    assert built[0].to_dict() == planned_config("google-bert/bert-base-uncased").to_dict()
    assert "random weights; its scores mean nothing" in capsys.readouterr().out


def test_rows_are_two_halves_of_a_document_or_of_two(tmp_path):
    (tmp_path / "lee.cor").write_bytes(b"".join(b"begin%d \xa3 end%d\n" % (number, number) for number in range(50)))
    rehearse.write_rows(tmp_path / "lee.cor", tmp_path)
    rows = [line.split("\t") for line in (tmp_path / "RTE" / "train.tsv").read_text().splitlines()]
    assert rows[0] == ["index", "sentence1", "sentence2", "label"] and len(rows) == 65
    for _, begin, end, label in rows[1:]:
        same = begin.split()[0].removeprefix("begin") == end.split()[-1].removeprefix("end")
        assert label == ("entailment" if same else "not_entailment")
    assert len((tmp_path / "RTE" / "dev.tsv").read_text().splitlines()) == 37


def test_a_command_that_fails_ends_the_walk_with_its_code(tmp_path, monkeypatch, capfd):
    ran = []

    def run(command):
        ran.append(command[3])
        return subprocess.CompletedProcess(command, 2 if command[3] == "prep" else 0)

    monkeypatch.setattr(rehearse.subprocess, "run", run)
    assert rehearse.rehearse(walk(tmp_path)) == 2
    assert ran == ["doctor", "plan", "plan", "prep"]
    assert "prep ended with code 2; the same rehearsal continues there" in capfd.readouterr().err
