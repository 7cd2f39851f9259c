"""Whether a folder is a model's, told from its files, without torch."""

import shlex
import sys
from pathlib import Path

from data_prep.cli import UserError

CHECKPOINTS = "checkpoints"  # the folder by which a run's is known


def check_folder(model: str) -> None:
    """A path must be a whole model folder; anything else is taken for a hub id."""
    folder = Path(model)
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
            raise UserError(
                f"{model}: no such folder (from {Path.cwd()}); need a model folder or a hub id; ./run.sh fetches the demo's"
            )
        return
    if not (folder / "config.json").is_file():
        raise UserError(f"{model}: no config.json; {_instead(folder)}")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        hint = f"only {pickled[0]}, a pickle" if pickled else "no *.safetensors file"
        way = f"; convert it here, which runs no code of the file: {_conversion(folder)}" if pickled else ""
        raise UserError(f"{model}: no weights that are safe to load ({hint}){way}")


def _instead(folder: Path) -> str:
    """What a folder without a config.json is instead of a model's, and the way out."""
    if (folder / CHECKPOINTS).is_dir():
        return (
            f"it is the folder of a run, export its student first: python -m pipeline.export {folder} {folder}-student"
        )
    runs = sorted(path.parent.name for path in folder.glob(f"*/{CHECKPOINTS}"))
    if runs:
        first = f"{folder / runs[0]} {folder / runs[0]}-student"
        return f"it holds the runs {', '.join(runs)}, export a student first: python -m pipeline.export {first}"
    exported = [path for path in (folder / "student", Path(f"{folder}-student")) if (path / "config.json").is_file()]
    return (
        f"not a Hugging Face model folder; did you mean {exported[0]}?"
        if exported
        else "not a Hugging Face model folder"
    )


_CONVERT = (
    "import sys, torch; from pathlib import Path; from safetensors.torch import save_file; d = Path(sys.argv[1]); "
    'w = {k: v.contiguous().clone() for f in sorted(d.glob("pytorch_model*.bin")) '
    'for k, v in torch.load(f, map_location="cpu", weights_only=True).items()}; '
    'save_file(w, d / "model.safetensors", {"format": "pt"})'
)


def _conversion(folder: Path) -> str:
    """A command that saves a folder's pickled weights as safetensors, on this machine alone."""
    return shlex.join([sys.executable, "-c", _CONVERT, str(folder)])
