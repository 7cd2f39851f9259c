"""A model card's metadata, which the Hugging Face hub reads: written at a run's start, completed by export and evaluate.

    RUN/student/README.md       what teacher and corpus say of the student: at the run's start, while both are at hand
    STUDENT_FOLDER/README.md    the same with the card itself, which export writes; evaluate adds the scores

The keys are huggingface_hub's (ModelCardData). A teacher's folder says its public id by one more key of its own card,
``model_id``: config.json's _name_or_path may be that of a model from which it was made, or a path.
"""

import functools
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id

from data_prep.cli import UserError
from data_prep.description import read_description
from data_prep.files import read_json
from data_prep.plan import INPUTS
from data_prep.shards import Corpus
from pipeline.artifacts.distillation import DISTILLATION
from pipeline.settings.recipe import Recipe

CARD = "README.md"
_TAKEN_OVER = ("license", "license_name", "license_link", "language")

# A file of a Wikipedia: enwiki-20240101-pages-articles.xml.bz2, or 20231101.en/train-00000-of-00041.parquet of the hub.
_OF_WIKIPEDIA = re.compile(r"([a-z]{2,3})wiki-|(?:.*/)?\d{8}\.([a-z]{2,3})/")


def card_text(metadata: dict[str, Any], body: str, origin: Path | str = CARD) -> str:
    """A card of these metadata, from ``origin``, and this text. Raises UserError for what ModelCardData does not take."""
    try:
        return _joined(ModelCardData(**metadata), body)
    except Exception as error:  # those of its checks, and YAML's
        raise UserError(f"{origin}: not a model card's metadata ({_cause(error)}); correct or delete it") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a card; empty if there is no such file or it has none that can be read."""
    try:
        return _with_codes({str(key): value for key, value in (metadata_load(path) or {}).items()})
    except Exception:  # of the file system, YAML's, and for what is no mapping
        return {}


def student_metadata(recipe: Recipe, corpus: Corpus | None = None) -> dict[str, Any]:
    """What is known of the recipe's student before it is trained: of its teacher, and of its corpus if that is given."""
    return {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["minilm", "distillation"],
        **teacher_metadata(recipe.teacher.model, recipe.teacher.revision),
        **(_of_corpus(corpus) if corpus else {}),
    }


def teacher_metadata(model: str, revision: str) -> dict[str, Any]:
    """base_model, license and language that a student takes over from a model folder or hub id, as far as they are known."""
    folder = Path(model)
    if folder.is_dir():
        own = read_metadata(folder / CARD)
        base = own.get("model_id") or _cached_id(folder)
        if not base and (folder / DISTILLATION).is_file():  # a student of ours, which is not public
            base = own.get("base_model")
    else:
        own = read_metadata(card) if (card := _of_hub(model, revision, CARD)) else {}
        base = model if card or _of_hub(model, revision, "config.json") else None  # or a folder that is gone
    found = {"base_model": base if _is_id(base) else None} | {key: own.get(key) for key in _TAKEN_OVER}
    return {key: value for key, value in found.items() if value}


def _is_id(base: Any) -> bool:
    """Whether ``base`` can be the id of a model of the hub; a path, for one, cannot."""
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return base is not None


def with_scores(text: str, name: str, scores: list[EvalResult]) -> str:
    """The card of the model ``name`` with these scores; of those that it has, others on the same data go.

    Raises ValueError if its metadata cannot be read.
    """
    data, body = _parts(text)
    known = {_place(score): score for score in [*(data.eval_results or []), *scores]}
    data.model_name, data.eval_results = name, list(known.values())
    return _joined(data, body)


def without_scores(text: str) -> str:
    """A card for a model that was changed after it was scored."""
    try:
        data, body = _parts(text)
    except ValueError:
        return text
    if not data.eval_results:
        return text
    data.model_name = data.eval_results = None
    return _joined(data, body)


def with_scores_of(text: str, earlier: Path) -> str:
    """The card with the scores that an earlier one of the same weights has."""
    try:
        data, _ = _parts(earlier.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return text
    return with_scores(text, data.model_name or "", data.eval_results) if data.eval_results else text


def _parts(text: str) -> tuple[ModelCardData, str]:
    """The metadata and the text of a card. Raises ValueError if its metadata cannot be read."""
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
        data = ModelCardData(ignore_metadata_errors=True, **_with_codes(card.data.to_dict()))
        data.to_yaml()
        return data, card.text
    except Exception as error:  # YAML's own, and those of the checks
        raise ValueError(f"its metadata cannot be read: {_cause(error)}") from None


def _with_codes(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata with the codes of languages only: to YAML, Norwegian's unquoted ``no`` is false."""
    said = metadata.get("language")
    codes = ["no" if code is False else code for code in (said if isinstance(said, list) else [said])]
    named = [code for code in codes if isinstance(code, str)]
    if not named:
        return {key: value for key, value in metadata.items() if key != "language"}
    return metadata | {"language": named if isinstance(said, list) else named[0]}


def _cause(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _joined(data: ModelCardData, body: str) -> str:
    return f"---\n{data.to_yaml()}\n---\n{body}"


def _place(score: EvalResult) -> tuple[str | None, ...]:
    return score.dataset_type, score.dataset_config, score.dataset_split, score.metric_type


def _of_hub(model: str, revision: str, name: str) -> Path | None:
    """A file of a model of the hub, fetched or in the cache; None if it cannot be had."""
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except Exception:  # the client raises those of its HTTP library too
        return None


def _cached_id(folder: Path) -> str | None:
    """The id of a folder in the hub's cache: …/models--google-bert--bert-base-uncased/snapshots/COMMIT."""
    named = [part for part in folder.resolve().parts if re.fullmatch(r"models--[\w.-]+", part)]
    return named[-1].removeprefix("models--").replace("--", "/") if named else None


def _of_corpus(corpus: Corpus) -> dict[str, Any]:
    """Language and datasets, as far as they are known; the language only if it is known of every source."""
    files = {name: [file["name"] for file in of.get("files", [])] for name, of in corpus.manifest["sources"].items()}
    languages = {_language(name, names) for name, names in files.items()}
    try:
        places = read_json(corpus.path / INPUTS)["sources"].values()
    except (FileNotFoundError, KeyError):
        places = []
    datasets = {place["hub"][0] for of_source in places for place in of_source if place["hub"]}
    if any(_OF_WIKIPEDIA.match(name) for names in files.values() for name in names):
        datasets.add("wikimedia/wikipedia")
    found = {"language": [] if None in languages else sorted(filter(None, languages)), "datasets": sorted(datasets)}
    return {key: value for key, value in found.items() if value}


def _language(source: str, files: list[str]) -> str | None:
    """The code of a source's language: its name if that is one of CC-100's, or what the names of a Wikipedia's files say."""
    if source in _cc100():
        return re.split("[-_]", source)[0]
    said = {match and (match[1] or match[2]) for match in map(_OF_WIKIPEDIA.match, files)}
    return said.pop() if len(said) == 1 else None


@functools.cache
def _cc100() -> set[str]:
    """CC-100's names of languages."""
    return {source.name for source in read_description("cc100", Path()).sources}
