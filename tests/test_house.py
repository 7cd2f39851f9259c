"""The structure is enforced here: who may import whom, how long things are, and how many knobs there are."""

import argparse
import ast
import dataclasses
import functools
import importlib
import subprocess
import sys
from pathlib import Path

from pipeline.__main__ import VERBS as DOORS
from pipeline.settings.recipe import PLACE, Recipe, Student, Teacher

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.prefix) / "bin"

# The library, from the top down. A module imports from lines below its own, and inside its own room; never sideways.
FLOORS = (
    ("pipeline.training",),
    ("pipeline.engines",),
    ("pipeline.measuring",),
    ("pipeline.forms",),
    ("pipeline.artifacts", "pipeline.models"),
    ("pipeline.settings", "pipeline.data", "pipeline.relations", "pipeline.vectors"),
    ("pipeline.fused",),
    ("pipeline.paper", "pipeline.pairs", "pipeline.bounds", "pipeline.processes"),
)
VERBS = (
    *("distill", "export", "show", "speed", "assets", "multilingual", "recipe"),
    *("launch", "plan", "doctor", "trim_vocab", "evaluate", "report", "bench"),
)
# Verbs that import another, and why.
BETWEEN_VERBS = {
    ("distill", "export"): "a stage's student is the next stage's teacher",
    ("bench", "launch"): "the ranks of its large teacher start as those of a run",
    ("bench", "evaluate"): "it measures evaluate's fine-tuning next to a plain Trainer",
    ("bench", "plan"): "it predicts the fused loss's time on the GPUs that a plan knows",
    ("speed", "evaluate"): "it reads the same task files and describes models in the same words",
    ("doctor", "launch"): "it enters hosts as a launch does",
    ("evaluate", "assets"): "Lee's documents come from the package index, as the demo's parts",
    ("recipe", "plan"): "a recipe's time and memory on this machine, and what a new one's numbers follow from",
    ("multilingual", "assets"): "both demos' parts come from the package index",
}


@functools.cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted((*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("data_prep/**/*.py"))):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports() -> list[tuple[str, str]]:
    """(importer, imported) of all modules of this project, imports inside functions too."""
    known, found = modules(), set()
    for name, tree in known.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found |= {(name, alias.name) for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom) and node.module in known:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found.add((name, inner if inner in known else node.module))
    return sorted(found)


def verb(module: str) -> str | None:
    _, _, rest = module.partition("pipeline.")
    name = rest.partition(".")[0]
    return name if name in VERBS else None


def floor(module: str) -> tuple[int, str] | None:
    """Number from the top, and the room, of a library module."""
    for number, rooms in enumerate(FLOORS):
        for room in rooms:
            if module == room or module.startswith(f"{room}."):
                return number, room
    return None


def complaint(importer: str, imported: str) -> str:
    if importer.startswith("data_prep"):
        return "data_prep imports pipeline" if imported.startswith("pipeline") else ""
    if imported.startswith("data_prep") or importer == "pipeline.__main__":
        return ""
    own, other = verb(importer), verb(imported)
    if other:
        if own is None:
            return f"the library imports the verb {other}"
        return "" if own == other or (own, other) in BETWEEN_VERBS else f"the verb {own} imports the verb {other}"
    if own:
        return ""
    above, below = floor(importer), floor(imported)
    if above is None or below is None:
        return "" if importer == imported else f"{importer if above is None else imported} has no floor"
    if above[1] == below[1] or above[0] < below[0]:
        return ""
    return f"{above[1]} imports {below[1]}, which is not below it"


def test_imports_go_down_and_nobody_imports_a_verb():
    assert [f"{a} -> {b}: {why}" for a, b in imports() if (why := complaint(a, b))] == []


def test_every_exception_between_verbs_is_used():
    assert {(verb(a), verb(b)) for a, b in imports() if verb(a) and verb(b)} >= BETWEEN_VERBS.keys()


def test_no_circle_of_imports():
    below: dict[str, set[str]] = {}
    for importer, imported in imports():
        if importer != imported:
            below.setdefault(importer, set()).add(imported)
    finished: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in finished:
            for other in sorted(below.get(module, ())):
                visit(other, (*above, module))
            finished.add(module)

    for module in modules():
        visit(module, ())


