"""python -m pipeline.plan: the command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.cli import UserError
from pipeline.plan.__main__ import main
from pipeline.plan.hardware import GIB, GPUS, find_gpu, gpu_named, gpu_with
from tests.parts.plans import cluster, planned


def command(capsys, monkeypatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    code = main()
    return code, capsys.readouterr().out


def test_the_plan_is_readable_and_complete(capsys, monkeypatch):
    code, text = command(capsys, monkeypatch, "minilm_6x384", "--gpu-memory", "80")
    assert code == 0
    assert "rates are those of A100-80" in text
    assert "minilm_6x384.toml on 1 node × 8 A100-80 (80 GB): fits" in text
    for label in ("Teacher", "Student", "Hosting", "Memory of a GPU, GiB", "Largest moments", "Batch", "Time", "Disk"):
        assert f"\n{label}" in text
    assert "\nAssumed" in text
    assert all(f"\n{name} " in text for name in GPUS)
    assert "no bf16 units: at fp32's rate" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_shares_of_the_memory_are_those_of_the_table(capsys, monkeypatch):
    _, text = command(capsys, monkeypatch, "minilm_6x384", "--gpu", "a100-80", "--json")
    values, made = json.loads(text), planned(cluster())
    assert values["parts"] == made.memory.parts and values["peak"] == made.memory.peak
    assert values["gpus"]["A100-80"]["days"] == made.times.days == values["times"]["days"]
    assert values["phases"]["student's pass"] == values["peak"]
    assert values["fits"] is True and values["gathers"] is None


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_would_do(capsys, monkeypatch):
    code, text = command(
        capsys, monkeypatch, "minilm_6x384", "--gpu", "A100-40", "--gpu-memory", "3", "--gpus-per-node", "2"
    )
    made = planned(cluster(gpus=2, gpu="A100-40", memory=3))
    assert code == 1
    assert (
        f"does not fit, a GPU lacks {made.missing / GIB:.2f} GiB; each of these would do: micro_batch={made.largest},"
        in text
    )
    code, text = command(capsys, monkeypatch, "minilm_6x384", "--gpu-memory", "1", "--json")
    assert code == 1 and json.loads(text)["ways_out"][-1].startswith("GPUs of ")
    assert "not even micro-batch 1 fits" in command(capsys, monkeypatch, "minilm_6x384", "--gpu-memory", "1")[1]


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("__main__", ("torch", "transformers", "deepspeed")),
        pytest.param("planning, pipeline.plan.text, pipeline.plan.comparison", ("deepspeed",), marks=pytest.mark.slow),
    ],
)
def test_help_waits_for_no_library_and_a_plan_not_for_deepspeed(modules, absent):
    code = f"import sys, pipeline.plan.{modules}; sys.exit(any(name in sys.modules for name in {absent}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "H1000"], "--gpu H1000: not known; did you mean H100 or A100-80? known are V100, A100-40"),
        (["--gpu", "RTX 4070"], "did you mean RTX4090 or RTX4080? known are V100"),
        (["--gpu", "MI300"], "of another give the memory, as in --gpu-memory 24"),
        (["--gpu", "A100"], "--gpu A100: not known; did you mean A100-40 or A100-80?"),
        ([], "name the kind of GPU, as in --gpu H100, or its memory"),
        (["--gpu-memory", "0.5"], "--gpu-memory 0.5: must be at least 1"),
        (["--gpu-memory", "nan"], "--gpu-memory nan: must be at least 1"),
        (["--gpu", "H100", "--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--gpu", "H100", "--gpus-per-node", "0"], "--gpus-per-node 0: must be at least 1"),
        (["--measure", "--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--gpu", "H100", "--nic", "0"], "--nic 0: must be above 0"),
        (["--gpu", "H100", "--share-of-peak", "1.5"], "--share-of-peak 1.5: must be above 0 and at most 1"),
        (
            ["--gpu", "H100", "--nodes", "many"],
            "argument --nodes: invalid int value: 'many'; see python -m pipeline.plan --help",
        ),
        (["--gpu", "H100", "length=600"], "length = 600: must be at most the teacher's 512 positions"),
    ],
)
def test_a_mistake_is_reported_in_one_line(arguments, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plan", "minilm_6x384", *arguments])
    with pytest.raises(UserError) as error:
        main()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_gpu_is_guessed_by_its_memory_and_carefully():
    assert gpu_with(80).name == "A100-80"  # not the faster one of as much
    assert gpu_with(140).name == "H200" and gpu_with(16).name == "V100"


def test_more_nodes_are_in_one_table_and_a_slower_run_is_said(capsys, monkeypatch):
    """Gradients cross one card a node, which has to be fast."""
    slow = ["--gpu", "A100-80", "--nodes", "4", "--nic", "3"]
    code, text = command(capsys, monkeypatch, "minilmv2_xlmr_large", *slow)
    head, *rows = text[text.index("nodes  GPUs") :].split("\n\n")[0].splitlines()
    warning = " ".join(" ".join(rows[4:]).split())
    assert code == 0 and head.split()[-2:] == ["days", "GPU-hours"]
    assert [row.split()[:2] for row in rows[:4]] == [["1", "8"], ["2", "16"], ["4", "32"], ["8", "64"]]
    assert rows[0].endswith("fastest, cheapest") and not any("est" in row for row in rows[1:4])
    made = planned(cluster(4, nic=3.0), "minilmv2_xlmr_large")
    assert made.times.gpu_hours == pytest.approx(24 * 32 * made.times.days)
    spent = f"averaging gradients takes {made.times.gradients * 1e3:.1f} of {made.times.step * 1e3:.1f} ms"
    assert warning.startswith(
        f"warning: 4 nodes are slower than 1: {spent}; take 1, a larger batch, or a faster network"
    )

    _, text = command(capsys, monkeypatch, "minilmv2_xlmr_large", "--gpu", "A100-80", "--nodes", "4", "--nic", "400")
    assert "warning" not in text and "fastest\n" in text and "cheapest\n" in text


def test_nodes_on_which_the_batch_does_not_come_out_are_left_out(capsys, monkeypatch):
    arguments = ["minilm_6x384", "batch=24", "micro_batch=1", "--gpu", "h100", "--nodes", "3", "--json"]
    _, text = command(capsys, monkeypatch, *arguments)
    assert list(json.loads(text)["nodes"]) == ["1", "3"]
    narrow = command(capsys, monkeypatch, "minilm_6x384", "--gpu-memory", "2")[1]
    assert "does not fit\n" in narrow and "fastest" not in narrow and "cheapest" not in narrow


@pytest.mark.parametrize("name", ["RTX4090", "rtx 4090", "NVIDIA GeForce RTX 4090", "nvidia-rtx-4090"])
def test_a_card_is_known_however_it_is_spelt(name):
    assert find_gpu(name).name == "RTX4090" and find_gpu(name).rate("bf16") == 165.2e3


@pytest.mark.parametrize(
    ("name", "memory", "known"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.3, "A100-80"),
        ("NVIDIA A100-SXM4-40GB", 39.5, "A100-40"),
        ("Tesla T4", 14.6, "T4"),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, "RTX-6000-Ada"),
        ("NVIDIA L40S", 44.5, "L40S"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.6, None),
    ],
)
def test_a_gpu_is_known_by_what_it_calls_itself(name, memory, known):
    found = gpu_named(name, memory * GIB)
    assert (found and found.name) == known


def test_the_card_that_is_planned_for_stands_in_the_table(capsys, monkeypatch):
    _, text = command(capsys, monkeypatch, "minilm_3x384", "--gpu", "RTX4090", "--gpus-per-node", "1")
    assert "\nRTX4090 " in text and "\nT4 " not in text
