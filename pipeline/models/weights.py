"""A pretrained model's tensors, read one by one from safetensors files: no more of it is in memory than is asked for."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_prep.cli import UserError

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Names that old checkpoints of BERT have for the same parameters.
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class Weights:
    """The tensors of a Hugging Face folder or hub id, by the names that the bare encoder gives them.

    ``prefix`` is what a model with a head puts before them, as in ``bert.encoder.layer.0…``. The files are found, or
    fetched from the hub, at the first question. Raises UserError for what is not there or not whole.
    """

    def __init__(self, model: str, revision: str, prefix: str):
        self._model, self._revision, self._prefix = model, revision, prefix + "."
        self._places: dict[str, tuple[Path, str]] = {}

    def check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raise UserError unless all these tensors are there and have these shapes; reads headers only."""
        self._find()
        if missing := sorted(shapes.keys() - self._places.keys()):
            raise UserError(
                f"{self._model}: the weights lack {len(missing)} tensors, first {missing[0]}; get the whole model"
            )
        by_file: dict[Path, list[str]] = {}
        for name in shapes:
            by_file.setdefault(self._places[name][0], []).append(name)
        for path, names in by_file.items():
            with opened(path) as file:
                for name in names:
                    found = tuple(file.get_slice(self._places[name][1]).get_shape())
                    if found != shapes[name]:
                        raise UserError(
                            f"{path}: {name} has the shape {found}, config.json says {shapes[name]}; get the whole model"
                        )

    def __contains__(self, name: str) -> bool:
        self._find()
        return name in self._places

    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        self._find()
        return sorted(self._places)

    def bytes(self) -> int:
        """Of all files of the weights, on disk."""
        self._find()
        return sum(path.stat().st_size for path in {path for path, _ in self._places.values()})

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name`` as it is stored, on the CPU: a map of its file, which is closed with it."""
        self._find()
        path, key = self._places[name]
        with opened(path) as file:
            return file.get_tensor(key)

    def _find(self) -> None:
        if self._places:
            return
        folder = Path(self._model)
        if not folder.is_dir():
            patterns = [_SINGLE, _INDEX, "model-*.safetensors"]
            try:
                folder = Path(
                    huggingface_hub.snapshot_download(self._model, revision=self._revision, allow_patterns=patterns)
                )
            except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
                cause = str(error).strip().splitlines()[0]
                raise UserError(f"{self._model}: no such folder, and not to be had from the hub ({cause})") from None
        for path in weight_files(folder):
            with opened(path) as file:
                for key in file.keys():  # noqa: SIM118  (it is no dict)
                    self._places[self._own_name(key)] = path, key
        if not self._places:
            raise UserError(f"{self._model}: no {_SINGLE} and no {_INDEX}: no weights that are safe to load")

    def _own_name(self, key: str) -> str:
        for old, new in _OLD_NAMES.items():
            if key.endswith(old):
                key = key.removesuffix(old) + new
        return key.removeprefix(self._prefix)


def weight_files(folder: Path) -> Iterable[Path]:
    """The files that hold a model's tensors: what its index names, or the only one."""
    index = folder / _INDEX
    if not index.is_file():
        single = folder / _SINGLE
        return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))[:1]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not an index of safetensors files; get the whole model") from None
    for name in sorted(map(str, names)):
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{index}: names {name}, which is not in this folder; get the whole model")
    return [folder / name for name in sorted(names)]


@contextlib.contextmanager
def opened(path: Path):
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read ({error}); get the whole model") from None


def weights_hash(parameters: Iterable[Tensor]) -> str:
    """A digest of all the parameters' bytes, in order."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
