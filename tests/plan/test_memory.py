"""The memory model: counted by hand, to the parameter, and compared with what autograd keeps."""

import json
from itertools import pairwise

import pytest
import torch
from transformers import AutoConfig

from pipeline.models import precision
from pipeline.models.configs import planned_config
from pipeline.models.cut import CutEncoder, cut_encoder, split, split_pooled
from pipeline.models.families import family_of
from pipeline.models.fit import student_config_of
from pipeline.models.pooling import Pooling
from pipeline.models.students import build_student
from pipeline.plan.memory import activations
from pipeline.plan.sizes import Cut, Device, cut_of
from pipeline.plan.zero import gathered, student_state
from pipeline.settings.reading import load_recipe
from tests.parts.plans import XXL, XXL_EMBEDDINGS, XXL_LAST, XXL_LAYER


def config_of(kind: str, layers: int = 4, width: int = 48, dropout: float = 0.0):
    names = {"hidden_dim": 4 * width} if kind == "distilbert" else {"intermediate_size": 4 * width}
    config = AutoConfig.for_model(
        kind, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, vocab_size=100, pad_token_id=0,
        max_position_embeddings=64, **names,
    )  # fmt: skip
    for name in family_of(config).dropouts:
        setattr(config, name, dropout)
    if kind == "electra":
        config.embedding_size = width
    return config


