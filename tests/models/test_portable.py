"""A student's tokenizer files: its teacher's own bytes where they fit, and only those settings changed that do not."""

import json
import shutil
import subprocess
import sys

import pytest
from transformers import AutoConfig, AutoTokenizer

from data_prep.cli import UserError
from pipeline.models import portable
from pipeline.models.loading import load_folder_tokenizer
from pipeline.models.portable import SETTINGS, older_keys, portable_settings, write_tokenizer
from tests.parts.hub import hub
from tests.parts.launching import ROOT
from tests.parts.trimming import make_model

GOOD = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64, "name_or_path": "org/name"}


@pytest.fixture
def teacher(tmp_path):
    """A BERT of 80 positions, with settings in a form that nobody here would write."""
    folder = make_model("bert", tmp_path / "teacher")
    (folder / SETTINGS).write_text(json.dumps(GOOD, indent=7) + "\n\n")
    (folder / "special_tokens_map.json").write_text('{"unk_token":   "[UNK]"}')
    return folder


def written(teacher, out, config=None, tokenizer=None):
    """``out``, which has the files of the teacher's tokenizer for a model of ``config``; default: for the teacher itself."""
    config = config or AutoConfig.from_pretrained(teacher)
    out.mkdir()
    config.save_pretrained(out)
    write_tokenizer(tokenizer or load_folder_tokenizer(teacher), (str(teacher), "main"), config, out)
    return out


def test_files_that_fit_are_copied_byte_for_byte(teacher, tmp_path):
    out = written(teacher, tmp_path / "out")
    names = ("tokenizer.json", SETTINGS, "special_tokens_map.json", "vocab.txt")
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "config.json"])
    for name in names:
        assert (out / name).read_bytes() == (teacher / name).read_bytes(), name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_max_length": 10**30}, {"model_max_length": 80}),
        (
            {"tokenizer_class": "TokenizersBackend"},
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": 3},
        ),
        ({"extra_special_tokens": ["[MASK]"]}, {"additional_special_tokens": ["[MASK]"], "extra_special_tokens": None}),
        ({"auto_map": {"AutoTokenizer": ["evil.T", None]}}, {"auto_map": None}),
        ({"name_or_path": "/home/me/model", "is_local": True}, {"name_or_path": None, "is_local": None}),
        ({"model_input_names": ["input_ids", "attention_mask"]}, {"model_input_names": 3}),
    ],
)
def test_only_settings_that_do_not_fit_are_changed(teacher, tmp_path, changes, expected):
    own = GOOD | changes
    (teacher / SETTINGS).write_text(json.dumps(own))
    out = written(teacher, tmp_path / "out")
    all_three = ["input_ids", "token_type_ids", "attention_mask"]
    wanted = own | {key: all_three if value == 3 else value for key, value in expected.items()}
    assert json.loads((out / SETTINGS).read_text()) == {k: v for k, v in wanted.items() if v is not None}
    assert (out / "tokenizer.json").read_bytes() == (teacher / "tokenizer.json").read_bytes()


def test_settings_follow_the_model_not_the_teacher(tmp_path):
    """BERT's architecture with XLM-R's tokenizer, and a RoBERTa whose positions start behind its padding."""
    teacher = make_model("xlm-roberta", tmp_path / "teacher")
    (teacher / SETTINGS).unlink()
    tokenizer = load_folder_tokenizer(teacher)
    bert = AutoConfig.for_model("bert", max_position_embeddings=512, pad_token_id=1)
    settings = portable_settings({}, tokenizer, bert)
    assert settings["tokenizer_class"] == "XLMRobertaTokenizer" and settings["model_max_length"] == 512
    assert settings["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
    roberta = AutoConfig.for_model("xlm-roberta", max_position_embeddings=514, pad_token_id=1, type_vocab_size=1)
    settings = portable_settings({}, tokenizer, roberta)
    assert settings["model_max_length"] == 512 and "model_input_names" not in settings


@pytest.mark.slow
def test_files_of_the_hub_are_copied_too(teacher, tmp_path):
    files = {path.name: path.read_bytes() for path in teacher.iterdir() if path.suffix != ".safetensors"}
    code = f"""
from pathlib import Path
from transformers import AutoConfig
from pipeline.models.loading import load_folder_tokenizer
from pipeline.models.portable import write_tokenizer
config, out = AutoConfig.from_pretrained("org/name"), Path({str(tmp_path)!r}) / "out"
config.save_pretrained(out)
write_tokenizer(load_folder_tokenizer("org/name"), ("org/name", "main"), config, out)
"""
    with hub(files | {"evil.py": b"boom"}, tmp_path / "home") as (environment, log):
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    for name in ("tokenizer.json", SETTINGS, "special_tokens_map.json", "vocab.txt"):
        assert (tmp_path / "out" / name).read_bytes() == files[name], name
    assert not any("evil" in line for line in log) and not (tmp_path / "out" / "evil.py").exists()


@pytest.mark.parametrize("change", ["gone", "replaced"])
def test_what_was_loaded_is_written_whatever_became_of_its_folder(teacher, tmp_path, change):
    tokenizer, config = load_folder_tokenizer(teacher), AutoConfig.from_pretrained(teacher)
    text = "Der unlich keitge schau!"
    before = tokenizer(text)["input_ids"]
    shutil.rmtree(teacher)
    if change == "replaced":
        make_model("electra", teacher)
        lines = (teacher / "vocab.txt").read_text().splitlines()
        (teacher / "vocab.txt").write_text("\n".join([*lines[:20], *reversed(lines[20:])]) + "\n")
        (teacher / "tokenizer.json").unlink()
    out = written(teacher, tmp_path / "out", config, tokenizer)
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == before
    assert json.loads((out / SETTINGS).read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_that_cannot_be_written_alike_is_rejected(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "_reads_alike", lambda *arguments: False)
    with pytest.raises(UserError, match=r"teacher: its BertTokenizer gives other ids when it is saved"):
        written(teacher, tmp_path / "out")


@pytest.mark.parametrize(
    ("kinds", "every"),
    [("GGGG", 1), ("GLLG", 3), ("GLGL", 2), ("GLLL", 4), ("LG", 0), ("GGLG", 0), ("GLLLG", 4), ("GLLGG", 0)],
)
def test_modernberts_global_layers_in_the_words_of_transformers_4(kinds, every):
    named = {"G": "full_attention", "L": "sliding_attention"}
    config = AutoConfig.for_model(
        "modernbert", num_hidden_layers=len(kinds), layer_types=[named[kind] for kind in kinds], local_rope_theta=7.0
    )
    keys = {"global_attn_every_n_layers": every, "global_rope_theta": 160000.0, "local_rope_theta": 7.0}
    assert older_keys(config) == keys
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1.0}
    config.rope_parameters["full_attention"] = stretched  # which transformers 4 does not know for this family
    assert older_keys(config)["global_attn_every_n_layers"] == 0
