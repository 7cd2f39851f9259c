"""models.weights and the empty encoder: tensor by tensor the same as transformers' own loading, family by family."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM

from data_prep.cli import UserError
from pipeline.models.configs import planned_config
from pipeline.models.cut import cut_encoder, empty_encoder
from pipeline.models.loading import load_config, weights_of
from pipeline.models.weights import weights_hash
from tests.models.test_encoders import FAMILIES
from tests.parts.tiny import make_teacher


def filled(folder, layer=3):
    """The cut at ``layer`` of the model in ``folder``, filled through Weights; and its names."""
    config = load_config(str(folder))
    cut, names = empty_encoder(config, layer, padding=config.pad_token_id)
    assert all(p.is_meta for p in cut.parameters()) and not any(b.is_meta for b in cut.buffers())
    weights = weights_of(str(folder), "main", config)
    weights.check({names[name]: p.shape for name, p in cut.named_parameters()})
    cut.load_state_dict({name: weights.tensor(names[name]) for name in names}, strict=False, assign=True)
    return cut.float()


def assert_same_output(cut, folder, layer=3):
    whole = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    expected = cut_encoder(whole, layer, padding=whole.config.pad_token_id)
    ids = torch.randint(5, 50, (2, 11), generator=torch.Generator().manual_seed(1))
    ids[1, 7:] = whole.config.pad_token_id
    with torch.no_grad():
        assert all(map(torch.equal, cut(ids), expected(ids)))
    assert weights_hash(cut.parameters()) == weights_hash(expected.parameters())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_read_tensor_by_tensor_a_teacher_is_what_transformers_loads(tmp_path, model_type):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    assert_same_output(filled(folder), folder)


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "electra", "distilbert"])
def test_a_model_with_a_head_and_in_several_files_is_read_too(tmp_path, model_type):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    config = load_config(str(folder))
    (folder / "model.safetensors").unlink()
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    assert_same_output(filled(folder), folder)


def test_the_former_names_of_layer_norms_are_known(tmp_path):
    folder = make_teacher(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    former = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for now, then in former.items():
            name = name.replace(now, then)
        renamed["bert." + name] = tensor
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    assert_same_output(filled(folder), folder)


def test_only_what_the_cut_needs_must_be_there(tmp_path):
    folder = make_teacher(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("encoder.layer.3.", "pooler."))}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    filled(folder, layer=3)
    with pytest.raises(UserError, match=r"the weights lack 6 tensors, first encoder.layer.3.attention.self.key.bias"):
        filled(folder, layer=4)


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    folder = make_teacher(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(UserError, match=r"model.safetensors: encoder.layer.0.*has the shape .*config.json says .*64"):
        filled(folder)


def test_a_truncated_file_is_refused_in_one_line(tmp_path):
    folder = make_teacher(tmp_path)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read") as error:
        filled(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("not json", "not an index of safetensors files"),
        ('{"weight_map": 5}', "not an index of safetensors files"),
        (
            '{"weight_map": {"a": "../secret.safetensors"}}',
            r"names \.\./secret.safetensors, which is not in this folder",
        ),
        ('{"weight_map": {"a": "model-1.safetensors"}}', "names model-1.safetensors, which is not in this folder"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, content, message):
    folder = make_teacher(tmp_path / "teacher")
    (tmp_path / "secret.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=message):
        filled(folder)


def test_what_the_hub_does_not_have_is_one_line(tmp_path):
    config = planned_config("google-bert/bert-base-uncased")
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and not to be had from the hub") as error:
        weights_of("nobody/nothing", "main", config).check({})
    assert "\n" not in str(error.value)