def saved_bytes(cut: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes of distinct storages that autograd keeps of a forward, with its outputs, without parameters and buffers."""
    storages = {x.untyped_storage().data_ptr() for x in [*cut.parameters(), *cut.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too, lest its address be used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = cut(ids)
    kept |= {x.untyped_storage().data_ptr(): (x.untyped_storage().nbytes(), x) for x in output}
    return sum(size for size, _ in kept.values())


def trained_cut(config, dtype: torch.dtype) -> CutEncoder:
    return split(build_student(config, 1))[0].to(dtype).train()


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "xlm-roberta-xl", "electra", "distilbert", "modernbert", "eurobert"]
)
def test_a_cut_is_counted_to_the_parameter(kind):
    config = config_of(kind)
    model = build_student(config, 1)
    cut = cut_encoder(model, 3)
    sizes = cut_of(config, 3)
    assert sizes.layers == len(cut.body.layers) == 2
    assert sizes.parameters == sum(p.numel() for p in cut.parameters())
    assert sizes.embeddings == sum(p.numel() for p in cut.embeddings.parameters())
    assert sizes.layer == sum(p.numel() for p in cut.body.layers[1].parameters())
    assert sizes.parameters + sizes.tail == sum(p.numel() for p in model.parameters())
    assert sizes.largest == max(p.numel() for p in cut.parameters())


def test_the_largest_public_teacher_is_counted_by_hand_and_without_its_weights():
    sizes = cut_of(planned_config(XXL), 48)
    assert sizes.embeddings == XXL_EMBEDDINGS
    assert sizes.layer == XXL_LAYER
    assert sizes.body == 47 * XXL_LAYER + XXL_LAST


MODERN = {"modernbert": 0.05, "eurobert": 0.1}  # how much less is counted than there is: norms in eager torch keep more


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "electra", "distilbert", *MODERN])
def test_activations_are_what_autograd_keeps_with_fused_attention(kind, dtype, dropout):
    config = config_of(kind, dropout=dropout)
    for name in [name for name in family_of(config).dropouts if name.startswith("attention_")]:
        setattr(config, name, 0.0)  # a CPU has no fused attention with dropout; on a GPU it keeps no more with it
    cut = trained_cut(config, dtype)
    for module in cut.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = precision.BulkDropout  # which keeps a byte for each number, as a GPU's does
    formula = activations(cut_of(config, 4), 3, 32, dropout, Device(dtype.itemsize))
    assert formula == pytest.approx(saved_bytes(cut, torch.randint(3, 90, (3, 32))), rel=MODERN.get(kind, 0.01))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_pooled_student_is_counted_whole(kind):
    model = build_student(config_of(kind), 1)
    student, _, tail = split_pooled(model, Pooling(), 48)
    sizes = cut_of(config_of(kind), 4, whole=True)
    assert (sizes.layers, sizes.parameters) == (4, sum(p.numel() for p in student.parameters()))
    assert sizes.tail == sum(p.numel() for p in tail.values())
    kept = saved_bytes(student.train(), torch.randint(3, 90, (3, 32)))
    assert activations(sizes, 3, 32, 0.0, Device(4), outputs=0) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_activations_are_what_autograd_keeps_on_this_cpu(name, dropout, monkeypatch):
    config = config_of("bert", dropout=dropout)
    cut = trained_cut(config, precision.DTYPES[name])
    precision.fit_arithmetic(cut, name, torch.device("cpu"), "widened")
    device = Device(precision.DTYPES[name].itemsize, cpu=True, widens=name == "bf16")
    for block in (2**22, 2**10):  # attention's weights whole, or in blocks
        monkeypatch.setattr("pipeline.models.dropout._BLOCK", block)
        formula = activations(cut_of(config, 4), 3, 32, dropout, device)
        assert formula == pytest.approx(saved_bytes(cut, torch.randint(3, 90, (3, 32))), rel=0.01)


# By DeepSpeed's stages over 8 ranks, bytes of a parameter that are always held: weights, masters, moments, gradients.
@pytest.mark.parametrize(
    ("precision_", "stage", "held"),
    [
        ("bf16", 0, 2 + 4 + 8),
        ("bf16", 1, 2 + 4 + (4 + 8) / 8),  # its fp32 gradients are whole
        ("bf16", 2, 2 + (4 + 8) / 8),
        ("fp32", 0, 4 + 8),
        ("fp32", 1, 4 + (4 + 8) / 8),
        ("fp32", 2, 4 + (4 + 8) / 8),
    ],
)
def test_a_students_state_follows_its_stage(precision_, stage, held):
    recipe = load_recipe("minilm_6x384", [f"precision={precision_}", f"student.ds_config=student_zero{stage}.json"])
    cut = cut_of(student_config_of(recipe, planned_config(recipe.teacher.model)), 6)
    state = student_state(cut, recipe, 8, Device(precision.DTYPES[precision_].itemsize))
    assert state.standing == pytest.approx(held * cut.parameters)


def test_stage_3_shards_all_but_its_bucket():
    recipe = load_recipe("minilm_6x384", ["student.ds_config=student_zero3.json"])
    cut = cut_of(student_config_of(recipe, planned_config(recipe.teacher.model)), 6)
    state = student_state(cut, recipe, 8, Device(2))
    assert state.standing == pytest.approx((2 + 4 + 8 + 4) / 8 * cut.parameters + 2 * 50_000_000)
    assert state.forward == 2 * cut.parameters  # autograd holds what was gathered


@pytest.mark.parametrize(
    ("bucket", "limit", "layers"),
    [
        (10**9, 10**9, 10),  # the other five start together and are copied out together, next to their buffer
        (500, 10**9, 2),  # half a layer ahead: a layer, and the buffers that it came in
        (1000, 2000, 2),  # one ahead: a layer, and the next one's buffer
        (1500, 10**9, 5),  # half a layer more at each turn: two copied out at the third, next to two buffers of 1.5
        (0, 10**9, 2),
    ],
)
def test_gathered_layers_follow_what_is_started_ahead(tmp_path, bucket, limit, layers):
    zero = {"stage": 3, "stage3_prefetch_bucket_size": bucket, "stage3_max_live_parameters": limit}
    (tmp_path / "own.json").write_text(json.dumps({"zero_optimization": zero}))
    recipe = load_recipe("minilm_6x384", [f"teacher.ds_config={tmp_path}/own.json"])
    cut = Cut(6, 8, 8, 1, 0, 1000, 0, 0, 0)
    assert gathered(cut, 4, recipe, Device(2)) == 2 * 1000 * layers
    assert gathered(cut, 1, recipe, Device(2)) == 0


def test_memory_grows_with_the_micro_batch_in_every_family():
    for kind in ("bert", "xlm-roberta-xl"):
        sizes = cut_of(config_of(kind), 4)
        kept = [activations(sizes, batch, 64, 0.1, Device(2)) for batch in (1, 2, 4)]
        assert all(after == 2 * before for before, after in pairwise(kept))
