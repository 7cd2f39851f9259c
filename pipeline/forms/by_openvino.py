"""OpenVINO, and int8 by NNCF. Imported only where a form is made or run: the libraries are an extra.

Nothing is sent to their makers: models are read by OpenVINO's core, not by its converter, which would, and NNCF is told so.
"""

import contextlib
import io
import logging
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import openvino

VERSIONS = {"openvino": openvino.__version__.partition("-")[0]}


def write(onnx: Path, file: Path) -> None:
    """Write the form of an ONNX file, in fp32."""
    openvino.save_model(openvino.Core().read_model(onnx), file, compress_to_fp16=False)


def quantize(file: Path, quantized: Path) -> None:
    """Write a form with weights of 8 bits, each row with a scale and a zero point.

    OpenVINO rounds activations as they come where the CPU has instructions for it. Scales of activations that are settled
    beforehand (nncf.quantize) are no alternative: an encoder's outliers made vectors of a cosine of 0.7 of them.
    """
    nncf = nncf_here()
    with contextlib.redirect_stdout(io.StringIO()):  # a progress bar
        model = nncf.compress_weights(openvino.Core().read_model(file), mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, quantized, compress_to_fp16=False)


def nncf_here() -> ModuleType:
    """The library for int8. Raises ModuleNotFoundError if it is not installed."""
    os.environ.setdefault("NNCF_CI", "1")  # its word for: send no statistics
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


class Session:
    """A form in OpenVINO, in fp32 wherever the form is: on a CPU with bf16 units its own default is bf16."""

    def __init__(self, file: Path, threads: int) -> None:
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._model = openvino.Core().compile_model(file, "CPU", settings)
        self.inputs = [each.any_name for each in self._model.inputs]
        self.outputs = [each.any_name for each in self._model.outputs]

    def __call__(self, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
        """The output of this name."""
        return self._model(inputs)[output]
