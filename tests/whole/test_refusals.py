"""What is refused before a run starts, in one line that names the reason."""

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from data_prep.cli import UserError
from data_prep.shards import open_corpus, vocabulary_hash, write_manifest
from pipeline.data.fits import check_bytes
from pipeline.data.reading import training_windows
from pipeline.distill import distill
from pipeline.engines import memory as memory_of_ranks
from pipeline.engines import ranks as ranks_module
from pipeline.engines.hosting import Hosting
from pipeline.engines.memory import check_memory
from pipeline.engines.ranks import Ranks
from pipeline.models.fit import student_config_of
from pipeline.models.loading import load_config
from pipeline.models.students import build_student
from pipeline.processes import free_port
from pipeline.settings.reading import load_recipes
from pipeline.training.guards import sole_writer
from tests.parts.runs import engine_options, make_recipe_of_several
from tests.parts.tiny import make_corpus, make_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_recipe_of_several(tmp_path_factory.mktemp("refusals")).parent


# --- memory, ranks ----------------------------------------------------------------------------------------------------


def test_more_students_than_memory_are_refused_with_their_sizes(folder, monkeypatch):
    recipes = load_recipes(folder / "several.toml")
    models = [build_student(student_config_of(r, load_config(r.teacher.model)), 1) for r in recipes]
    alone, hosting = Ranks(0, 1, 1, torch.device("cpu")), Hosting("replicate", "", 1000, 1000)
    check_memory(recipes, alone, hosting, models)
    need = 1000 * 4 + 16 * sum(p.numel() for model in models for p in model.parameters())
    monkeypatch.setattr(memory_of_ranks, "memory_per_rank", lambda ranks: need)
    check_memory(recipes, alone, hosting, models)
    monkeypatch.setattr(memory_of_ranks, "memory_per_rank", lambda ranks: need - 1)
    with pytest.raises(
        UserError, match=r"\(teacher 0.00 GiB, deep .*, wide .*, plain .*\); train fewer students at once"
    ):
        check_memory(recipes, alone, hosting, models)


@pytest.mark.parametrize(("stage", "number"), [(0, 16), (1, 18), (2, 16), (3, 16)])
def test_the_gradients_that_deepspeed_keeps_in_fp32_count(folder, monkeypatch, stage, number):
    """Bytes of a parameter in bf16 on one rank: weight 2, gradient 2 (4 at stage 1), fp32 weight 4, moments 8."""
    (recipe,) = load_recipes(folder / "tiny.toml", engine_options("replicate", stage, "bf16"))
    model = build_student(student_config_of(recipe, load_config(recipe.teacher.model)), 1)
    alone, hosting = Ranks(0, 1, 1, torch.device("cpu")), Hosting("replicate", "", 1000, 1000)
    need = 1000 * 2 + number * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(memory_of_ranks, "memory_per_rank", lambda ranks: need)
    check_memory([recipe], alone, hosting, [model])
    monkeypatch.setattr(memory_of_ranks, "memory_per_rank", lambda ranks: need - 1)
    with pytest.raises(UserError, match="train fewer students at once"):
        check_memory([recipe], alone, hosting, [model])


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_that_never_come_are_reported(monkeypatch, rank):
    port = free_port()
    for key, value in {"RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(ranks_module, "MEETING", timedelta(seconds=1))
    with pytest.raises(
        UserError, match=rf"127\.0\.0\.1:{port}: the 2 processes of this run have not met there within 1 s"
    ):
        ranks_module._meet(2)


# --- data and folders -------------------------------------------------------------------------------------------------


def refusal(recipe_file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        distill(load_recipes(recipe_file, overrides))
    return str(error.value)


def damaged_corpus(tmp_path: Path, folder: Path) -> tuple[Path, str]:
    shutil.copytree(folder / "data", tmp_path / "data")
    return tmp_path / "data", f"data={tmp_path / 'data'}"


def test_missing_and_unfinished_data_are_named(folder, tmp_path):
    assert "no such folder" in refusal(folder / "tiny.toml", f"data={tmp_path / 'none'}")
    assert "no manifest.json" in refusal(folder / "tiny.toml", f"data={tmp_path}")


def test_a_missing_or_truncated_shard_is_named(folder, tmp_path):
    data, override = damaged_corpus(tmp_path, folder)
    shard = data / "a" / "00000-00001.tokens.npy"
    content = shard.read_bytes()
    shard.write_bytes(content[:-10])
    assert f"{shard}: has {len(content) - 10} bytes" in refusal(folder / "tiny.toml", override)
    shard.unlink()
    assert f"{shard}: is missing" in refusal(folder / "tiny.toml", override)


def test_an_edited_manifest_is_named(folder, tmp_path):
    data, override = damaged_corpus(tmp_path, folder)
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"documents":', '"documents": ', 1).replace("6000", "5999"))
    assert "it was edited" in refusal(folder / "tiny.toml", override)


def test_an_altered_shard_is_named(folder, tmp_path):
    data, _ = damaged_corpus(tmp_path, folder)
    shard = data / "a" / "00000-00001.docs.npy"
    content = bytearray(shard.read_bytes())
    content[-8] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard}: sha256 is not the manifest's"):
        check_bytes(open_corpus(data))


def test_an_altered_shard_with_ids_outside_the_vocabulary_is_named(folder, tmp_path):
    data, _ = damaged_corpus(tmp_path, folder)
    shard = data / "a" / "00000-00000.tokens.npy"
    tokens = np.lib.format.open_memmap(shard, mode="r+")
    tokens[5] = 60_000
    tokens.flush()
    windows = training_windows(open_corpus(data), 16)
    with pytest.raises(UserError, match=r"00000-00000.tokens.npy: token id 60000 .* outside the vocabulary of 50"):
        windows.read(np.array([0]), np.array([0]))


def test_a_corpus_of_another_tokenizer_is_named(folder, tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    words = (teacher / "vocab.txt").read_text().split()
    (teacher / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]) + "\n")
    BertTokenizerFast(vocab=str(teacher / "vocab.txt")).save_pretrained(teacher)
    message = refusal(folder / "tiny.toml", f"teacher.model={teacher}")
    assert f"made with another vocabulary (50 ids) than that of {teacher} (50)" in message
    assert f"prepare the data with --tokenizer {teacher}" in message


