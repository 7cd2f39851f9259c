"""A sweep: students of one run that differ in what they learn. Each becomes what it becomes alone."""

import pytest

from pipeline.artifacts import checkpoints
from pipeline.artifacts.metrics import read_metrics
from pipeline.export import export
from tests.parts import launching
from tests.parts.runs import assert_recomputed, assert_same_state, job, untimed
from tests.parts.tiny import make_recipe

pytestmark = pytest.mark.slow

# Students of one shape: keys of [[student]], and what they are in the recipe of the student alone.
SWEEP = {
    "plain": {"student.ds_config": "'student_zero0.json'"},
    "deeper": {"teacher.layer": 4, "student.seed": 7, "student.ds_config": "'student_zero1.json'"},
    "heads": {
        "pairs": "['qq', 'kk', 'v_mse']", "relation_heads": 8, "learning_rate": 5e-3,
        "student.ds_config": "'student_zero3.json'",
    },
    "layers": {"teacher.layer": 2, "transfer": "'layer-to-layer'", "student.init": "'pca'"},
}  # fmt: skip
OPTIONS = ("teacher.hosting=zero3", "precision=bf16", "teacher.micro_batch=4")


def make_sweep(folder):
    """sweep.toml: the tiny recipe with all of SWEEP."""
    text = make_recipe(folder).read_text().split("[student]")[0]
    for name, keys in SWEEP.items():
        text += f'[[student]]\nname = "{name}"\nlayers = 2\nhidden = 16\nheads = 4\n'
        for key, value in keys.items():
            text += f"{key.removeprefix('student.').replace('.', '_')} = {value}\n"
    (folder / "sweep.toml").write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs on two ranks: the sweep, each student alone, and the sweep with some students behind the others."""
    folder = tmp_path_factory.mktemp("sweep")
    make_sweep(folder)
    # The one that learns of the deepest layer has nothing to do: the teacher is cut below it.
    without = ["plain/checkpoints/step-00000006", "heads", "layers/checkpoints/step-00000006"]
    jobs = [
        job(folder, "sweep", *OPTIONS, recipe="sweep.toml"),
        *(job(folder, f"alone/{name}", *OPTIONS, *map("{0[0]}={0[1]}".format, SWEEP[name].items())) for name in SWEEP),
        job(folder, "behind", *OPTIONS, recipe="sweep.toml", copy_of=str(folder / "sweep"), without=without),
    ]
    launching.finish_jobs(folder, 2, jobs)
    return folder


@pytest.mark.parametrize("name", SWEEP)
def test_a_student_of_a_sweep_becomes_what_it_becomes_alone(folder, name):
    together, alone = folder / "sweep" / name, folder / "alone" / name
    assert untimed(together) == untimed(alone) and len(untimed(together)) > 8
    assert_same_state(together, alone)
    for file in ("recipe.json", "ds_config.student.json", "student/config.json", "student/README.md"):
        assert (together / file).read_text().replace("/sweep/", "/alone/") == (alone / file).read_text()


@pytest.mark.parametrize("name", SWEEP)
def test_the_teacher_of_a_student_is_the_same_with_and_without_deeper_layers(folder, name):
    infos = [checkpoints.latest(folder / run / name).info for run in ("sweep", "alone", "behind")]
    assert len({info["teacher"]["weights"] for info in infos}) == 1
    assert_same_state(folder / "behind" / name, folder / "sweep" / name)


def test_the_students_of_a_sweep_differ(folder):
    last = {name: read_metrics(folder / "sweep" / name)[-1] for name in SWEEP}
    assert len({str(row) for row in last.values()}) == len(SWEEP)
    maps = {name: (folder / "sweep" / name / "log.txt").read_text() for name in SWEEP}
    assert "teacher, layers 2, 3, 4 of 4," in maps["plain"] and "; relation_heads = 8;" in maps["heads"]


def test_each_student_of_a_sweep_is_exported_by_its_own_recipe(folder, tmp_path):
    for name in ("deeper", "layers"):
        export(folder / "sweep" / name, tmp_path / name)
        assert_recomputed(tmp_path / name)
    assert ", layer 4, weights" in (tmp_path / "deeper" / "README.md").read_text()
