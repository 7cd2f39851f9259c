"""Model folders that are none: what is said instead, and the way out; and a quiet loading."""

import logging
import shlex
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.utils import logging as transformers_logging

from data_prep.cli import UserError
from pipeline.models.folders import check_folder
from pipeline.models.loading import load_model
from tests.parts.tiny import make_teacher


def refused(folder) -> str:
    with pytest.raises(UserError) as error:
        check_folder(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_is_to_be_exported_first(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    run = tmp_path / "run"
    assert f"export its student first: python -m pipeline.export {run} {run}-student" in refused(run)
    assert f"it holds the runs run, export a student first: python -m pipeline.export {run}" in refused(tmp_path)


def test_a_folder_beside_a_models_is_told_where_that_is(tmp_path):
    make_teacher(tmp_path / "mine-student")
    (tmp_path / "mine").mkdir()
    assert refused(tmp_path / "mine").endswith(f"did you mean {tmp_path / 'mine-student'}?")
    (tmp_path / "other").mkdir()
    assert refused(tmp_path / "other").endswith("no config.json; not a Hugging Face model folder")


def test_pickled_weights_come_with_a_command_that_converts_them(tmp_path):
    folder = make_teacher(tmp_path / "it's a teacher")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:]), 1):
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    message = refused(folder)
    assert "pytorch_model-00001-of-00002.bin, a pickle" in message
    command = shlex.split(message.partition("runs no code of the file: ")[2])
    assert "weights_only=True" in message and subprocess.run(command).returncode == 0
    check_folder(str(folder))
    assert {name: tensor.tolist() for name, tensor in load_file(folder / "model.safetensors").items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }


def test_what_a_file_has_beside_the_encoder_is_not_reported(tmp_path, caplog):
    folder = make_teacher(tmp_path / "teacher")
    config = AutoConfig.from_pretrained(folder)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            load_model(str(folder), "main", torch.float32)
    finally:
        transformers_logging.disable_propagation()
    assert caplog.text == "" and transformers_logging.get_verbosity() == logging.WARNING
