"""Other forms of a folder's model, each compared with the folder's own output before it is called done."""

import inspect
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.cli import UserError
from pipeline.forms.files import FILES, ONNX, RUNTIMES, size_of
from pipeline.forms.running import INPUTS, OUTPUTS, FormEncoder, library
from pipeline.models.families import longest_input
from pipeline.models.loading import load_folder_tokenizer, load_model

# The largest difference that fp32 may have, as a part of the largest output. Measured: 3e-6 at most; sums in another order.
TOLERANCE = 1e-4
# The smallest cosine that the mean vector of a text may have with the folder's own in int8. Measured: 0.98 to 0.999.
COSINE = 0.95
_BATCH = 4


@dataclass(frozen=True)
class Wanted:
    """The kinds of forms that a folder is to have, and whether each in int8 too."""

    kinds: Sequence[str] = ()
    int8: bool = False


@dataclass(frozen=True)
class Form:
    """A form that was made, and how near it is to the folder's own output."""

    file: str
    runtime: str
    precision: str
    bytes: int
    difference: float  # the largest, as a part of the largest output
    cosine: float  # the smallest one of a text's mean vectors

    def __str__(self) -> str:
        return f"{self.file}: {self.bytes / 1e6:.1f} MB, {self.nearness}"

    @property
    def nearness(self) -> str:
        """Its largest difference, and of int8 the smallest cosine, in words."""
        said = f"outputs within {self.difference:.1e} of the largest"
        return (
            said
            if self.precision == "fp32"
            else f"{said}, cosine of each text's mean vector at least {self.cosine:.4f}"
        )


def check_libraries(kinds: Sequence[str], int8: bool) -> None:
    """Raise UserError if what makes these forms is not installed: before anything else is done."""
    for kind in dict.fromkeys([ONNX, *kinds] if kinds else []):
        library(kind, int8)


def versions(kinds: Sequence[str]) -> str:
    """The libraries that make these forms, in words."""
    found = {
        name: version for kind in dict.fromkeys([ONNX, *kinds]) for name, version in library(kind).VERSIONS.items()
    }
    return ", ".join(f"{name} {version}" for name, version in found.items())


def make_forms(folder: Path, wanted: Wanted, texts: Sequence[str]) -> list[Form]:
    """Write the forms of the model in ``folder`` into it. Raises UserError if one of them computes something else on ``texts``.

    A graph takes what the folder's tokenizer gives: token types are an input only where it gives some.
    """
    model, tokenizer = load_model(str(folder), "main", torch.float32), load_folder_tokenizer(folder)
    batches = _batches(model, tokenizer, texts)
    expected = [_hidden(model, batch) for batch in batches]
    made = []
    kinds = wanted.kinds
    for kind in dict.fromkeys([ONNX, *kinds]):  # OpenVINO reads what is written for ONNX
        for precision in ("fp32", "int8")[: 1 + (wanted.int8 and kind in kinds)]:
            path = folder / FILES[kind, precision]
            path.parent.mkdir(exist_ok=True)
            _write(model, batches[0], path, folder, kind, precision)
            if kind in kinds:
                difference, cosine = _compared(path, batches, expected)
                form = Form(FILES[kind, precision], RUNTIMES[kind], precision, size_of(path), difference, cosine)
                _check(form, folder)
                made.append(form)
    if ONNX not in kinds:
        shutil.rmtree(folder / ONNX)
    return made


def _batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[dict[str, Tensor]]:
    """The texts as the tokenizer gives them, several a batch and padded; and one that is alone."""
    taken = [name for name in INPUTS if name in inspect.signature(model.forward).parameters]
    chunks = [list(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
    longest = min(tokenizer.model_max_length, longest_input(model.config))
    batches = []
    for chunk in [*chunks, [texts[0]]]:
        encoded = tokenizer(chunk, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        batches.append({name: encoded[name] for name in taken if name in encoded})
    return batches


@torch.inference_mode()
def _hidden(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).last_hidden_state


def _write(
    model: PreTrainedModel, example: dict[str, Tensor], path: Path, folder: Path, kind: str, precision: str
) -> None:
    """Write one form. Raises UserError with what its library says if that cannot."""
    made_by, plain = library(kind), folder / FILES[kind, "fp32"]
    try:
        if precision == "int8":
            made_by.quantize(plain, path)
        elif kind == ONNX:
            short = {name: tensor[:2, :8] for name, tensor in example.items()}
            made_by.write(model, short, OUTPUTS[0], path)
        else:
            made_by.write(folder / FILES[ONNX, "fp32"], path)
    except OSError:
        raise
    except Exception as error:  # of exporters and quantizers, which have many
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"--to {kind}: the {model.config.model_type} cannot be written as {path.relative_to(folder)} ({cause}); nothing "
            "was exported: leave it out"
        ) from error


def _compared(path: Path, batches: list[dict[str, Tensor]], expected: list[Tensor]) -> tuple[float, float]:
    """The largest difference at a token, as a part of the largest output, and the smallest cosine of a text's means."""
    encoder, differences, cosines, largest = FormEncoder(path), [], [], 0.0
    for batch, theirs in zip(batches, expected, strict=True):
        own, mask = encoder(**batch).last_hidden_state, batch["attention_mask"][..., None]
        differences.append(((own - theirs) * mask).abs().amax())
        largest = max(largest, float((theirs * mask).abs().amax()))
        cosines.append(torch.cosine_similarity((own * mask).sum(1), (theirs * mask).sum(1)).amin())
    return float(torch.stack(differences).amax()) / largest, float(torch.stack(cosines).amin())


def _check(form: Form, folder: Path) -> None:
    """Raise UserError for a form whose outputs are not the folder's own."""
    if form.precision == "fp32" and not form.difference <= TOLERANCE:  # true of NaN
        raise UserError(
            f"{folder.name}: {form.file} computes something else: outputs differ by {form.difference:.1e} of the largest, "
            f"{TOLERANCE:.0e} is allowed; nothing was exported: leave --to out for this model"
        )
    if not form.cosine >= COSINE:
        raise UserError(
            f"{folder.name}: {form.file} is too coarse: a text's mean vector has a cosine of {form.cosine:.3f} with the "
            f"folder's own, {COSINE} is needed; nothing was exported: leave --int8 out for this model"
        )