def test_a_corpus_that_another_tokenizer_cut_with_the_same_vocabulary_is_named(folder, tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    words = (teacher / "vocab.txt").read_text().split()
    words = [word.upper() if word == "w44" else word for word in words]  # of the probe, and the tokenizer lowers
    (teacher / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(teacher / "vocab.txt")).save_pretrained(teacher)
    data = shutil.copytree(folder / "data", tmp_path / "data")
    content = json.loads((data / "manifest.json").read_text())
    content["tokenizer"]["vocabulary"] = vocabulary_hash({word: number for number, word in enumerate(words)})
    write_manifest(data, content)
    message = refusal(folder / "tiny.toml", f"teacher.model={teacher}", f"data={data}")
    assert f"made with another tokenizer than that of {teacher}: a probe text comes out as" in message


def test_a_corpus_of_another_vocabulary_is_named_even_if_the_probe_agrees(folder, tmp_path):
    teacher = make_teacher(tmp_path / "teacher")
    words = (teacher / "vocab.txt").read_text().split()
    words[20], words[21] = words[21], words[20]
    (teacher / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(teacher / "vocab.txt")).save_pretrained(teacher)
    assert "made with another vocabulary (50 ids)" in refusal(folder / "tiny.toml", f"teacher.model={teacher}")


def test_a_run_never_mixes_into_a_folder_of_something_else(folder, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "n0.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes: holds n0\.txt and no recipe.json; name a new or an empty folder"):
        distill(load_recipes(folder / "tiny.toml", [f"out={tmp_path / 'notes'}"]), launch="mine")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["n0.txt"]


def test_a_corpus_too_short_for_one_window_is_named(folder, tmp_path):
    data = make_corpus(tmp_path / "short", {"a": 20})
    assert "no shard holds the 29 tokens of one window" in refusal(folder / "tiny.toml", f"data={data}", "length=32")


def test_a_second_run_on_the_same_folder_is_refused_naming_the_first(tmp_path):
    alone = Ranks(0, 1, 1, torch.device("cpu"))
    with (
        sole_writer([tmp_path / "run"], alone),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} on .*; wait until it has ended"),
        sole_writer([tmp_path / "run"], alone, patience=0.2),
    ):
        pass
    with sole_writer([tmp_path / "run"], alone, patience=0.2):
        pass
