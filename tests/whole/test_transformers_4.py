"""Exported and trimmed folders in transformers 4.57, installed from the package index into .cache/, and in our own 5."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pipeline.export import export, export_untrained
from pipeline.models.portable import TESTED
from pipeline.settings.reading import load_recipe
from pipeline.trim_vocab.__main__ import trim
from tests.parts import trimming
from tests.parts.tiny import RECIPE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    f"transformers=={TESTED}", "tokenizers==0.22.2", "huggingface-hub==0.36.2", "requests<3",
    *("urllib3<3", "charset-normalizer<4", "certifi", "idna"),
)  # fmt: skip
KINDS = ("bert", "electra", "distilbert", "roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "modernbert")
OWN = {  # teachers with files as people have them: their kind, what is removed, and changes of tokenizer_config.json
    "pieces-only": ("bert", {}),
    "special-in-vocabulary": ("bert", {"additional_special_tokens": ["[unused1]"]}),
    "written-by-5": ("bert", {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["[unused1]"]}),
    "generic-class": ("modernbert", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "no-settings": ("xlm-roberta", {}),
    "another-normalizer": ("roberta", {}),
}
TRIMMED = ("bert", "xlm-roberta", "modernbert", "written-by-5")
NAMES = (*KINDS, *OWN, "old-run", "bert-of-xlm-roberta", *(f"trimmed-{name}" for name in TRIMMED))


@pytest.fixture(scope="module")
def transformers_4():
    """The folder of transformers 4.57 and what it needs; torch is ours."""
    folder = ROOT / ".cache" / f"transformers-{TESTED}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                f"{aside}/new",
                *PACKAGES,
            ]
            variables = {"PIP_DEFAULT_TIMEOUT": "30", "PIP_RETRIES": "2"} | os.environ
            result = subprocess.run(command, capture_output=True, text=True, env=variables)
            if result.returncode and ("Retrying (" in result.stderr or "(from versions: none)" in result.stderr):
                pytest.skip(f"transformers {TESTED} cannot be fetched: the package index does not answer")
            assert result.returncode == 0, result.stderr
            Path(aside, "new").rename(folder)
    return folder


def own_teacher(name: str, folder: Path) -> Path:
    """A teacher of OWN."""
    kind, changes = OWN[name]
    trimming.make_model(kind, folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    if name == "pieces-only":
        (folder / "vocab.txt").unlink()
        trimming.make_model("xlm-roberta", folder.with_name("pieces"))
        shutil.copy(folder.with_name("pieces") / "sentencepiece.bpe.model", folder)
        settings.write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 1}))
    if name in ("pieces-only", "special-in-vocabulary"):
        (folder / "tokenizer.json").unlink()
    if name == "no-settings":
        settings.unlink()
    if name == "another-normalizer":  # which transformers 5 ignores in a RobertaTokenizer, and 4.57 does not
        spec = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(spec | {"normalizer": {"type": "Lowercase"}}))
    return folder


def student(teacher: Path, out: Path, *changes: str) -> Path:
    """The untrained student of two layers, exported; it learns from the first layer, which is global everywhere."""
    recipe = out.with_suffix(".toml")
    recipe.write_text(RECIPE.format(data="nowhere", out=out / "run", teacher=teacher))
    export_untrained(load_recipe(recipe, ["teacher.layer=1", *changes]), out)
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """NAMES below one folder, and the teachers of those that have one below another."""
    teachers, out = tmp_path_factory.mktemp("teachers"), tmp_path_factory.mktemp("students")
    for name in KINDS:
        student(trimming.make_model(name, teachers / name), out / name)
    for name in OWN:
        student(own_teacher(name, teachers / name), out / name)
    student(teachers / "no-settings", out / "bert-of-xlm-roberta", "student.model_type=bert")
    for name in TRIMMED:
        data = trimming.make_corpus(teachers / f"{name}-data", teachers / name)
        trim(teachers / name, data, out / f"trimmed-{name}", ["de"], 0.9)
    shutil.copytree(ROOT / "tests" / "old" / "run", teachers / "old-run")
    export(teachers / "old-run", out / "old-run")
    modern = teachers / "hub-modernbert"  # as 4.57 wrote it, four layers of which the first and the last are global
    trimming.make_model("modernbert", modern, layers=4)
    config = json.loads((modern / "config.json").read_text())
    for gone in ("layer_types", "rope_parameters", "dtype"):
        config.pop(gone, None)
    older = {
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 1000.0,
        "local_rope_theta": 50.0,
        "local_attention": 8,
    }
    (modern / "config.json").write_text(json.dumps(config | older | {"torch_dtype": "float32"}))
    student(modern, out / "global-every-third", "teacher.layer=4", "student.layers=4")
    student(modern, out / "global-last", "teacher.layer=4")
    student(trimming.make_model("eurobert", teachers / "eurobert"), out / "eurobert")
    return teachers, out


@pytest.fixture(scope="module")
def loaded(folders, transformers_4, tmp_path_factory):
    """What 4.57 gives of each folder, and what 5 gives."""
    found = []
    for name, path in (("4", str(transformers_4)), ("5", "")):
        out = tmp_path_factory.mktemp("loaded") / f"{name}.json"
        variables = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "tests" / "parts" / "loaded.py"), str(out)]
        subprocess.run([*command, *map(str, sorted(folders[1].glob("*/")))], env=variables, check=True)
        found.append(json.loads(out.read_text()))
    assert found[0]["version"] == TESTED and found[1]["version"].startswith("5.")
    return [each["folders"] for each in found]


@pytest.mark.parametrize("name", [*NAMES, "global-every-third"])
def test_a_folder_gives_the_same_in_transformers_4_and_5(loaded, name):
    old, new = (dict(version[name]) for version in loaded)
    assert "error" not in new and "error" not in old, (old.get("error"), new.get("error"))
    assert old.pop("hidden") == pytest.approx(new.pop("hidden"), abs=1e-4)
    assert old == new


@pytest.mark.parametrize("name", [*KINDS, *OWN])
def test_the_students_tokenizer_gives_its_teachers_ids(folders, loaded, name):
    from tests.parts.loaded import TEXTS

    teacher = AutoTokenizer.from_pretrained(folders[0] / name)
    assert [teacher(text)["input_ids"] for text in TEXTS] == loaded[0][name]["alone"]


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_gives_what_the_model_takes(folders, loaded, name):
    config = json.loads((folders[1] / name / "config.json").read_text())
    read = name != "old-run"  # which was trained on single texts, and whose second segment so was not
    types = ["token_type_ids"] if config.get("type_vocab_size", 1) > 1 and read else []
    assert loaded[0][name]["inputs"] == ["attention_mask", "input_ids", *types]
    first = (
        config["pad_token_id"] + 1
        if config["model_type"] in ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl")
        else 0
    )
    assert loaded[0][name]["longest"] == config["max_position_embeddings"] - first


def test_what_4_57_cannot_compute_it_rejects_and_the_card_says_so(folders, loaded):
    old, new = loaded
    for name, said in (("eurobert", "4.57 has no EuroBERT"), ("global-last", "4.57 rejects it")):
        assert "error" in old[name] and "error" not in new[name]
        assert said in (folders[1] / name / "README.md").read_text()
    assert f"transformers 4.57 (tested with {TESTED})" in (folders[1] / "bert" / "README.md").read_text()
