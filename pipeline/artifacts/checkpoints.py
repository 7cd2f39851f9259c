"""Atomic checkpoints of the student alone, whole and by parameter name.

    RUN/checkpoints/step-00000120/state.safetensors   fp32 weights, exp_avg/NAME, exp_avg_sq/NAME, and the untrained tail
    RUN/checkpoints/step-00000120/state.json          step, samples consumed, corpus, recipe, versions, sha256 of the above,
                                                      and "id", the sha256 of all these

No pickle, no file per rank and no ZeRO stage inside: the same folder continues at any number of ranks and any stage, and
export is a read of it. A folder is written aside, synced and renamed, so a whole name means a whole checkpoint; what is
torn all the same (a hash does not match) is skipped with a warning and never deleted.
"""

import errno
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_prep.cli import UserError
from data_prep.files import file_sha256, new_folder, sealed
from pipeline.artifacts.results import inner_runs
from pipeline.pairs import BESIDE
from pipeline.settings.values import recipe_of

FOLDER, STATE, INFO = "checkpoints", "state.safetensors", "state.json"
FORMAT = 2
MOMENTS = ("exp_avg", "exp_avg_sq")
_SPARE = 2**20  # bytes on top of the tensors: state.json, the header, the folders


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, and the content of its state.json."""

    path: Path
    info: dict

    @property
    def step(self) -> int:
        return self.info["step"]

    def check(self) -> None:
        """Raise UserError unless state.json is what a run writes: hashes that fit do not prove who made them."""
        info, tokens, teacher = self.info, self.info.get("tokens"), self.info.get("teacher")
        recipe = recipe_of(info.get("recipe"), str(self.path / INFO))
        fits = {
            "step": 0 < self.step <= recipe.steps,
            "samples": info.get("samples") == self.step * recipe.batch,
            "corpus": isinstance(info.get("corpus"), str),
            "tokens": isinstance(tokens, dict) and all(isinstance(count, int) for count in tokens.values()),
            "teacher": isinstance(teacher, dict)
            and isinstance(teacher.get("weights"), str)
            and isinstance(teacher.get("config", {}), dict),
            "earlier_steps": _are_pairs(info.get("earlier_steps", [])),  # of old runs there are none
            "versions": isinstance(info.get("versions"), dict),
        }
        for key in (key for key, fit in fits.items() if not fit):
            raise UserError(
                f"{self.path / INFO}: {key} = {info.get(key)!r} is not what a run writes; delete this checkpoint's folder"
            )

    def tensors(self, trained: Iterable[str] = ()) -> dict[str, Tensor]:
        """Weights and moments, by name, on the CPU. Raises UserError if a ``trained`` weight or its moments are missing."""
        try:
            tensors = load_file(self.path / STATE)
        except SafetensorError as error:
            raise UserError(f"{self.path / STATE}: cannot be read ({error}); delete this checkpoint's folder") from None
        for name in trained:
            for key in (name, *(f"{moment}/{name}" for moment in MOMENTS)):
                if key not in tensors:
                    self._refuse(key)
        return tensors

    def load_into(self, model: nn.Module) -> None:
        """Give ``model`` these weights. Raises UserError if they, or their moments, are not those of such a model."""
        tensors, shapes = self.tensors(), {name: tensor.shape for name, tensor in model.state_dict().items()}
        for key, tensor in tensors.items():
            moment, _, name = key.rpartition("/")
            if name not in BESIDE and (moment not in ("", *MOMENTS) or shapes.get(name) != tensor.shape):
                self._refuse(key)
        for name in sorted(shapes.keys() - tensors.keys()):
            self._refuse(name)
        model.load_state_dict({name: tensors[name] for name in shapes})

    def _refuse(self, name: str) -> NoReturn:
        raise UserError(f"{self.path / STATE}: not this student's {name}; delete this checkpoint's folder")

    def weights(self) -> dict[str, Tensor]:
        """The fp32 weights of the whole student, without the optimizer's moments and what is trained beside them."""
        return {name: x for name, x in self.tensors().items() if "/" not in name and name not in BESIDE}


def _are_pairs(value: object) -> bool:
    pairs = value if isinstance(value, list) else [value]
    return all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair) for pair in pairs)


