"""A form as a function from tensors to the last layer's output, called as the PyTorch model is."""

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from data_prep.cli import UserError
from pipeline.forms.files import ONNX, folder_of, kind_of
from pipeline.models.loading import load_folder_config

OUTPUTS = ("last_hidden_state", "token_embeddings")  # the second is sentence-transformers' name
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def library(kind: str, int8: bool = False) -> ModuleType:
    """What makes and runs forms of a kind. Raises UserError if the libraries are not installed."""
    try:
        if kind == ONNX:
            from pipeline.forms import by_onnx

            return by_onnx
        from pipeline.forms import by_openvino

        if int8:
            by_openvino.nncf_here()
        return by_openvino
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not there: ONNX and OpenVINO need the extra: pip install --editable '.[forms]'"
        ) from None


class Output(NamedTuple):
    """[B, T, d]"""

    last_hidden_state: Tensor


class FormEncoder:
    """A form, called as a model of transformers: ``encoder(input_ids=…, attention_mask=…).last_hidden_state``, on the CPU."""

    def __init__(self, file: Path) -> None:
        runtime = library(kind_of(file))
        try:
            self._session = runtime.Session(file, torch.get_num_threads())
        except Exception as error:  # each runtime has its own
            raise UserError(f"{file}: cannot be loaded ({_cause(error)}); export it again") from None
        unknown = [name for name in self._session.inputs if name not in INPUTS]
        outputs = [name for name in OUTPUTS if name in self._session.outputs]
        if unknown or not outputs:
            wrong = f"the input {unknown[0]}" if unknown else f"no output {OUTPUTS[0]}"
            raise UserError(f"{file}: has {wrong}; only encoders of {', '.join(INPUTS)} are read here")
        self._file, self._output = file, outputs[0]
        self.config = load_folder_config(folder_of(file))

    def __call__(self, **inputs: Tensor) -> Output:
        """Inputs [B, T]; token types that are not given are 0. Raises UserError if the runtime cannot compute it."""
        empty = torch.zeros_like(inputs["input_ids"])
        given = {name: inputs.get(name, empty).numpy() for name in self._session.inputs}
        try:
            hidden = self._session(given, self._output)
        except Exception as error:
            raise UserError(f"{self._file}: cannot be run ({_cause(error)})") from None
        return Output(torch.from_numpy(hidden))


def _cause(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
