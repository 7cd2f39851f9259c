"""A teacher's config: read from its own file, published shapes only to plan with, and what of it decides outputs."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from transformers import AutoConfig

from data_prep.cli import UserError
from pipeline.models.configs import DECIDING, deciding_values, planned_config, takes_published_shape
from pipeline.models.families import FAMILIES
from pipeline.models.loading import load_config
from tests.parts.tiny import make_teacher

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
