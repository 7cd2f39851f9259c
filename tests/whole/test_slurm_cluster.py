"""A real Slurm: the batch script as it is shipped, driven out by its time limit; tasks with a GPU each; arrays of two verbs."""

import json
import sys
import time

import pytest

from pipeline.artifacts import results
from pipeline.distill import distill
from pipeline.engines import slurm
from pipeline.settings.reading import load_recipe
from tests.parts import task_files
from tests.parts.corpora import run_cli
from tests.parts.launching import ROOT, environment
from tests.parts.runs import losses
from tests.parts.slurm_cluster import SlurmCluster, missing
from tests.parts.tiny import make_recipe, make_teacher

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"a Slurm cluster needs {missing()}"),
]

STEPS = ["student.dropout=0.0", "steps=75", "eval_every=25", "checkpoint_every=25"]
FIT = {  # the lines of the batch script that are to be fitted, for this cluster
    "#SBATCH --gpus-per-node=8\n": "",
    "#SBATCH --ntasks-per-node=8": "#SBATCH --ntasks-per-node=1",
    "#SBATCH --cpus-per-task=8": "#SBATCH --cpus-per-task=1",
    "#SBATCH --time=24:00:00": "#SBATCH --time=00:02:00",
    "#SBATCH --signal=USR1@300": "#SBATCH --signal=USR1@60",
}
ASK = """
import json, os
from pipeline.engines import slurm
variables = dict(os.environ)
slurm.adopt(variables)
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
print(json.dumps([variables.get(name) for name in names]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submitted(cluster, *words, **variables) -> str:
    """The number of a job."""
    done = cluster.run("sbatch", "--parsable", *words, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_run_that_its_time_limit_ends_goes_on_to_the_undisturbed_student(cluster, tmp_path):
    recipe = make_recipe(tmp_path)
    assert distill([load_recipe(recipe, [*STEPS, f"out={tmp_path / 'alone'}"])]) == 0
    script = (ROOT / "pipeline" / "distill.sbatch").read_text()
    for line, fitted in FIT.items():
        assert line in script
        script = script.replace(line, fitted)
    batch = tmp_path / "distill.sbatch"
    batch.write_text(script)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # -u -m pipeline.distill, slowed: it is to take longer than the limit.
    python.write_text(f'#!/bin/sh\nshift 3\nexec {sys.executable} -u -m tests.parts.slowed 1 "$@"\n')
    python.chmod(0o755)

    given = environment() | {"VENV": str(tmp_path / "venv"), "SLURM_CONF": cluster.environment["SLURM_CONF"]}
    words = ["--chdir", ROOT, "--output", tmp_path / "log", batch, recipe, *STEPS, f"out={tmp_path / 'run'}"]
    job = submitted(cluster, *words, **given)

    def complete() -> bool:
        if cluster.state(job).startswith("PENDING"):  # in the queue again, where Slurm would leave it for two minutes
            time.sleep(5)  # at once it would be killed: "job credential revoked"
            cluster.run("scontrol", "update", f"jobid={job}", "starttime=now")
        return (tmp_path / "run" / "COMPLETE").exists()

    cluster.wait_for(complete)
    cluster.wait_for(lambda: cluster.state(job).startswith("COMPLETED"))
    log = (tmp_path / "log").read_text()
    assert "Restarts=0" not in cluster.ask("scontrol", "show", "job", job)
    assert "SIGUSR1" in log and "Resuming from" in log and "2 ranks" in log, log
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)


@pytest.mark.parametrize("share, local", [(["--gpus-per-task=1"], "0"), (["--gpus-per-node=2"], None), ([], None)])
def test_tasks_become_ranks_with_a_gpu_each_or_those_of_their_node(cluster, share, local):
    variables = {"PYTHONPATH": str(ROOT), "PATH": cluster.environment["PATH"]}
    done = cluster.run("srun", "-N2", "--ntasks-per-node=2", *share, sys.executable, "-c", ASK, **variables)
    assert done.returncode == 0, done.stderr
    tasks = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert [task[0] for task in tasks] == ["0", "1", "2", "3"]
    assert [task[2] for task in tasks] == ([local] * 4 if local else ["0", "1", "0", "1"])
    assert {(task[1], task[3], task[4]) for task in tasks} == {("4", "2", "alpha")} and len(
        {task[5] for task in tasks}
    ) == 1
    seen = [task[6] for task in tasks]
    assert (
        seen
        == {("--gpus-per-task=1",): ["0", "1"] * 2, ("--gpus-per-node=2",): ["0,1"] * 4, (): [None] * 4}[tuple(share)]
    )


@pytest.mark.parametrize("nodes", ["gpu[07-08],big1", "r[1-2]n[01-04]", "gpu[3,5-9]", "big1,gpu[07-08]", "a-b7"])
def test_the_first_host_is_the_one_that_slurm_names(cluster, nodes):
    assert (
        slurm.first_host({"SLURM_JOB_NODELIST": nodes})
        == cluster.ask("scontrol", "show", "hostnames", nodes).split()[0]
    )


def test_an_array_prepares_a_corpus(cluster, tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text("".join(f"the {word} of {number}\n" for word in range(200)))
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "of", "##1", "1"])
    )
    asked = ["--source", f"s=text:{tmp_path}/*.txt", "--tokenizer", tmp_path / "vocab.txt", "--workers", "1"]
    command = [sys.executable, "-m", "data_prep", "prepare", *asked, "--out", tmp_path / "array"]
    words = " ".join(f"'{word}'" for word in command) + ' --node "$SLURM_ARRAY_TASK_ID/3"'
    paths = ["--chdir", ROOT, "--output", tmp_path / "log-%a"]
    job = submitted(cluster, "--wait", "--array=0-2", *paths, "--wrap", words, **environment())
    logs = "\n".join(path.read_text() for path in tmp_path.glob("log-*"))
    assert set(cluster.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split()) <= {"COMPLETED"}, logs
    assert run_cli("prepare", *asked, "--out", tmp_path / "alone").returncode == 0
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("array", "alone")]
    assert manifests[0] == manifests[1], logs


def test_an_array_evaluates_each_cell_once(cluster, tmp_path):
    model = make_teacher(tmp_path / "small", layers=1, hidden=16, positions=160)
    task_files.write_glue(tmp_path / "data", "rte")
    words = f"-m pipeline.evaluate --model {model} --data {tmp_path / 'data'} --task rte --out {tmp_path / 'out'}"
    words = f"{sys.executable} {words} --epochs 2 --batch 4 --length 32 --seeds 1 2 3 4"
    paths = ["--chdir", ROOT, "--output", tmp_path / "log-%a"]
    job = submitted(cluster, "--wait", "--array=0-1", *paths, "--wrap", words, **environment())
    logs = [path.read_text() for path in sorted(tmp_path.glob("log-*"))]
    assert set(cluster.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").split()) <= {"COMPLETED"}, logs
    assert len(results.read_results(tmp_path / "out").of("small", "rte")) == 4
    for number in range(1, 5):
        assert sum(f"rte {number}/4: lr 3e-05, 2 epochs, seed {number} … " in log for log in logs) == 1, logs
    assert all("(n = 4, lr 3e-05, 2 epochs)" in log for log in logs)  # the table is of all
