"""How a model makes one vector of a text, by the files of its own folder: those of sentence-transformers.

modules.json lists what follows the encoder: 1_Pooling, maps (2_Dense), normalisation. sentence_bert_config.json has the
longest text, config_sentence_transformers.json the prompts. Without modules.json the mean over a text's tokens is taken, as
sentence-transformers does. No code of a folder runs, and weights are read from safetensors alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedConfig

from data_prep.cli import UserError
from pipeline.models.families import longest_input
from pipeline.models.weights import opened

MODULES, SETTINGS, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
_CONFIG = "config.json"  # of a module, in its folder
POOLING, DENSE = f"1_Pooling/{_CONFIG}", f"2_Dense/{_CONFIG}"
POOLING_FILES = (MODULES, SETTINGS, PROMPTS, POOLING)  # of a student; with a map DENSE and DENSE_WEIGHTS too
DENSE_WEIGHTS, _MAP = "2_Dense/model.safetensors", "linear.weight"

_IDENTITY = "torch.nn.modules.linear.Identity"
# The modes by their names in older folders, in the order in which several are joined.
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Pooling:
    """What follows the encoder, and how texts are given to it."""

    modes: tuple[str, ...] = ("mean",)
    includes_prompt: bool = True  # whether the prompt's own tokens are pooled too
    maps: tuple[nn.Module, ...] = ()
    normalizes: bool = False
    length: int | None = None  # tokens; None: the model's own limit
    lowers: bool = False  # texts are put in lower case first
    prompt: str = ""  # before each text
    prompts: tuple[str, ...] = ()  # names of all prompts
    stated: bool = False  # False: nothing in the folder says so

    def __str__(self) -> str:
        widths = [f"map to {each[0].out_features}" for each in self.maps if isinstance(each, nn.Sequential)]
        return ", ".join(["+".join(self.modes), *widths, *["normalised"] * self.normalizes])

    def vectors(self, hidden: Tensor, mask: Tensor, prompt: int = 0) -> Tensor:
        """A vector for each text. ``hidden``: [B, T, d] of the last layer; ``mask``: [B, T], 1 for tokens, 0 for padding.

        ``prompt``: how many of the first tokens are the prompt's, [CLS] included.
        """
        return self.of_texts(hidden, mask[:, None], prompt)[:, 0]

    def of_texts(self, hidden: Tensor, mask: Tensor, prompt: int = 0) -> Tensor:
        """The same of S texts in each row: ``mask`` [B, S, T], 1 for the tokens of each; [B, S, width]."""
        places = mask.cumsum(-1)
        kept = mask.bool()
        if prompt and not self.includes_prompt:
            kept = kept & (places > prompt)
        found = torch.cat([_pooled(mode, hidden, kept, places) for mode in self.modes], -1)
        for each in self.maps:
            found = each(found)
        return nn.functional.normalize(found, dim=-1) if self.normalizes else found

    def width(self, hidden: int) -> int:
        """The width of its vectors of a model that is ``hidden`` wide."""
        linear = [module for each in self.maps for module in each.modules() if isinstance(module, nn.Linear)]
        return linear[-1].out_features if linear else hidden * len(self.modes)


def _pooled(mode: str, hidden: Tensor, kept: Tensor, places: Tensor) -> Tensor:
    """One vector of the kept tokens of each text [B, S, d]; ``places`` [B, S, T]: a token's number in its text, from 1 on.

    A text without tokens has zeros, or any token's.
    """
    if mode in ("cls", "lasttoken"):
        first = places.masked_fill(~kept, places.shape[-1] + 1).argmin(-1)
        last = places.masked_fill(~kept, 0).argmax(-1)
        return hidden[torch.arange(len(hidden), device=hidden.device)[:, None], first if mode == "cls" else last]
    if mode == "max":
        highest = [hidden.masked_fill(~own[..., None], -torch.inf).amax(1) for own in kept.unbind(1)]
        return torch.stack(highest, 1).masked_fill(~kept.any(-1, keepdim=True), 0)

    weights = (places * kept if mode == "weightedmean" else kept).to(hidden.dtype)
    total = weights.sum(-1, keepdim=True).clamp(min=1)
    if mode == "mean_sqrt_len_tokens":
        total = total.sqrt()
    return torch.einsum("bst,btd->bsd", weights, hidden) / total


# --- a student's files ------------------------------------------------------------------------------------------------


def pooling_files(teacher: str, revision: str, config: PreTrainedConfig, learnt: int = 0) -> dict[str, str]:
    """The files by which sentence-transformers loads a student of this config and pools it as its teacher, {name: content}.

    None where the teacher's folder does not say how it pools, or in a way that is not read here: a note says so. Maps are left
    out: they belong to the teacher's own vectors. ``learnt``: the width of the teacher's vectors if the student has learnt
    these; then it pools in the way in which it has learnt to.
    """
    try:
        pooling = read_pooling(teacher, revision)
    except UserError as error:
        print(f"note: the student's folder will not say how it is pooled: {error}", flush=True)
        return {}
    if not (pooling.stated or learnt):
        return {}
    return files_of(pooling, config, _read(_folder_of(teacher, revision) / PROMPTS, dict), learnt)


def files_of(pooling: Pooling, config: PreTrainedConfig, prompts: dict[str, Any], to: int = 0) -> dict[str, str]:
    """The files that describe ``pooling`` without its maps, for a model of this config; ``prompts`` as in PROMPTS.

    If the model's own vectors are not as wide, one map follows ``to`` this width; ``dense_weights`` are its numbers.
    """
    places, width = {"Transformer": "", "Pooling": POOLING.partition("/")[0]}, config.hidden_size * len(pooling.modes)
    maps = {"in_features": width, "out_features": to, "bias": False, "activation_function": _IDENTITY}
    if mapped := to not in (0, width):
        places["Dense"] = DENSE.partition("/")[0]
    if pooling.normalizes:
        places["Normalize"] = f"{len(places)}_Normalize"
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(places.items())
    ]
    modes = {key: mode in pooling.modes for key, mode in _MODES.items()}
    pools = {"word_embedding_dimension": config.hidden_size, **modes, "include_prompt": pooling.includes_prompt}
    longest = longest_input(config)
    settings = {"max_seq_length": min(pooling.length or longest, longest), "do_lower_case": pooling.lowers}
    kept = {"prompts": prompts.get("prompts") or {}, "default_prompt_name": prompts.get("default_prompt_name")}
    files = {MODULES: modules, POOLING: pools, SETTINGS: settings, PROMPTS: kept | {"similarity_fn_name": "cosine"}}
    files |= {DENSE: maps} if mapped else {}
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()}


def dense_weights(weight: Tensor) -> bytes:
    """The content of DENSE_WEIGHTS for a map by ``weight`` [out, in]."""
    return save({_MAP: weight.contiguous()})


# --- a folder's files -------------------------------------------------------------------------------------------------


def read_pooling(model: str, revision: str = "main") -> Pooling:
    """The pooling of a model folder or hub id. Raises UserError for files that are torn, or modules that are not read here."""
    folder = _folder_of(model, revision)
    known: dict[str, Any] = {}
    settings = _read(folder / SETTINGS, dict)
    known["length"], known["lowers"] = settings.get("max_seq_length"), bool(settings.get("do_lower_case"))
    if not (known["length"] is None or isinstance(known["length"], int)):
        raise UserError(f"{folder / SETTINGS}: max_seq_length = {known['length']!r} is not a number of tokens")
    prompts = _read(folder / PROMPTS, dict)
    texts = prompts.get("prompts") or {}
    known["prompts"] = tuple(name for name, text in texts.items() if text)
    known["prompt"] = texts.get(prompts.get("default_prompt_name") or "", "")
    if not (folder / MODULES).is_file():
        return Pooling(**known)

    maps: list[nn.Module] = []
    for module in _read(folder / MODULES, list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        place = folder / str(module.get("path", ""))
        if kind == "Pooling":
            known |= _pooling_of(place / _CONFIG)
        elif kind == "Dense":
            maps.append(_map_of(place))
        elif kind == "Normalize":
            known["normalizes"] = True
        elif kind not in ("Transformer", "Dropout"):
            raise UserError(
                f"{folder / MODULES}: a module {kind!r}, which is not read here; only Transformer, Pooling, Dense, Normalize"
            )
    return Pooling(maps=tuple(maps), stated="modes" in known, **known)


def _folder_of(model: str, revision: str) -> Path:
    """The folder itself, or a copy of a hub id's small files."""
    if Path(model).is_dir():
        return Path(model)
    wanted = [MODULES, SETTINGS, PROMPTS, "*/config.json", "*_Dense/model.safetensors"]
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        cause = str(error).strip().splitlines()[0]
        raise UserError(f"{model}: no such folder, and not to be had from the hub ({cause})") from None