def save(run: Path, info: dict, tensors: dict[str, Tensor], keep: int, keep_every: int = 0) -> Path:
    """Write the checkpoint of ``info["step"]``; of the whole ones up to it keep the newest ``keep``.

    Those of steps that are multiples of ``keep_every`` are kept as well. Raises UserError, and leaves nothing half-written,
    if the disk is full or a tensor is not finite.
    """
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{run}: {name} is not finite after step {info['step']}; nothing was written and the previous checkpoints "
                "are kept: use a lower learning_rate and another out"
            )
    folder = run / FOLDER
    final = folder / f"step-{info['step']:08d}"
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in (*folder.glob(".step-*.writing"), *folder.glob(".writing-*")):  # of a run that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        if (free := shutil.disk_usage(folder).free) < size + _SPARE:
            raise OSError(errno.ENOSPC, f"only {free / 2**20:.0f} MiB are free")
        with new_folder(final) as written:
            save_file(tensors, written / STATE)
            digest = file_sha256(written / STATE)
            content = sealed(info | {"format": FORMAT, "sha256": digest})
            (written / INFO).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            if final.exists():  # a torn one of the same step: keep it for inspection, out of the way
                final.rename(_unused(folder / f"torn-{final.name}"))
    except (OSError, SafetensorError) as error:
        newest = latest(run)
        raise UserError(
            f"{final}: the checkpoint of {size / 2**20:.0f} MiB cannot be written ({error}); free some space and run the "
            f"same command again: it resumes from {f'step {newest.step}' if newest else 'the start'}"
        ) from error
    _known[_identity(final / STATE)] = digest
    _forget_old(run, info["step"], keep, keep_every)
    return final


def _forget_old(run: Path, step: int, keep: int, keep_every: int) -> None:
    """Delete the whole checkpoints up to ``step`` but for the newest ``keep``, and those of multiples of ``keep_every``.

    Only what this process has neither written nor read before is hashed here, and nothing if ``latest`` was asked for ``keep``.
    """
    kept = 0
    for folder in reversed([folder for folder in _folders(run) if _step(folder) <= step]):
        if kept < keep:
            kept += _torn(folder, _hash_once) is None
        elif (not keep_every or _step(folder) % keep_every) and _torn(folder, _hash_once) is None:
            shutil.rmtree(folder)


def latest(run: Path, count: int = 1) -> Checkpoint | None:
    """The newest whole checkpoint, or None. Torn ones are skipped with a warning.

    As many as ``count`` of the newest are read and hashed, so that no save of this process that keeps so many has to.
    """
    found = []
    for folder in reversed(_folders(run)):
        if (reason := _torn(folder, _hash)) is None:
            found.append(folder)
        else:
            print(f"warning: {folder} is not whole ({reason}); it is skipped", file=sys.stderr, flush=True)
        if len(found) == count:
            break
    return Checkpoint(found[0], json.loads((found[0] / INFO).read_text())) if found else None


def newest_of(run: Path) -> Checkpoint:
    """The newest whole checkpoint of a run folder. Raises UserError if there is none."""
    if found := latest(run):
        return found
    if inner := inner_runs(run):
        raise UserError(f"{run}: a run of several students or stages; give the folder of one: {', '.join(inner)}")
    raise UserError(f"{run}: no whole checkpoint below {run / FOLDER}; is this a run folder?")


_known: dict[tuple[int, ...], str] = {}  # the hash of each state that this process has written or read


def _identity(path: Path) -> tuple[int, ...]:
    """What changes when a file is written again, or damaged by anything but its disk."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _hash(path: Path) -> str:
    digest = _known[_identity(path)] = file_sha256(path)
    return digest


def _hash_once(path: Path) -> str:
    return _known.get(_identity(path)) or _hash(path)


def _torn(folder: Path, digest: Callable[[Path], str]) -> str | None:
    """Why the checkpoint is not whole, or None. ``digest`` gives the hash of its state."""
    try:
        info = json.loads((folder / INFO).read_text())
        if info["format"] != FORMAT:
            return f"format {info['format']!r}"
        if sealed(info) != info or info["step"] != _step(folder):
            return f"{INFO} is not as it was written"
        return None if digest(folder / STATE) == info["sha256"] else f"{STATE} does not match its sha256"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{INFO} is not readable"


def _folders(run: Path) -> list[Path]:
    """Folders with a checkpoint's name, whole or torn, oldest first."""
    named = [path for path in (run / FOLDER).glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
    return sorted(named, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _unused(path: Path) -> Path:
    number = 0
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate
