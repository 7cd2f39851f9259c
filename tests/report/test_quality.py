"""Forms beside their folder in the report, and the chart of quality against size and speed: only where there is something."""

import re

import pytest

from pipeline.artifacts.results import read_results
from pipeline.report.quality import quality_section
from pipeline.report.scores import Scores, missing
from tests.report.test_report import HOSTILE, made, page, put, put_cell, put_model, row, section, stage

EMBEDDED = {"pooling": "mean", "prompt": "", "length": 128}
DEVICE = "cpu (2 threads), bf16"


def put_form(folder, of, runtime, precision, megabytes, score, speedup=None):
    name = f"{of}@{runtime.partition(' ')[0].lower()}-{precision}"
    form = {"of": of, "runtime": runtime, "precision": precision}
    put_model(folder, name, distillation=[stage()], form=form, bytes=int(megabytes * 1e6))
    put_cell(folder, name, score, "lee", metric="pearson", settings=EMBEDDED, data={"source": "gensim"}, split="all")
    if speedup:
        put_speed(folder, name, speedup, f"cpu (2 threads), {precision} in {runtime}")
    return name


def put_speed(folder, model, speedup, device=DEVICE, reference="teacher"):
    shape = {"batches": 100, "batch": 32, "length": 128, "text": "made-up ids"}
    put(
        folder / model / "speed.json",
        format=1,
        model=model,
        reference=reference,
        device=device,
        speedup=speedup,
        **shape,
    )


@pytest.fixture
def folder(tmp_path):
    """A teacher, a student with two forms, and another student whose name stands between those of the forms."""
    out = tmp_path / "results"
    put_model(out, "teacher", 6, bytes=90_900_000)
    put_model(out, "student", distillation=[stage()], bytes=69_600_000)
    put_model(out, "student-b", distillation=[stage()], bytes=69_600_000)
    for name, score in (("teacher", 65.6), ("student", 64.4), ("student-b", 60.0)):
        put_cell(out, name, score, "lee", metric="pearson", settings=EMBEDDED, data={"source": "gensim"}, split="all")
    put_speed(out, "student", 1.9)
    put_form(out, "student", "ONNX Runtime", "int8", 17.7, 63.6, 5.0)
    put_form(out, "student", "OpenVINO", "fp32", 69.1, 64.4, 3.4)
    return out


def test_forms_stand_after_their_folder_with_their_own_scores_size_and_speed(folder):
    text = made(folder)
    order = re.findall(r"^\| \**([\w@-]+)", section(text, "Scores"), re.MULTILINE)
    assert order[2:7] == ["teacher", "student", "student@onnx-int8", "student@openvino-fp32", "student-b"]
    sizes = section(text, "Parameters and speed")
    assert row(sizes, "student@onnx-int8") == [
        "3x384", "ONNX Runtime, int8", "11.7", "5.3", "17.4", "17.7", "5.00", "teacher", "",
    ]  # fmt: skip
    assert row(sizes, "student") == ["3x384", "PyTorch", "11.7", "5.3", "17.4", "69.6", "1.90", "teacher", "1.91"]
    assert (
        sizes.count("* measured: ") == 2
        and "100 batches of 32 × 128 tokens (made-up ids) on cpu (2 threads), medians" in sizes
    )
    assert row(section(text, "Retention"), "student@onnx-int8")[0] == "97.0"


def test_forms_are_not_missed_where_models_are_fine_tuned(folder):
    put_cell(folder, "teacher", 70.0)
    scores = Scores(read_results(folder), "teacher")
    assert missing(scores) == [("student", ["rte"]), ("student-b", ["rte"])]


def test_quality_is_drawn_against_size_and_speed_in_the_page_and_as_png(folder):
    text = made(folder)
    assert "![Quality: quality-lee](report-quality-lee.svg)" in section(text, "Quality against size and speed")
    drawn = (folder / "report-quality-lee.svg").read_text()
    for word in ("Lee's documents", "Pearson [%]", "size on disk [MB]", "times as fast as teacher", "student-b"):
        assert f"<!-- {word} -->" in drawn
    for kind in ("PyTorch", "ONNX Runtime, int8", "OpenVINO, fp32"):
        assert f"<!-- {kind} -->" in drawn
    assert drawn.count("<use ") > 0 and (folder / "report-quality-lee.png").read_bytes()[:4] == b"\x89PNG"
    assert "image/svg+xml;base64" in page(folder) and "data:image/png;base64" not in page(folder)
    before = {name: (folder / f"report-quality-lee.{name}").read_bytes() for name in ("svg", "png")}
    made(folder)
    assert before == {name: (folder / f"report-quality-lee.{name}").read_bytes() for name in before}


def axes_of(folder):
    from pipeline.report.quality import _axes

    return _axes(Scores(read_results(folder), "teacher"), "lee")


def test_an_axis_has_the_models_with_a_score_that_are_on_record(folder):
    sizes, speeds = axes_of(folder).values()
    assert sizes == {
        "teacher": 90.9, "student": 69.6, "student-b": 69.6, "student@onnx-int8": 17.7, "student@openvino-fp32": 69.1,
    }  # fmt: skip
    assert speeds == {"teacher": 1.0, "student": 1.9, "student@onnx-int8": 5.0, "student@openvino-fp32": 3.4}
    put_speed(folder, "student-b", 9.0, reference="another")
    assert list(axes_of(folder).values())[1] == speeds


def test_without_sizes_and_speeds_there_is_no_chart_and_an_old_one_goes(folder):
    made(folder)
    for place in folder.iterdir():
        if place.is_dir():
            (place / "speed.json").unlink(missing_ok=True)
            path = place / "model.json"
            path.write_text(re.sub(r'"bytes": \d+', '"other": 1', path.read_text()))
    assert quality_section(Scores(read_results(folder), "teacher")) == ([], {})
    assert "Quality against" not in made(folder) and not list(folder.glob("report-quality-*"))


def test_names_of_others_are_drawn_as_they_are(folder):
    put_model(folder, "a$x^$b", bytes=1_000_000, distillation=[stage()], form=HOSTILE)
    put_cell(folder, "a$x^$b", 50.0, "lee", metric="pearson", settings=EMBEDDED, split="all")
    made(folder)
    assert "<!-- a$x^$b -->" in (folder / "report-quality-lee.svg").read_text()
