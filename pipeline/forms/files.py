"""Which forms a model folder has, and where: as sentence-transformers and optimum look for them.

    FOLDER/onnx/model.onnx                                         fp32, for ONNX Runtime
    FOLDER/onnx/model_quantized.onnx                               int8: weights of 8 bits, activations as they come
    FOLDER/openvino/openvino_model.xml and .bin                    fp32, for OpenVINO
    FOLDER/openvino/openvino_model_qint8_quantized.xml and .bin    int8: weights of 8 bits

A form is named by its path. Folders of others may have further ones: every .onnx file in onnx/, every .xml in openvino/.
"""

import hashlib
from pathlib import Path

from data_prep.cli import UserError
from data_prep.files import file_sha256

ONNX, OPENVINO = "onnx", "openvino"  # folders, and what --to takes
RUNTIMES = {ONNX: "ONNX Runtime", OPENVINO: "OpenVINO"}
FILES = {
    (ONNX, "fp32"): "onnx/model.onnx",
    (ONNX, "int8"): "onnx/model_quantized.onnx",
    (OPENVINO, "fp32"): "openvino/openvino_model.xml",
    (OPENVINO, "int8"): "openvino/openvino_model_qint8_quantized.xml",
}
_SUFFIXES = {".onnx": ONNX, ".xml": OPENVINO}


def is_form(path: str | Path) -> bool:
    """Whether this is the file of a form, by its name."""
    return Path(path).suffix in _SUFFIXES and Path(path).is_file()


def kind_of(file: Path) -> str:
    """ONNX or OPENVINO."""
    return _SUFFIXES[file.suffix]


def precision_of(file: Path) -> str:
    """int8 or fp32, by the file's name; of a file of others, what its name says."""
    if any(word in file.stem for word in ("int8", "uint8", "quantized")):
        return "int8"
    return "fp32" if file.stem in ("model", "openvino_model") else file.stem.rpartition("_")[2]


def forms_of(folder: str | Path) -> list[Path]:
    """The forms that lie in a model folder, in a fixed order; none of a hub id."""
    places = [Path(folder) / kind for kind in RUNTIMES]
    found = [path for place in places for path in sorted(place.glob("*")) if path.suffix in _SUFFIXES]
    return sorted(found, key=lambda path: (kind_of(path), precision_of(path) != "fp32", path.name))


def folder_of(file: Path) -> Path:
    """The model folder to which a form belongs. Raises UserError if it lies in none."""
    folder = file.resolve().parent
    folder = folder.parent if folder.name in RUNTIMES else folder
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{file}: no config.json in {folder}; a form is read with the config and tokenizer of its folder"
        )
    return folder


def form_name(file: Path) -> str:
    """`student@onnx-int8`; of a file with another name than ours `student@onnx-model_O3`."""
    folder = folder_of(file)
    known = {path: f"{kind}-int8" if precision == "int8" else kind for (kind, precision), path in FILES.items()}
    own = known.get(f"{file.parent.name}/{file.name}", f"{kind_of(file)}-{file.stem}")
    return f"{folder.name}@{own}"


def parts_of(file: Path) -> list[Path]:
    """The files of a form: OpenVINO keeps weights in another file, and so does ONNX if they are large."""
    rest = [file.with_suffix(".bin")] if kind_of(file) == OPENVINO else sorted(file.parent.glob(f"{file.name}[_.]*"))
    return [file, *(path for path in rest if path.is_file())]


def size_of(file: Path) -> int:
    """Bytes on disk."""
    return sum(path.stat().st_size for path in parts_of(file))


def form_hash(file: Path) -> str:
    """16 hexadecimal digits that name the form's content, as a hash of weights names a folder's."""
    return hashlib.sha256("".join(map(file_sha256, parts_of(file))).encode()).hexdigest()[:16]
