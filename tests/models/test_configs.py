"""A teacher's config: read from its own file, published shapes only to plan with, and what of it decides outputs."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from transformers import AutoConfig

from data_prep.cli import UserError
from pipeline.artifacts.checkpoints import Checkpoint
from pipeline.models.configs import DECIDING, changed_values, deciding_values, planned_config, takes_published_shape
from pipeline.models.families import FAMILIES
from pipeline.models.loading import load_config
from pipeline.settings.reading import load_recipe
from pipeline.training.resuming import check_same_config
from tests.parts.tiny import make_recipe, make_teacher

BERT = "google-bert/bert-base-uncased"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What names, trains, or belongs to heads and decoders; token ids other than the padding's.
NOT_DECIDING = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id", "problem_type",
    "return_dict", "output_attentions", "output_hidden_states", "use_cache", "chunk_size_feed_forward", "is_encoder_decoder",
    "add_cross_attention", "tie_word_embeddings", "pretraining_tp", "deterministic_flash_attn",
    "initializer_range", "initializer_cutoff_factor", "attention_dropout", "attention_probs_dropout_prob", "dropout",
    "embedding_dropout", "hidden_dropout_prob", "mlp_dropout", "classifier_dropout", "qa_dropout", "seq_classif_dropout",
    "classifier_activation", "classifier_bias", "classifier_pooling", "decoder_bias", "sparse_prediction",
    "sparse_pred_ignore_index", "summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj",
    "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id",
}  # fmt: skip


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """BERT's id in a hub's cache, with a config.json of its own."""
    cache = tmp_path / "hub"
    folder = cache / f"models--{BERT.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "bert", "layer_norm_eps": 1e-3}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return snapshot


def test_the_config_of_a_known_teacher_is_read_from_its_own_file(fetched):
    assert load_config(BERT).layer_norm_eps == 1e-3
    assert planned_config(BERT).layer_norm_eps == 1e-3 and not takes_published_shape(BERT)
    assert takes_published_shape(BERT, "another-revision")


def test_a_folder_of_a_known_teachers_name_is_that_folder(tmp_path, monkeypatch):
    make_teacher(tmp_path / BERT)
    monkeypatch.chdir(tmp_path)
    assert load_config(BERT).hidden_size == planned_config(BERT).hidden_size == 32


def test_a_published_shape_is_for_plans_only(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert takes_published_shape(BERT) and planned_config(BERT).hidden_size == 768
    with pytest.raises(UserError, match=f"{BERT}: no such folder, and not to be had from the hub"):
        load_config(BERT)
    with pytest.raises(UserError, match="models/none: no such folder, and not to be had from the hub"):
        planned_config("models/none")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_of_a_config_decides_outputs_or_is_known_not_to(family):
    keys = AutoConfig.for_model(family).to_dict().keys()
    assert sorted(keys - set(DECIDING) - NOT_DECIDING) == []


def test_what_a_config_is_called_decides_nothing(tmp_path):
    config = load_config(str(make_teacher(tmp_path / "teacher")))
    path = tmp_path / "teacher" / "config.json"
    values = json.loads(path.read_text())
    others = {"transformers_version": "4.0.0", "dtype": "float16", "_name_or_path": "x", "hidden_dropout_prob": 0.3}
    path.write_text(json.dumps(values | others))
    assert deciding_values(load_config(str(path.parent))) == deciding_values(config)
    path.write_text(json.dumps(values | {"layer_norm_eps": 1e-5}))
    changed = deciding_values(load_config(str(Path(path.parent))))
    assert changed == deciding_values(config) | {"layer_norm_eps": 1e-5}


ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 160000.0}}


@pytest.mark.parametrize(
    "before, now, changed",
    [
        ({"num_hidden_layers": 12, "n_layers": 6}, {"num_hidden_layers": 3, "n_layers": 3}, []),
        ({"layer_types": ["a", "b", "a", "b"]}, {"layer_types": ["a", "b", "a"]}, []),
        ({"layer_types": ["a", "b", "a"]}, {"layer_types": ["a", "a", "a"]}, ["layer_types"]),
        ({"pad_token_id": 0}, {"pad_token_id": None}, []),
        ({"rope_parameters": ROPE}, {"rope_parameters": ROPE | {"sliding_attention": {"rope_theta": 1.0}}}, []),
        (
            {"rope_parameters": ROPE},
            {"rope_parameters": {"full_attention": {"rope_theta": 1e4, "new": 1}}},
            ["rope_parameters.full_attention.rope_theta"],
        ),
        ({"position_embedding_type": "absolute", "hidden_act": "gelu"}, {"hidden_act": "gelu", "head_dim": 8}, []),
        ({"hidden_act": "gelu", "layer_norm_eps": 1e-12}, {"hidden_act": "relu", "layer_norm_eps": 1e-5}, None),
    ],
)
def test_only_what_the_layers_in_use_compute_by_is_a_change(before, now, changed):
    keys = [key for key, *_ in changed_values(before, now, 3, after_padding=False)]
    assert keys == (sorted(before) if changed is None else changed)


@pytest.mark.parametrize("family, rejected", [("bert", False), ("roberta", True)])
def test_another_padding_counts_where_positions_begin_after_it(tmp_path, family, rejected):
    recipe = load_recipe(make_recipe(tmp_path))
    then, now = (AutoConfig.for_model(family, pad_token_id=pad, num_hidden_layers=n) for pad, n in ((1, 12), (0, 3)))
    teacher = {"config": deciding_values(then)}
    checkpoint = Checkpoint(tmp_path, {"recipe": recipe.to_dict(), "teacher": teacher})
    if rejected:
        with pytest.raises(UserError, match=r"config.json: pad_token_id = 0, but .* on a teacher with 1; use another"):
            check_same_config(checkpoint, recipe, now)
    else:
        check_same_config(checkpoint, recipe, now)
    check_same_config(Checkpoint(tmp_path, checkpoint.info | {"teacher": {}}), recipe, now)  # of before it was recorded


@pytest.mark.parametrize(
    "values, named",
    [
        ({"type_vocab_size": None}, "Field 'type_vocab_size' expected int, got NoneType"),
        ({"layer_norm_eps": "1e-5"}, "Field 'layer_norm_eps' expected float, got str (value: '1e-5')"),
        ({"rope_parameters": 3}, "'validate_rope': TypeError: 'int' object is not iterable"),
        ({"id2label": 3}, "cannot be loaded ('int' object has no attribute 'items')"),
        ({"dtype": "foo"}, "cannot be loaded (module 'torch' has no attribute 'foo')"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(tmp_path, values, named):
    path = make_teacher(tmp_path / "teacher") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(UserError) as error:
        load_config(str(path.parent))
    said = str(error.value)
    assert said.startswith(f"{path.parent}: ") and named in said and "\n" not in said
    assert "config.json: " in said or "cannot be loaded" in named
