"""bench kernel: the kernel's errors are those against the formula, and one out of bounds is an error."""

import json
import sys

import pytest
import torch

from data_prep.cli import UserError
from pipeline.bench import __main__ as bench
from pipeline.bench.tools import Setting
from tests.parts.literal_relations import literal_relation_loss

pytest.importorskip("triton")

from pipeline.bench import kernel

CASE = kernel.Case("some", Setting(("qk", "vv"), 2), (16, 8), (9, 20, 1, 0))
CPU = torch.device("cpu")


def run(monkeypatch, capsys, *arguments: str) -> list[dict]:
    monkeypatch.setattr(sys, "argv", ["bench", "kernel", "--json", *arguments])
    bench.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()][1:]


def test_the_formula_is_the_papers_with_ragged_lengths():
    teacher, student = kernel.inputs(CASE, CPU)
    loss, gradients = kernel.by_formula(CASE, teacher, student)
    own = [x.detach().double().requires_grad_() for x in student]
    wanted = literal_relation_loss([x.double() for x in teacher], own, ("qk", "vv"), 2, list(CASE.lengths))["loss"]
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    for gradient, exact in zip(gradients, torch.autograd.grad(wanted, own), strict=True):
        assert torch.allclose(gradient, exact, rtol=1e-10, atol=1e-14)


def test_every_case_has_its_errors_and_they_are_within_bounds(monkeypatch, capsys):
    monkeypatch.setattr(kernel, "TOY", (CASE, kernel.Case("wide", CASE.setting, (16, 8), (5,), "fp32")))
    rows = run(monkeypatch, capsys)
    assert [(row["name"], row["measure"]) for row in rows] == [
        (name, measure) for name in ("some", "wide") for measure in ("loss error", "gradient error", "changed bits")
    ]
    assert all(row["value"] <= 2 for row in rows) and rows[0]["dtype"] == "bf16" and rows[3]["unit"] == "1e-6 nats"
    assert 0.5 < rows[1]["value"] <= kernel.ROUNDING_BOUND  # the gradient is bf16: rounding is most of it


@pytest.mark.parametrize(
    "wrong, measure", [("loss", "loss error"), ("gradient", "gradient error"), ("bits", "changed bits")]
)
def test_what_is_out_of_bounds_ends_with_an_error_after_all_cases(monkeypatch, capsys, wrong, measure):
    right, calls = kernel.by_kernel, []

    def by_kernel(*words):
        loss, gradients = right(*words)
        calls.append(words[0].name)
        first = calls == ["bad"]
        if wrong == "loss" and words[0].name == "bad":
            loss = loss + 1e-5
        if wrong == "gradient" and words[0].name == "bad":
            gradients = [1.01 * x for x in gradients]
        if wrong == "bits" and first:
            loss = torch.nextafter(loss, loss + 1)
        return loss, gradients

    monkeypatch.setattr(kernel, "by_kernel", by_kernel)
    cases = [kernel.Case(name, Setting(("qq",), 1), (16, 8), (5, 3)) for name in ("bad", "good")]
    monkeypatch.setattr(kernel, "TOY", tuple(cases))
    with pytest.raises(SystemExit, match=f"error: out of bounds: bad: {measure} "):
        run(monkeypatch, capsys)
    assert calls == ["bad", "bad", "good", "good"]


def test_a_cpu_needs_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(
        UserError, match="kernel: there is no GPU; TRITON_INTERPRET=1 runs the kernel in Triton's interp"
    ):
        run(monkeypatch, capsys)


def test_a_machine_without_triton_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="kernel: Triton is not installed, which it is written in: pip install triton"):
        run(monkeypatch, capsys)


def test_full_size_has_the_shapes_of_recipes():
    shapes = {(case.setting.heads, case.widths, case.dtype) for case in kernel.FULL}
    assert shapes >= {(48, (768, 384), "bf16"), (12, (768, 384), "bf16"), (64, (1024, 384), "bf16")}
    assert {case.dtype for case in kernel.FULL} == set(kernel.DTYPES)
    lengths = [case.lengths for case in kernel.FULL]
    assert any(0 in each for each in lengths) and any(1 in each for each in lengths) and (8192,) in lengths
