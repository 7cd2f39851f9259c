"""Students that learn the vectors of texts: the loss by hand, engines and ranks, a run in two parts, stages, the export."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch

from data_prep.cli import UserError
from data_prep.shards import open_corpus
from pipeline.artifacts import checkpoints
from pipeline.distill import distill, distill_stages
from pipeline.evaluate.embedding import Embedder, settings
from pipeline.evaluate.scored_model import open_model
from pipeline.export import export, export_untrained, load_student
from pipeline.models.fit import student_config_of
from pipeline.models.loading import load_model
from pipeline.models.pooling import Pooling, read_pooling
from pipeline.models.students import build_student
from pipeline.report.run import report
from pipeline.settings.reading import load_recipe, load_recipes, load_stages
from pipeline.training.start import trained_part
from tests.models.test_pooling import st_teacher
from tests.parts import launching
from tests.parts.by_hand import packed_pieces
from tests.parts.runs import TOLERANCE, assert_recomputed, assert_same_state, final_state, job, losses
from tests.parts.tiny import make_recipe
from tests.whole.test_packed import make_documents

pytestmark = pytest.mark.slow

PARTS = ("loss", "cosine", "similarities")
EMBEDDING = (
    "transfer=embedding", "teacher.layer=4", "layout=packed", "length=24", "batch=16", "micro_batch=4", "steps=4",
    "checkpoint_every=2", "student.dropout=0.0", "relation_heads=12",
)  # fmt: skip
# The teacher's vectors are 64 wide, [CLS] beside the mean: of one student only they need a map.
STUDENTS = {"narrow": 16, "wide": 32}
SHARDED = ("teacher.hosting=zero3", "student.ds_config=student_zero3.json")
ENGINES = {
    "plain": ("teacher.hosting=replicate", "student.ds_config=student_zero0.json"),
    "first": ("teacher.hosting=zero3", "student.ds_config=student_zero1.json"),
    "sharded": SHARDED,
}
TEXTS = ["w7 w8 w9", "w20", "w3 w4 w5 w6 w7 w8 w9 w10 w11 w12"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of both students together on two ranks under each engine, each alone on one, and in two parts."""
    folder = tmp_path_factory.mktemp("embedding")
    st_teacher(folder / "teacher", do_lower_case=False)
    make_documents(folder / "data")
    text = make_recipe(folder).read_text()
    students = (
        f'[[student]]\nname = "{name}"\nlayers = 2\nhidden = {hidden}\nheads = 4\n' for name, hidden in STUDENTS.items()
    )
    (folder / "both.toml").write_text(text.split("[student]")[0] + "".join(students))
    both = {"recipe": "both.toml"}
    launching.finish_jobs(folder, 2, [job(folder, name, *EMBEDDING, *own, **both) for name, own in ENGINES.items()])
    alone = [job(folder, f"alone-{name}", *EMBEDDING, f"student.hidden={hidden}") for name, hidden in STUDENTS.items()]
    halves = [job(folder, "halves", *EMBEDDING, *SHARDED, **both, stop_at=stop) for stop in (2, None)]
    whole = job(folder, "whole", *EMBEDDING, *SHARDED, **both)
    launching.finish_jobs(folder, 1, [*alone, *halves, whole])
    return folder


@pytest.mark.parametrize("name", STUDENTS)
def test_every_engine_and_number_of_ranks_gives_the_same_losses(folder, name):
    reference = {kind: losses(folder / f"alone-{name}", kind, PARTS) for kind in ("train", "heldout")}
    assert reference["train"].shape == (4, 3) and (reference["heldout"][-1] < 0.7 * reference["heldout"][0])[0]
    for engine in ENGINES:
        for kind, expected in reference.items():
            found = losses(folder / engine / name, kind, PARTS)
            np.testing.assert_allclose(found, expected, rtol=10 * TOLERANCE["fp32"], err_msg=f"{engine} {kind}")


@pytest.mark.parametrize("name", STUDENTS)
def test_a_run_in_two_parts_gives_the_same_student_bit_for_bit(folder, name):
    assert_same_state(folder / "halves" / name, folder / "whole" / name)
    assert ("exp_avg_sq/vector_map.weight" in final_state(folder / "whole" / name, 4)) == (name == "narrow")


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("name", STUDENTS)
def test_the_first_loss_is_that_of_each_text_alone_in_the_whole_models(folder, name):
    recipe = load_recipe(folder / "tiny.toml", [*EMBEDDING, f"student.hidden={STUDENTS[name]}", "segments=single"])
    teacher = load_model(recipe.teacher.model, "main", torch.float32)
    student = build_student(student_config_of(recipe, teacher.config), recipe.seed).eval()
    cut, _, _ = trained_part(recipe, student, teacher.config.hidden_size)
    pooling, found = Pooling(("cls", "mean")), []
    rows = packed_pieces(open_corpus(folder / "data"), "sources", recipe, recipe.batch)
    mean = sum(len(pieces) for _, pieces in rows) / len(rows)
    for first in range(0, len(rows), recipe.micro_batch):
        texts = [torch.tensor([piece]) for _, pieces in rows[first : first + recipe.micro_batch] for piece in pieces]
        with torch.no_grad():
            theirs, own = (
                [pooling.vectors(model(ids).last_hidden_state, torch.ones_like(ids))[0].double() for ids in texts]
                for model in (teacher, student)
            )
        if name == "narrow":
            own = [cut.vector_map.weight.detach().double() @ vector for vector in own]
        apart = sum(1 - cosine(t, s) for t, s in zip(theirs, own, strict=True))
        pairs = [
            (cosine(theirs[i], theirs[j]) - cosine(own[i], own[j])) ** 2
            for i in range(len(own))
            for j in range(len(own))
        ]
        of_texts = recipe.micro_batch * mean
        found.append([apart / of_texts, sum(pairs) / len(own) / of_texts])
    apart, similar = np.mean(found, 0)
    assert losses(folder / f"alone-{name}", "train", PARTS)[0] == pytest.approx(
        [apart + 4 * similar, apart, similar], rel=2e-5
    )


