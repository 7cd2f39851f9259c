"""How a folder's files make one vector of a text: each mode next to a plain loop, maps, prompts, and files that are torn."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from data_prep.cli import UserError
from pipeline.export import export_untrained
from pipeline.models.loading import load_config
from pipeline.models.pooling import Pooling, pooling_files, read_pooling
from pipeline.settings.reading import load_recipe
from tests.parts.tiny import make_recipe, make_teacher

HIDDEN = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
LENGTHS = (6, 3, 4)
MASK = torch.tensor([[1] * n + [0] * (6 - n) for n in LENGTHS])


def by_hand(mode: str, first: int = 0) -> torch.Tensor:
    """Text by text, token by token, without the first ``first`` ones."""
    found = []
    for row, length in zip(HIDDEN, LENGTHS, strict=True):
        tokens = [row[place] for place in range(first, length)]
        total = torch.stack(tokens).sum(0)
        weighted = sum(row[place] * (place + 1) for place in range(first, length))
        found.append(
            {
                "cls": tokens[0],
                "lasttoken": tokens[-1],
                "max": torch.stack(tokens).max(0).values,
                "mean": total / len(tokens),
                "mean_sqrt_len_tokens": total / len(tokens) ** 0.5,
                "weightedmean": weighted / sum(range(first + 1, length + 1)),
            }[mode]
        )
    return torch.stack(found)


MODES = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_that_of_each_text_alone(mode):
    hidden = HIDDEN.clone()
    hidden[MASK == 0] = 1e6  # padding has no say
    pooling = Pooling((mode,))
    assert torch.allclose(pooling.vectors(hidden, MASK), by_hand(mode), atol=1e-6)
    assert torch.allclose(pooling.vectors(hidden, MASK, prompt=2), by_hand(mode), atol=1e-6)
    assert torch.allclose(Pooling((mode,), includes_prompt=False).vectors(hidden, MASK, 2), by_hand(mode, 2), atol=1e-6)


def write(folder, path, content):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(json.dumps(content))


def modules(*kinds):
    place = {"Pooling": "1_Pooling", "Dense": "2_Dense"}
    return [
        {"name": kind, "type": f"sentence_transformers.models.{kind}", "path": place.get(kind, "")} for kind in kinds
    ]


def test_a_folder_of_sentence_transformers_is_read_whole(tmp_path):
    write(tmp_path, "modules.json", modules("Transformer", "Pooling", "Dense", "Normalize"))
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    write(tmp_path, "1_Pooling/config.json", {"word_embedding_dimension": 4, **old, "include_prompt": False})
    tanh = "torch.nn.modules.activation.Tanh"
    write(tmp_path, "2_Dense/config.json", {"in_features": 8, "out_features": 3, "activation_function": tanh})
    weights = {"linear.weight": torch.randn(3, 8), "linear.bias": torch.randn(3)}
    save_file(weights, tmp_path / "2_Dense/model.safetensors")
    write(tmp_path, "sentence_bert_config.json", {"max_seq_length": 77, "do_lower_case": True})
    prompts = {"query": "query: ", "document": "passage: ", "none": ""}
    write(tmp_path, "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "query"})

    pooling = read_pooling(str(tmp_path))
    assert (pooling.modes, pooling.includes_prompt, pooling.normalizes) == (("cls", "mean"), False, True)
    assert (pooling.length, pooling.lowers, pooling.stated) == (77, True, True)
    assert (pooling.prompt, pooling.prompts) == ("query: ", ("query", "document"))
    assert str(pooling) == "cls+mean, map to 3, normalised"
    joined = torch.cat([by_hand("cls"), by_hand("mean")], -1)
    mapped = torch.tanh(joined @ weights["linear.weight"].T + weights["linear.bias"])
    expected = mapped / mapped.norm(dim=-1, keepdim=True)
    assert torch.allclose(pooling.vectors(HIDDEN, MASK), expected, atol=1e-6)


def test_newer_folders_name_the_mode(tmp_path):
    write(tmp_path, "modules.json", modules("Transformer", "Pooling"))
    for given, modes in (("lasttoken", ("lasttoken",)), (["cls", "max"], ("cls", "max"))):
        write(tmp_path, "1_Pooling/config.json", {"embedding_dimension": 4, "pooling_mode": given})
        assert read_pooling(str(tmp_path)).modes == modes


def test_a_folder_that_says_nothing_takes_the_mean_and_no_prompt(tmp_path):
    pooling = read_pooling(str(tmp_path))
    assert (pooling.modes, pooling.prompt, pooling.length, pooling.stated) == (("mean",), "", None, False)
    assert str(pooling) == "mean"


POOLS = modules("Transformer", "Pooling")
DENSE = modules("Transformer", "Dense")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": {}}, r"modules.json: not a file of sentence-transformers; get the whole model"),
        ({"modules.json": ["Pooling"]}, r"modules.json: not a file of sentence-transformers"),
        ({"modules.json": modules("Transformer", "LSTM")}, r"modules.json: a module 'LSTM', which is not read here"),
        ({"modules.json": POOLS}, r"1_Pooling/config.json: no pooling mode; the modes are cls, max, mean"),
        (
            {"modules.json": POOLS, "1_Pooling/config.json": {"pooling_mode": "sum"}},
            r"pooling_mode 'sum'; the modes are",
        ),
        ({"sentence_bert_config.json": {"max_seq_length": "256"}}, r"max_seq_length = '256' is not a number of tokens"),
        ({"modules.json": DENSE}, r"2_Dense: no model.safetensors: no weights that are safe to load"),
        (
            {"modules.json": DENSE, "2_Dense/config.json": {"activation_function": "os.system"}},
            r"2_Dense/config.json: activation_function = os.system is none of torch.nn",
        ),
        (
            {"modules.json": DENSE, "2_Dense/config.json": {"activation_function": "my.Tanh"}},
            r"2_Dense/config.json: activation_function = my.Tanh is none of torch.nn",
        ),
        (
            {"modules.json": DENSE, "2_Dense/config.json": {"use_residual": True}},
            r"use_residual = true is not read here",
        ),
    ],
)
def test_files_that_are_not_read_are_named_in_one_line(tmp_path, files, message):
    for path, content in files.items():
        write(tmp_path, path, content)
    with pytest.raises(UserError, match=message) as error:
        read_pooling(str(tmp_path))
    assert "\n" not in str(error.value)


def test_no_code_of_a_folder_is_named_into_being(tmp_path):
    write(tmp_path, "modules.json", [{"type": "evil.Pooling2", "path": ""}])
    with pytest.raises(UserError, match="a module 'Pooling2'"):
        read_pooling(str(tmp_path))


# --- a student's files ------------------------------------------------------------------------------------------------


def st_teacher(folder, **settings):
    """A random teacher of the tiny recipe, with the files of sentence-transformers."""
    make_teacher(folder)
    write(folder, "modules.json", modules("Transformer", "Pooling", "Normalize"))
    write(
        folder,
        "1_Pooling/config.json",
        {"embedding_dimension": 32, "pooling_mode": ["cls", "mean"], "include_prompt": False},
    )
    write(folder, "sentence_bert_config.json", {"max_seq_length": 77, "do_lower_case": True} | settings)
    write(folder, "config_sentence_transformers.json", {"prompts": {"q": "w3 "}, "default_prompt_name": "q"})
    return folder


def test_a_student_of_such_a_teacher_pools_as_it_does(tmp_path):
    st_teacher(tmp_path / "teacher")
    export_untrained(load_recipe(make_recipe(tmp_path)), tmp_path / "start")
    own, theirs = (read_pooling(str(tmp_path / name)) for name in ("start", "teacher"))
    assert own == dataclasses.replace(theirs, length=64)  # the student has no more positions
    assert json.loads((tmp_path / "start/1_Pooling/config.json").read_text())["word_embedding_dimension"] == 16


def test_a_teacher_that_says_nothing_or_too_much_leaves_its_student_as_it_is(tmp_path, capsys):
    make_teacher(tmp_path / "teacher")
    config = load_config(str(tmp_path / "teacher"))
    assert pooling_files(str(tmp_path / "teacher"), "main", config) == {} and capsys.readouterr().out == ""
    write(tmp_path / "teacher", "modules.json", modules("Transformer", "LSTM"))
    assert pooling_files(str(tmp_path / "teacher"), "main", config) == {}
    assert "note: the student's folder will not say how it is pooled: " in capsys.readouterr().out
