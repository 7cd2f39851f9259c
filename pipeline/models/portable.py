"""What a model's folder needs to be loaded alike by transformers 4.57 and 5: tokenizer files and keys of config.json.

A tokenizer's files are copied as they are wherever both versions read from them what was trained with; of their settings
only those are changed that one of the two cannot read, or that do not fit the model. transformers 5 renames what 4.57 reads:
the class PreTrainedTokenizerFast, additional_special_tokens, ModernBERT's global_attn_every_n_layers and *_rope_theta. It
reads the old names too, so these are written.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.cli import UserError
from pipeline.models.families import GLOBAL, attention_kinds, knows_segments, longest_input
from pipeline.models.loading import load_folder_tokenizer

TESTED = "4.57.6"  # the transformers 4 that tests/whole/test_transformers_4.py loads the folders in
SETTINGS = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json", SETTINGS, "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt",
    "bpe.codes", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model",
)  # fmt: skip

_GENERIC = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is; TokenizersBackend in 5
_SAME_INPUTS = ("BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer")  # classes of the same inputs in 4.57 and 5
# How a tokenizer was loaded, which is something else offline, and what only goes with files that are not copied.
_UNWANTED = ("auto_map", "is_local", "local_files_only")
_PATHS = ("name_or_path", "special_tokens_map_file", "tokenizer_file")

_PROBES = (
    "The student's 1,234.5 words, naïve and ÉLAN.",
    " Two  spaces,\ta tab\nand a line;  full width ＡＢ, a ligature ﬁ, e\u0301 ",
    "日本語 한국어 ไทย λόγος слово عربي 🙂 #hash <tag> [tag] it's don't",
    "",
)


def write_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    origin: tuple[str, str],
    config: PreTrainedConfig,
    folder: Path,
    paired: bool = True,
) -> None:
    """Write a tokenizer to ``folder``, whose config.json is that of a model of ``config``, trained on pairs if ``paired``.

    ``origin``: the model folder or hub id that it was loaded from, and the revision. Its files are copied from there, with a
    tokenizer.json if they lack it. The tokenizer is serialised instead where the files are gone or others by now, or their
    tokenizer.json alone gives other ids than the class around it: then every version takes the new one as it is. Raises
    UserError if even that gives other ids.
    """
    if (files := _folder_of(*origin)) is not None:
        for name in TOKENIZER_FILES:
            if (files / name).is_file():
                shutil.copyfile(files / name, folder / name)
        write_settings(folder, tokenizer, config, paired)
        if _reads_alike(folder, tokenizer) and _completed(folder, tokenizer):
            return
        for name in TOKENIZER_FILES:
            (folder / name).unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    if (folder / "tokenizer.json").is_file():
        _write_json(folder / SETTINGS, _read_settings(folder) | {"tokenizer_class": _GENERIC})
    write_settings(folder, tokenizer, config, paired)
    if not _reads_alike(folder, tokenizer):
        raise UserError(
            f"{origin[0]}: its {type(tokenizer).__name__} gives other ids when it is saved and loaded again; "
            f"save it as a {_GENERIC}, with a tokenizer.json"
        )


def write_settings(
    folder: Path, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, paired: bool = True
) -> None:
    """Change in ``folder`` what ``portable_settings`` changes; a file that is good as it is keeps its bytes."""
    own = _read_settings(folder)
    if (settings := portable_settings(own, tokenizer, config, paired)) != own:
        _write_json(folder / SETTINGS, settings)


def portable_settings(
    own: dict[str, Any], tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, paired: bool = True
) -> dict[str, Any]:
    """The content of tokenizer_config.json, with what 4.57 cannot read, or does not fit a model of ``config``, changed.

    A model that was not ``paired`` in training has never read a second segment: it is given no token types, unless they are
    all 0, as XLM-R's are.
    """
    changed = {key: value for key, value in own.items() if key not in _UNWANTED}
    for key in _PATHS:
        if str(changed.get(key, "")).startswith("/"):
            del changed[key]
    name = changed.get("tokenizer_class") or type(tokenizer).__name__
    changed["tokenizer_class"] = _GENERIC if name == "TokenizersBackend" else name
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    if tokenizer.model_max_length > longest_input(config):
        changed["model_max_length"] = longest_input(config)

    typed = knows_segments(config) and (paired or not marks_pairs(tokenizer))
    inputs = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
    given = changed.get("model_input_names", [])
    by_class = not given and name.removesuffix("Fast") in _SAME_INPUTS
    if set(tokenizer.model_input_names if by_class else given) != set(inputs):
        changed["model_input_names"] = inputs
    return changed


def marks_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokens of the second of two texts are of token type 1."""
    return 1 in tokenizer("a", "b", return_token_type_ids=True)["token_type_ids"]