@pytest.mark.parametrize("name", STUDENTS)
def test_the_exported_folder_gives_the_trained_vectors(folder, tmp_path, name):
    run = folder / "sharded" / name
    for _ in range(2):  # an earlier export is replaced
        export(run, tmp_path / "student")
    assert_recomputed(tmp_path / "student")
    pooling = read_pooling(str(tmp_path / "student"))
    assert (pooling.modes, pooling.normalizes, len(pooling.maps)) == (("cls", "mean"), True, name == "narrow")

    opened = open_model(str(tmp_path / "student"))
    vectors = Embedder(opened, settings(opened, "", None), 2)(TEXTS)
    checkpoint = checkpoints.latest(run)
    model = load_student(run, checkpoint)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = opened.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            own = Pooling(("cls", "mean")).vectors(model(ids).last_hidden_state, torch.ones_like(ids))
        if name == "narrow":
            own = own @ checkpoint.tensors()["vector_map.weight"].T
        torch.testing.assert_close(vector, torch.nn.functional.normalize(own)[0], rtol=1e-5, atol=1e-6)
    assert vectors.shape == (3, 64)
    card = (tmp_path / "student" / "README.md").read_text()
    assert "| learnt | pooled vectors of texts" in card and "| step | loss | cosine | similarities |" in card
    text = report(run, tmp_path / "student")
    assert "| similarities |" in text and "relations.png" not in text


def test_an_export_whose_map_is_not_the_trained_one_is_found_out(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.training.recomputing.give_beside", lambda cut, state: None)
    with pytest.raises(UserError, match=r"its student has a held-out loss of .*, the run has recorded"):
        export(folder / "sharded" / "narrow", tmp_path / "student")


def test_the_student_before_its_first_step_pools_without_a_map(folder, tmp_path):
    export_untrained(load_recipe(folder / "tiny.toml", [*EMBEDDING]), tmp_path / "start")
    assert read_pooling(str(tmp_path / "start")).maps == ()


def test_another_micro_batch_is_another_run_and_another_pooling_another_teacher(folder, tmp_path):
    text = folder / "both.toml"
    with pytest.raises(UserError, match=r"micro_batch = 8, but .* was made with 4"):
        distill(load_recipes(text, [f"out={folder / 'whole'}", *EMBEDDING, *SHARDED, "micro_batch=8"]))
    st_teacher(tmp_path / "other", do_lower_case=False)
    (tmp_path / "other/1_Pooling/config.json").write_text(json.dumps({"pooling_mode": ["lasttoken", "mean"]}))
    options = [f"out={folder / 'whole'}", *EMBEDDING, *SHARDED, f"teacher.model={tmp_path / 'other'}", "steps=5"]
    with pytest.raises(UserError, match=r"not the teacher that .* was trained on"):
        distill(load_recipes(text, options))


def test_a_stage_goes_on_with_the_student_of_the_stage_before(folder, tmp_path):
    text = f'base = "{folder}/tiny.toml"\nout = "{tmp_path}/chain"\n[[stage]]\nname = "relations"\nsteps = 2\n'
    text += (
        '[[stage]]\nname = "vectors"\ntransfer = "embedding"\nlayout = "doc"\nsteps = 3\n[stage.teacher]\nlayer = 4\n'
    )
    (tmp_path / "chain.toml").write_text(text)
    options = Namespace(stop_at=None, max_hours=None, timeout=120, launch=None)
    assert distill_stages(load_stages(tmp_path / "chain.toml", ["learning_rate=1e-38"]), options) == 0
    relations, vectors = (tmp_path / "chain" / name for name in ("relations", "vectors"))
    start, end = (checkpoints.latest(run).weights() for run in (relations, vectors))
    # A rate at which an update moves no weight: what is left is where it began.
    assert all(torch.allclose(start[name], end[name], atol=1e-30) for name in start)
    chain = json.loads((tmp_path / "chain" / "vectors-student" / "distillation.json").read_text())
    assert [link["recipe"]["transfer"] for link in chain] == ["last", "embedding"]
    assert chain[1]["recipe"]["student"]["init"] == "relations-student"
    card = (tmp_path / "chain" / "vectors-student" / "README.md").read_text()
    assert f"| chain | {folder}/teacher → 2 × 16 |" in card
    note = f"note: {folder}/teacher puts 'w3 ' before each text; here texts are read as {folder}/data has them"
    assert note in (vectors / "log.txt").read_text() and note not in (relations / "log.txt").read_text()


def test_a_teacher_that_does_not_say_how_it_pools_is_taken_by_its_mean_with_a_note(folder, tmp_path, capsys):
    recipe = make_recipe(tmp_path)
    options = [
        "transfer=embedding",
        "teacher.layer=4",
        "relation_heads=12",
        "layout=doc",
        "steps=1",
        "warmup_steps=0",
        "eval_samples=2",
    ]
    assert distill(load_recipes(recipe, options)) == 0
    assert "note: nothing in" in capsys.readouterr().out
    export(tmp_path / "run", tmp_path / "student")
    pooling = read_pooling(str(tmp_path / "student"))
    assert pooling.stated and pooling.modes == ("mean",) and len(pooling.maps) == 1
