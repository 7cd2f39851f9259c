"""ONNX by torch's own exporter and ONNX Runtime. Imported only where a form is made or run: the libraries are an extra."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn
from transformers import PreTrainedModel

VERSIONS = {module.__name__: module.__version__ for module in (torch, onnx, onnxscript, onnxruntime)}


class _Encoder(nn.Module):
    """A model as a function of tensors in the order of ``names``, returning its last layer's output."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).last_hidden_state


def write(model: PreTrainedModel, inputs: dict[str, Tensor], output: str, file: Path) -> None:
    """Write the graph of a model in eval mode to ``file``, for any batch and length. ``inputs``: an example of two texts.

    The exporter by TorchScript, which needs no onnxscript, returns something else: it makes a constant of what is no constant.
    """
    names = list(inputs)
    # Dimensions whose limits torch finds by itself: a window of attention, for one, tells short inputs from long ones.
    free = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in names)
    axes = ["batch", "sequence"]
    with _quiet():
        program = torch.onnx.export(
            _Encoder(model, names),
            tuple(inputs.values()),
            input_names=names,
            output_names=[output],
            dynamic_shapes={"inputs": free},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for value in program.model.graph.inputs:
            value.shape = type(value.shape)(axes)
        program.save(file, external_data=_bytes_of(model) > 2**31 - 2**24)  # protobuf's limit


def _bytes_of(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def quantize(file: Path, quantized: Path) -> None:
    """Write a form with weights of 8 bits; activations are rounded to 8 bits as they come.

    Unsigned weights, a scale for each column: right on every CPU, where signed ones overflow if it has no VNNI.
    """
    with _quiet():
        quantize_dynamic(file, quantized, per_channel=True, weight_type=QuantType.QUInt8)


class Session:
    """A form in ONNX Runtime."""

    def __init__(self, file: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Threads that spin after a run would slow what runs next, which is what it is compared with.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self._session.get_inputs()]
        self.outputs = [each.name for each in self._session.get_outputs()]

    def __call__(self, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
        """The output of this name."""
        return self._session.run([output], inputs)[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporter and quantizer say about their inner workings."""
    names = ("", "torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