def add_older_keys(path: Path, config: PreTrainedConfig) -> None:
    """Add ``older_keys`` to a config.json."""
    if keys := older_keys(config):
        _write_json(path, json.loads(path.read_text(encoding="utf-8")) | keys)


def older_keys(config: PreTrainedConfig) -> dict[str, Any]:
    """The keys of config.json by which 4.57 builds the same model; 5 has other names for them.

    4.57 knows ModernBERT's global layers only as every n-th from the first on. For others n is 0, at which it fails: with a
    wrong n it would compute something else in silence.
    """
    if config.model_type != "modernbert":
        return {}
    rotations = config.rope_parameters
    return {
        "global_attn_every_n_layers": _period(config),
        "global_rope_theta": rotations["full_attention"]["rope_theta"],
        "local_rope_theta": rotations["sliding_attention"]["rope_theta"],
    }


def _period(config: PreTrainedConfig) -> int:
    """The n of a config whose global layers are every n-th from the first on, 0 for any other."""
    kinds = attention_kinds(config)
    plain = all(rotation.get("rope_type", "default") == "default" for rotation in config.rope_parameters.values())
    for period in range(1, len(kinds) + 1):
        if plain and all((kind == GLOBAL) == (place % period == 0) for place, kind in enumerate(kinds)):
            return period
    return 0


def loads_in(config: PreTrainedConfig) -> str:
    """The versions of transformers in which a folder was loaded and compared, in words."""
    own = f"transformers {transformers.__version__}"
    if config.model_type == "eurobert":
        return f"{own}; 4.57 has no EuroBERT"
    if config.model_type == "modernbert" and not _period(config):
        return f"{own}; 4.57 rejects it, as it cannot express which layers are global: {', '.join(attention_kinds(config))}"
    return f"transformers 4.57 (tested with {TESTED}) and 5 (tested with {transformers.__version__})"


def _folder_of(model: str, revision: str) -> Path | None:
    """The folder with the files of a tokenizer that was loaded from there, or from the hub; None if it is gone."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
    except Exception:  # the client raises those of its HTTP library too
        return None


def _reads_alike(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the folder's tokenizer, and its tokenizer.json without any class around it, give the tokenizer's own ids."""
    try:
        reloaded = load_folder_tokenizer(folder)
    except Exception:  # of files that are broken by now; the Rust loader raises bare ones
        return False
    if reloaded.get_vocab() != tokenizer.get_vocab() or reloaded.special_tokens_map != tokenizer.special_tokens_map:
        return False
    control = f"a {' '.join(sorted(set(tokenizer.all_special_tokens)))} b"
    texts = [*_PROBES, control]
    ids = [tokenizer(text, verbose=False)["input_ids"] for text in texts]  # without a warning of their length
    if [reloaded(text, verbose=False)["input_ids"] for text in texts] != ids:
        return False
    if not (folder / "tokenizer.json").is_file():
        return True
    bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare.no_truncation()
    bare.no_padding()
    if [bare.encode(text).ids for text in texts] != ids:
        return False
    pair = tokenizer(texts[0], texts[1], return_token_type_ids=True, verbose=False)
    encoded = bare.encode(texts[0], texts[1])
    return (encoded.ids, encoded.type_ids) == (pair["input_ids"], pair["token_type_ids"])


def _completed(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Add tokenizer.json if it is not there. Returns whether the folder still gives the same ids."""
    if (folder / "tokenizer.json").is_file() or not hasattr(tokenizer, "backend_tokenizer"):
        return True
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return _reads_alike(folder, tokenizer)


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