def _read(path: Path, kind: type) -> Any:
    """The content of a JSON file, empty if there is none. Raises UserError if it is torn or not of this kind."""
    if not path.is_file():
        return kind()
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    parts = found if isinstance(found, list) else []
    if not isinstance(found, kind) or not all(isinstance(part, dict) for part in parts):
        raise UserError(f"{path}: not a file of sentence-transformers; get the whole model, or delete this file")
    return found


def _pooling_of(path: Path) -> dict[str, Any]:
    """Modes and handling of the prompt, by 1_Pooling/config.json."""
    config = _read(path, dict)
    given: Any = config.get("pooling_mode") or [mode for key, mode in _MODES.items() if config.get(key)]
    modes = (given,) if isinstance(given, str) else tuple(map(str, given))
    if not modes or (unknown := sorted({*modes} - {*_MODES.values()})):
        wrong = f"pooling_mode {unknown[0]!r}" if modes else "no pooling mode"
        raise UserError(f"{path}: {wrong}; the modes are {', '.join(_MODES.values())}")
    return {"modes": modes, "includes_prompt": config.get("include_prompt", True)}


def _map_of(folder: Path) -> nn.Module:
    """The linear map and its activation in 2_Dense."""
    path = folder / _CONFIG
    config = _read(path, dict)
    if config.get("use_residual"):
        raise UserError(f"{path}: use_residual = true is not read here")
    package, _, name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")
    kind = getattr(nn, name, None)
    if not (package.startswith("torch.nn") and isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{path}: activation_function = {package}.{name} is none of torch.nn")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder}: no model.safetensors: no weights that are safe to load")
    with opened(weights) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
    if _MAP not in tensors:
        raise UserError(f"{weights}: no {_MAP}; get the whole model")
    out, width = tensors[_MAP].shape
    linear = nn.Linear(width, out, bias="linear.bias" in tensors)
    linear.load_state_dict({key.removeprefix("linear."): tensor.float() for key, tensor in tensors.items()})
    return nn.Sequential(linear, kind()).eval().requires_grad_(False)