# Imports inside functions: of heavy libraries, or of modules that load them, where that saves seconds. None hides a circle.
LATE = {
    "data_prep.bench": "transformers is only for the comparison with its tokenizer",
    "data_prep.inputs": "huggingface_hub is only for files of the hub",
    "data_prep.formats.by_name": "pyarrow is only for parquet",
    "pipeline.relations": "Triton is optional, and not in torch's builds for CPUs",
    "pipeline.fused.choice": "Triton is optional, and not in torch's builds for CPUs",
    "pipeline.doctor.__main__": "the doctor works where torch is broken",
    "pipeline.doctor.asking": "the doctor works where torch is broken",
    "pipeline.doctor.probe": "the doctor works where torch is broken",
    "pipeline.launch.__main__": "--help and a mistyped option load no torch",
    "pipeline.recipe.__main__": "--help and a mistyped option load no torch",
    "pipeline.plan.__main__": "--help and a mistyped option load no torch",
    "pipeline.evaluate.__main__": "--help and a mistyped option load no torch",
    "pipeline.evaluate.embedding": "mteb is an extra",
    "pipeline.forms.running": "ONNX Runtime and OpenVINO are an extra",
    "pipeline.forms.by_openvino": "NNCF is only for int8",
    "pipeline.bench.__main__": "--help and a mistyped option load no torch",
    "pipeline.report.__main__": "a report of results loads no torch",
    "pipeline.report.sections": "matplotlib is only for a report with charts",
    "pipeline.report.quality": "matplotlib is only for a report with charts",
    "pipeline.report.distilled": "matplotlib is only for a report with charts",
    "pipeline.training.maps": "matplotlib is only for the picture of a finished run",
    "pipeline.engines.ds_config": "a ds_config is checked without loading DeepSpeed",
}


def test_imports_inside_functions_have_a_reason():
    found = set()
    for name, tree in modules().items():
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                inner = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
                found |= {name for _ in inner}
    assert found == LATE.keys()


def test_nobody_takes_a_private_name_of_another_file():
    found = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("pipeline", "data_prep"):
                private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                found += [f"{name} takes {node.module}.{each}" for each in private]
    assert found == []


# Longer than the limits, and why.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
# A new key or option is a decision: raise the number in the same change, and say why there.
RECIPE_KEYS, OPTIONS = 45, 185


def test_files_have_at_most_400_lines_and_functions_60():
    long_files, long_functions = set(), set()
    for path in sorted((*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("data_prep/**/*.py"))):
        name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            long_files.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60:
                long_functions.add(f"{name}:{node.name}")
    assert long_files == LONG_FILES.keys() and long_functions == LONG_FUNCTIONS.keys()


def test_the_top_of_pipeline_has_few_files():
    assert len(list((ROOT / "pipeline").glob("*.py"))) <= 16


def test_the_loop_reads_like_the_paper():
    (train,) = (node for node in modules()["pipeline.training.loop"].body if isinstance(node, ast.FunctionDef))
    assert train.name == "train" and train.end_lineno - train.lineno < 45 and len(train.args.args) <= 2
    assert "first" not in {node.attr for node in ast.walk(train) if isinstance(node, ast.Attribute)}  # "am I rank 0?"


def test_recipe_keys_and_options_are_counted():
    keys = [spec.name for kind in (Recipe, Teacher, Student) for spec in dataclasses.fields(kind)]
    assert len([key for key in keys if key not in (*PLACE, "teacher", "student")]) == RECIPE_KEYS
    parsers = [importlib.import_module(module).parser() for module, _ in DOORS.values()]
    found = 0
    while parsers:
        for action in parsers.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            elif action.option_strings and action.dest != "help":
                found += 1
    assert found == OPTIONS


def test_a_recipe_is_read_without_torch():
    code = "import sys; from pipeline.settings.reading import load_stages as read; read('demo')"
    code += "; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_ruff_is_content():
    for check in (["check"], ["format", "--check"]):
        result = subprocess.run([BIN / "ruff", *check, ROOT], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


def test_mypy_is_content():
    result = subprocess.run([BIN / "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_deepspeed_is_imported_by_the_engines_alone():
    """Before it, pipeline.engines settles what must be settled: DS_ACCELERATOR, and what DeepSpeed need not import."""
    found = set()
    for name, tree in modules().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(each.split(".")[0] == "deepspeed" for each in names) and not name.startswith("pipeline.engines"):
                found.add(name)
    assert found == set()
