"""models.cut and the rest: the cut models against the whole ones, family by family."""

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from data_prep.cli import UserError
from pipeline import assets
from pipeline.models.configs import planned_config
from pipeline.models.counting import forward_flops
from pipeline.models.cut import CutEncoder, cut_encoder, empty_encoder, split, split_pooled
from pipeline.models.families import family_of, global_layers, longest_input
from pipeline.models.loading import load_config, load_model, load_tokenizer, weights_of
from pipeline.models.pooling import Pooling
from pipeline.models.precision import widen_products
from pipeline.models.students import (
    build_student,
    copy_every_kth_layer,
    principal_components,
    project_embeddings,
    student_config,
    student_ffn,
)
from pipeline.models.weights import weights_hash
from pipeline.relations import relation
from tests.parts.launching import ROOT
from tests.parts.tiny import make_teacher

FAMILIES = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "xlm-roberta-xl": {"pad_token_id": 1},
    "electra": {"embedding_size": 16},
    "distilbert": {"hidden_dim": 128},
    "modernbert": {"local_attention": 8, "attention_dropout": 0.1, "mlp_dropout": 0.1, "embedding_dropout": 0.1},
    "eurobert": {"num_key_value_heads": 2, "attention_dropout": 0.1},
}
MODERN = ("modernbert", "eurobert")  # their queries and keys are rotated by position


