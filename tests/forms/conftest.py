"""A small model folder with its forms, made once."""

import pytest

from tests.parts.tiny import make_teacher

TEXTS = ["w1 w7 w44", "w3", " ".join(f"w{number % 45}" for number in range(90)), "w5 w6 w9 w8 w7", "w1 w2"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A BERT of two layers: its tokenizer gives token types, and its folder says nothing of a longest text."""
    return make_teacher(tmp_path_factory.mktemp("forms") / "small", layers=2, hidden=16)


@pytest.fixture(scope="session")
def with_forms(model):
    """(the folder with all four forms, what was reported of each); skipped where the extra is not installed."""
    for package in ("onnxruntime", "onnxscript", "openvino", "nncf"):
        pytest.importorskip(package)
    from pipeline.forms.making import Wanted, make_forms

    return model, make_forms(model, Wanted(("onnx", "openvino"), int8=True), TEXTS)