def whole_qkv(model, ids, mask, layer, **others):
    """q, k, v of a layer of the uncut model, [B, T, width] each, as its attention is given them.

    Keys and values that heads share are repeated for each. Of a rotated head, features i and i + half are put side by side.
    """
    caught = []

    def note(module, query, key, value, *arguments, **options):
        caught.append((query, key, value))
        return sdpa_attention_forward(module, query, key, value, *arguments, **options)

    AttentionInterface.register("noting", note)
    AttentionMaskInterface.register("noting", sdpa_mask)
    usual, model.config._attn_implementation = model.config._attn_implementation, "noting"
    model(ids, attention_mask=mask, **others)
    model.config._attn_implementation = usual
    heads, size = model.config.num_attention_heads, caught[0][0].shape[-1]
    order = torch.arange(size)
    if model.config.model_type in MODERN:
        order = order.view(2, -1).T.flatten()
    own = (x.repeat_interleave(heads // x.shape[1], 1) for x in caught[layer - 1])
    return [x.transpose(1, 2)[..., order].flatten(2) for x in own]


def padded_batch(pad, length=12):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 50, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, real in enumerate((length, 1, 7)):
        ids[row, real:], mask[row, real:] = pad, 0
    return ids, mask


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_cut_equals_the_whole_model_bit_for_bit(tmp_path, model_type, layer):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids, mask = padded_batch(model.config.pad_token_id)
    cut = cut_encoder(model, layer)
    with torch.no_grad():
        for this_mask, expected in (
            (mask, whole_qkv(model, ids, mask, layer)),
            (None, whole_qkv(model, ids, None, layer)),
        ):
            for ours, theirs in zip(cut(ids, this_mask), expected, strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padding_never_changes_the_output_at_real_positions(tmp_path, model_type):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    pad = model.config.pad_token_id
    ids, mask = padded_batch(pad)
    cut = cut_encoder(model, 4, padding=pad)
    longer = torch.cat([ids, torch.full((3, 9), pad)], 1)
    with torch.no_grad():
        assert all(map(torch.equal, cut(ids), cut_encoder(model, 4)(ids, mask)))
        for row, real in enumerate(mask.sum(1).tolist()):
            alone = cut_encoder(model, 4)(ids[row : row + 1, :real])
            for padded in (cut(ids), cut(longer)):
                for ours, theirs in zip(padded, alone, strict=True):
                    torch.testing.assert_close(ours[row, :real], theirs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_who_is_told_whether_anything_is_padded_computes_what_one_who_looks_does(tmp_path, model_type):
    extra = FAMILIES[model_type]
    pad = extra.get("pad_token_id", 0)
    model = AutoModel.from_pretrained(make_teacher(tmp_path / "teacher", model_type, **extra))
    cut = cut_encoder(model.eval(), 4, padding=pad)
    ids, _ = padded_batch(pad)
    for told, batch in ((True, ids), (False, ids[:1])):
        assert bool((batch == pad).any()) == told
        looked, answered = cut(batch), cut(batch, padded=told)
        assert all(map(torch.equal, looked, answered))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_earlier_layers_tell_what_they_project_bit_for_bit(tmp_path, model_type):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids, mask = padded_batch(model.config.pad_token_id)
    with torch.no_grad():
        several = cut_encoder(model, 4, earlier=(1, 3))(ids, mask)
        alone = [cut_encoder(model, layer)(ids, mask) for layer in (1, 3, 4)]
    for number, theirs in enumerate(alone):
        assert all(torch.equal(x[number::3], own) for x, own in zip(several, theirs, strict=True))
    assert several.q.shape[0] == 3 * len(ids)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_pooled_encoder_has_the_hidden_states_of_the_whole_model_bit_for_bit(tmp_path, model_type):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    pad = model.config.pad_token_id
    ids, mask = padded_batch(pad)
    pooling = Pooling(("cls", "mean"))
    encoder = CutEncoder(model, 4, padding=pad, pooling=pooling)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state
        assert torch.equal(encoder.body(*encoder.embed(ids)), expected)
        assert torch.equal(encoder(ids)[0], pooling.vectors(expected, mask)[:, None])
        assert torch.equal(encoder(ids[:1], padded=False)[0], encoder(ids[:1])[0])
        empty, names = empty_encoder(model.config, 4, pad, pooling=pooling)
        own = model.state_dict()
        empty.load_state_dict(
            {name: own[names[name]] for name, _ in empty.named_parameters()}, strict=False, assign=True
        )
        assert torch.equal(empty(ids)[0], encoder(ids)[0])


@pytest.mark.parametrize("width, mapped", [(32, False), (20, True)])
def test_a_student_has_a_map_where_its_vectors_are_not_as_wide_as_the_teachers(tmp_path, width, mapped):
    model = AutoModel.from_pretrained(make_teacher(tmp_path), dtype=torch.float32).eval()
    theirs = Pooling(("mean",), maps=(torch.nn.Sequential(torch.nn.Linear(32, 20), torch.nn.Tanh()),), normalizes=True)
    assert (Pooling(("cls", "mean")).width(32), theirs.width(32)) == (64, 20)
    encoder, names, tail = split_pooled(model, theirs, width, padding=0, seed=3)
    again, _, _ = split_pooled(model, theirs, width, padding=0, seed=3)
    ids, mask = padded_batch(0)
    with torch.no_grad():
        plain = Pooling().vectors(model(ids, attention_mask=mask).last_hidden_state, mask)[:, None]
        expected = plain @ encoder.vector_map.weight.T if mapped else plain
        torch.testing.assert_close(encoder(ids)[0], expected)
        assert torch.equal(encoder(ids)[0], again(ids)[0])
        own = torch.arange(50).flip(0)  # of another vocabulary
        other, _, _ = split_pooled(model, Pooling(), 32, padding=0, own_ids=own)
        hidden = model(own[ids], attention_mask=mask).last_hidden_state
        torch.testing.assert_close(other(ids)[0], Pooling().vectors(hidden, mask)[:, None])
    assert ("vector_map.weight" in names) == mapped and all(name.startswith("pooler.") for name in tail)
    assert {*names.values()} | {*tail} == {name for name, _ in model.named_parameters()} | (
        {"vector_map.weight"} if mapped else set()
    )


@pytest.mark.parametrize("model_type", MODERN)
def test_the_relation_of_queries_and_keys_is_the_layers_own_attention(tmp_path, model_type):
    """Only q and k that are rotated tell what a position attends to."""
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids, _ = padded_batch(model.config.pad_token_id)
    with torch.no_grad():
        expected = model(ids, output_attentions=True).attentions[3]
        q, k, _ = cut_encoder(model, 4)(ids)
    torch.testing.assert_close(relation(q, k, 4), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("model_type", MODERN)
def test_relations_of_rotated_heads_follow_from_distance_however_the_heads_are_split(tmp_path, model_type, heads):
    """Of one token over and over, every position has the same q and k but for its rotation: a map of equal diagonals."""
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        q, k, v = cut_encoder(model, 4)(torch.full((1, 12), 7))
    for a, b in ((q, k), (q, q), (k, k)):
        logits = torch.einsum("btrd,bsrd->brts", *(x.unflatten(-1, (heads, -1)) for x in (a, b)))
        torch.testing.assert_close(logits[..., 1:, 1:], logits[..., :-1, :-1], rtol=1e-4, atol=1e-4)
        assert logits.std(-1).max() > 0.1  # and it does follow from it
    assert torch.allclose(v, v[:, :1], atol=1e-5)


@pytest.fixture(scope="module")
def real_teacher():
    try:
        assets.fetch(ROOT / assets.FOLDER)
    except UserError as error:
        pytest.skip(f"the real teacher cannot be fetched: {error}")
    return str(ROOT / assets.FOLDER / "teacher")


@pytest.mark.parametrize("layer", [3, 6])
def test_the_cut_of_the_real_teacher_equals_the_whole_bit_for_bit(real_teacher, layer):
    model = load_model(real_teacher, "main", torch.float32)
    texts = ["MiniLM distils self-attention.", "Short.", "The value relation is the scaled dot-product of values."]
    batch = load_tokenizer(real_teacher)(texts, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert not mask.all()
    with torch.no_grad():
        expected = whole_qkv(model, ids, mask, layer)
        for ours, theirs in zip(cut_encoder(model, layer)(ids, mask), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_the_tokens_of_a_second_segment_are_embedded_as_the_whole_model_does(tmp_path, model_type):
    model = AutoModel.from_pretrained(make_teacher(tmp_path, model_type)).eval()
    ids, mask = padded_batch(0)
    second = torch.arange(ids.shape[1])[None] > torch.tensor([[5], [0], [3]])
    cut = cut_encoder(model, 3, padding=0)
    with torch.no_grad():
        expected = whole_qkv(model, ids, mask, 3, token_type_ids=second.long())
        ours, single = cut(ids, second=second), cut(ids)
    real = mask.bool()
    for name in ("q", "k", "v"):
        theirs = expected["qkv".index(name)]
        torch.testing.assert_close(getattr(ours, name)[real], theirs[real])
        assert not torch.equal(getattr(ours, name)[real], getattr(single, name)[real])


def test_a_model_without_segments_reads_a_pair_as_one_text(tmp_path):
    cut = cut_encoder(AutoModel.from_pretrained(make_teacher(tmp_path, "roberta", type_vocab_size=1)).eval(), 3)
    ids, _ = padded_batch(7)
    with torch.no_grad():
        assert torch.equal(cut(ids, second=torch.ones_like(ids, dtype=torch.bool)).q, cut(ids).q)


def test_the_cut_runs_nothing_above_its_layer(tmp_path):
    model = AutoModel.from_pretrained(make_teacher(tmp_path)).eval()
    cut = cut_encoder(model, 2)
    kept = sum(p.numel() for p in cut.parameters())
    layer = sum(p.numel() for p in model.encoder.layer[0].parameters())
    projections = 3 * (32 * 32 + 32)
    assert kept == sum(p.numel() for p in model.embeddings.parameters()) + layer + projections


def test_the_tail_and_the_cut_make_the_whole_student():
    config = student_config(planned_config("google-bert/bert-base-uncased"), 2, 24, 4, 96, 0.1)
    model = build_student(config, seed=1)
    cut, names, tail = split(model)
    assert sorted([*names.values(), *tail]) == sorted(name for name, _ in model.named_parameters())
    assert all(name.startswith(("encoder.layer.1.", "pooler.")) for name in tail)
    assert "encoder.layer.1.attention.output.dense.weight" in tail
    assert "encoder.layer.1.attention.self.value.weight" not in tail
    parameters = dict(model.named_parameters())
    assert all(parameter is parameters[names[name]] for name, parameter in cut.named_parameters())


def test_a_student_follows_from_its_seed_alone():
    config = student_config(planned_config("google-bert/bert-base-uncased"), 1, 24, 4, 96, 0.1)
    torch.manual_seed(1)
    first = weights_hash(build_student(config, 5).parameters())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert weights_hash(build_student(config, 5).parameters()) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_hash(build_student(config, 6).parameters()) != first


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_student_is_a_small_model_of_the_teachers_family(tmp_path, model_type):
    teacher = load_config(str(make_teacher(tmp_path, model_type, **FAMILIES[model_type])))
    student = student_config(teacher, 2, 24, 2, 96, 0.25)
    assert (student.model_type, student.vocab_size) == (model_type, teacher.vocab_size)
    assert (student.num_hidden_layers, student.hidden_size, student.num_attention_heads) == (2, 24, 2)
    family = family_of(student)
    assert getattr(student, family.ffn) == 96
    assert {getattr(student, name) for name in family.dropouts} == {0.25}
    q, _, v = split(build_student(student, 0))[0].eval()(torch.full((2, 5), 7))
    assert q.shape == v.shape == (2, 5, 24)


@pytest.mark.parametrize(
    "layers, last, expected", [(2, 4, [2, 4]), (3, 4, [1, 3, 4]), (1, 3, [3]), (4, 4, [1, 2, 3, 4])]
)
@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta-xl", "distilbert", "modernbert", "eurobert"])
def test_teacher_initialisation_copies_evenly_spaced_layers(tmp_path, model_type, layers, last, expected):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    teacher = AutoModel.from_pretrained(folder, dtype=torch.float32)
    config = student_config(teacher.config, layers, 32, 4, 128, 0.0, last)
    student = build_student(config, seed=0)
    weights = weights_of(str(folder), "main", teacher.config)
    assert copy_every_kth_layer(weights, student, last) == expected
    family = family_of(student.config)
    for own, number in zip(family.layers(student), expected, strict=True):
        theirs = dict(family.layers(teacher)[number - 1].named_parameters())
        for name, ours in own.named_parameters():  # ModernBERT's first layer has a norm less than the others
            assert torch.equal(ours, theirs[name])
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)


def summed(model, ids):
    """Embeddings of words, positions and token types, added up as the model does before its norm: [T, width]."""
    found = {}
    module = family_of(model.config).embeddings(model)
    norm = next(one for one in module.modules() if isinstance(one, torch.nn.LayerNorm))
    norm.register_forward_pre_hook(lambda _, given: found.update(sum=given[0]))
    with torch.no_grad():
        module(torch.tensor([ids]))
    return found["sum"][0]


@pytest.mark.parametrize("to", ["teacher", "bert"])
@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "xlm-roberta-xl", "electra", "distilbert"])
def test_projected_embeddings_of_full_width_are_the_teachers_turned(tmp_path, model_type, to):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    teacher = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    width = teacher.get_input_embeddings().weight.shape[1]
    kind = None if to == "teacher" else to
    student = build_student(student_config(teacher.config, 1, width, 2, 64, 0.0, model_type=kind), 0)
    weights = weights_of(str(folder), "main", teacher.config)
    project_embeddings(weights, teacher.config, student)
    ids = [2, 40, 7, 7, 31, 3]
    if hasattr(family_of(teacher.config).embeddings(teacher), "LayerNorm"):
        if model_type == "distilbert" and to == "bert":  # a table that the teacher has not stays random
            torch.nn.init.zeros_(student.embeddings.token_type_embeddings.weight)
        theirs, own = summed(teacher, ids), summed(student, ids)
    else:  # XLM-R-XL has no norm there
        theirs, own = (model.get_input_embeddings().weight.detach()[ids] for model in (teacher, student))
    assert torch.allclose(theirs @ theirs.T, own @ own.T, atol=1e-4)
    assert not torch.allclose(theirs, own, atol=1e-2)


@pytest.mark.parametrize("model_type", ["modernbert", "eurobert"])
def test_projected_embeddings_of_a_teacher_without_positions_are_its_words(tmp_path, model_type):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    config = load_config(str(folder))
    weights = weights_of(str(folder), "main", config)
    student = build_student(student_config(config, 1, 24, 2, 96, 0.0, model_type="bert"), 0)
    positions = student.embeddings.position_embeddings.weight.clone()
    project_embeddings(weights, config, student)
    words = AutoModel.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight.detach()
    assert torch.equal(student.get_input_embeddings().weight, torch.matmul(words, principal_components(words, 24)))
    assert torch.equal(student.embeddings.position_embeddings.weight, positions)


def test_a_trimmed_student_is_projected_by_the_pieces_that_it_has(tmp_path):
    folder = make_teacher(tmp_path)
    config = load_config(str(folder))
    ids = np.full(50, -1, np.int32)
    ids[[0, 1, 2, 3, 4, *range(20, 45)]] = np.arange(30)
    student = build_student(student_config(config, 1, 24, 2, 96, 0.0, ids=ids), 0)
    project_embeddings(weights_of(str(folder), "main", config), config, student, ids)
    words = AutoModel.from_pretrained(folder, dtype=torch.float32).get_input_embeddings().weight.detach()[ids >= 0]
    assert torch.equal(student.get_input_embeddings().weight, words @ principal_components(words, 24))


def test_principal_components_keep_what_differs_most_and_follow_from_the_table_alone():
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(9000, 5, generator=generator) * torch.tensor([9.0, 3.0, 1.0, 0.2, 0.1])
    turned = table @ torch.linalg.qr(torch.randn(5, 5, generator=generator)).Q + 4.0
    found = principal_components(turned, 2)
    assert torch.allclose(found.T @ found, torch.eye(2), atol=1e-6)
    # The first right singular vectors of the centred rows are the same directions.
    _, _, right = torch.linalg.svd(turned.double() - turned.double().mean(0), full_matrices=False)
    assert torch.allclose((found.double().T @ right[:2].T).abs(), torch.eye(2).double(), atol=1e-5)
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()
    assert torch.allclose(principal_components(turned.flip(0), 2), found, atol=1e-5)


@pytest.mark.parametrize("layers, kinds", [(1, "g"), (2, "lg"), (3, "glg"), (4, "gllg"), (6, "gglllg")])
def test_a_students_layers_attend_as_those_of_the_teacher_in_their_place(tmp_path, layers, kinds):
    teacher = load_config(str(make_teacher(tmp_path, "modernbert", **FAMILIES["modernbert"])))
    assert global_layers(teacher) == [1, 4]
    student = student_config(teacher, layers, 24, 2, 96, 0.0, 4)
    assert global_layers(student) == [number for number, kind in enumerate(kinds, 1) if kind == "g"]
    assert student_config(teacher, 1, 24, 2, 96, 0.0, 1).layer_types == ["full_attention"]


@pytest.mark.parametrize("heads, shared", [(4, 2), (2, 1), (3, 3)])
def test_a_students_heads_share_keys_as_the_teachers_do_where_they_can(tmp_path, heads, shared):
    teacher = load_config(str(make_teacher(tmp_path, "eurobert", **FAMILIES["eurobert"])))
    student = student_config(teacher, 2, 24, heads, 96, 0.0)
    assert (student.num_key_value_heads, student.head_dim) == (shared, 24 // heads)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_bert_student_of_any_teacher_has_its_vocabulary_padding_and_length(tmp_path, model_type):
    teacher = load_config(str(make_teacher(tmp_path, model_type, **FAMILIES[model_type])))
    student = student_config(teacher, 2, 24, 2, 96, 0.25, model_type="bert")
    assert (student.model_type, student.hidden_dropout_prob, student.intermediate_size) == ("bert", 0.25, 96)
    assert (student.vocab_size, student.pad_token_id) == (teacher.vocab_size, teacher.pad_token_id)
    assert longest_input(student) == longest_input(teacher)
    assert build_student(student, 0).config.num_hidden_layers == 2


def test_a_gated_ffn_keeps_the_teachers_proportion_and_others_are_the_papers(tmp_path):
    folder = make_teacher(tmp_path, "modernbert", **FAMILIES["modernbert"], intermediate_size=48)
    assert student_ffn(load_config(str(folder)), 24) == 36
    assert student_ffn(planned_config("google-bert/bert-base-uncased"), 24) == 96


@pytest.mark.parametrize("layer", [1, 4])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_operations_are_those_of_every_linear_layer_and_of_attention(tmp_path, model_type, layer):
    config = load_config(str(make_teacher(tmp_path, model_type, **FAMILIES[model_type])))
    body = empty_encoder(config, layer)[0].body
    linear = sum(m.weight.numel() for m in body.modules() if isinstance(m, torch.nn.Linear))
    expected = 2 * 12 * linear + (layer - 1) * 2 * 2 * 12 * 12 * 32
    assert forward_flops(config, layer, 12) == expected
    whole = empty_encoder(config, 4, pooling=Pooling())[0].body
    linear = sum(m.weight.numel() for m in whole.modules() if isinstance(m, torch.nn.Linear))
    assert forward_flops(config, 4, 12, whole=True) == 2 * 12 * linear + 4 * 2 * 2 * 12 * 12 * 32


def test_heads_that_are_not_as_wide_as_the_model_together_are_refused(tmp_path):
    config = load_config(str(make_teacher(tmp_path, "eurobert", head_dim=16)))
    with pytest.raises(UserError, match=r"head_dim = 16: 4 heads of it are not hidden_size = 32"):
        empty_encoder(config, 4)


def test_roberta_has_two_positions_fewer_than_its_table(tmp_path):
    assert longest_input(planned_config("FacebookAI/roberta-base")) == 512
    assert longest_input(planned_config("google-bert/bert-base-uncased")) == 512


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model type 'gpt2' is not supported; supported are bert, roberta"):
        load_config(str(tmp_path))


def test_weights_that_lack_a_tensor_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = make_teacher(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.attention.self.query.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, first encoder.layer.1.attention.self.query.weight"):
        load_model(str(folder), "main", torch.float32)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"not safetensors at all"])
def test_damaged_weights_are_refused_in_one_line(tmp_path, damage):
    folder = make_teacher(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(UserError, match="cannot be loaded") as error:
        load_model(str(folder), "main", torch.float32)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_widened_products_give_what_bf16_arithmetic_gives(tmp_path):
    """Rounding once at the end is what a bf16 unit does; torch's own bf16 loop on any CPU does the same."""
    model = AutoModel.from_pretrained(make_teacher(tmp_path), dtype=torch.bfloat16).eval()
    ids, mask = padded_batch(0)
    with torch.no_grad():
        plain = cut_encoder(model, 4)(ids, mask)
        cut = cut_encoder(model, 4)
        widen_products(cut)
        wide = cut(ids, mask)
        exact = cut_encoder(AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval(), 4)(ids, mask)
    real = mask.bool()
    for a, b, c in zip(plain, wide, exact, strict=True):
        assert b.dtype == torch.bfloat16
        plain_error, wide_error = ((x[real].float() - c[real]).abs().mean() for x in (a, b))
        assert wide_error < 1.2 * plain_error  # no worse than bf16 arithmetic
        assert wide_error > 0  # and still bf16


def test_the_papers_teachers_have_their_own_norms():
    """As their config.json says: RoBERTa and what follows it, also where the file is not fetched."""
    for name in ("FacebookAI/roberta-base", "FacebookAI/xlm-roberta-large", "facebook/xlm-roberta-xl"):
        assert planned_config(name).layer_norm_eps == 1e-5
    assert planned_config("google-bert/bert-base-uncased").layer_norm_eps == 1e-12
