"""models.precision: dropout on CPUs against its literal formula, and in statistics."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.evaluate import finetune
from pipeline.measuring import usual_dtype
from pipeline.models import dropout, precision
from pipeline.models.cut import cut_encoder, empty_encoder
from tests.models.test_encoders import FAMILIES, padded_batch
from tests.parts.tiny import make_teacher

CPU = torch.device("cpu")
LAYER = SimpleNamespace(is_causal=False)  # all that an attention function reads of its module


def bulk_dropout(p):
    module = nn.Sequential(nn.Dropout(p))
    precision.fit_arithmetic(module, "fp32", CPU)
    return module.train()


@pytest.mark.parametrize("own", [False, True])
def test_a_gpu_that_emulates_bf16_is_not_one_that_has_it(monkeypatch, own):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or own)
    monkeypatch.setattr(finetune, "device_here", lambda: torch.device("cuda"))
    assert finetune.precision() == ("bf16" if own else "fp32")
    assert usual_dtype(torch.device("cuda")) == (torch.bfloat16 if own else torch.float32)


def seeded(seed, function, *arguments, **options):
    torch.manual_seed(seed)
    return function(*arguments, **options)


def random_attention(dtype=torch.float32, batch=3, heads=2, queries=5, keys=7, size=4):
    """q, k, v that require gradients, laid out as transformers passes them."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, length, heads, size, generator=generator).transpose(1, 2).to(dtype).requires_grad_()
        for length in (queries, keys, keys)
    ]


def some_keys(batch=3, queries=5, keys=7):
    """A bool mask [batch, 1, queries, keys], another for every sample and query, the first key always allowed."""
    mask = torch.rand(batch, 1, queries, keys, generator=torch.Generator().manual_seed(2)) < 0.6
    mask[..., 0] = True
    return mask


def additive(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)


MASKS = {
    "none": None,
    "bool": some_keys(),
    "bool for all samples": some_keys(batch=1),
    "float": torch.randn(3, 1, 5, 7, generator=torch.Generator().manual_seed(3)) + additive(some_keys()),
    "bf16": additive(some_keys()).bfloat16(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_a_function_of_torchs_seed(dtype):
    dropout, x = bulk_dropout(0.3), torch.ones(33, 65, dtype=dtype)
    first = seeded(5, dropout, x)
    assert first.dtype == dtype
    assert torch.equal(seeded(5, dropout, x), first)
    following = dropout(x)
    assert not torch.equal(following, first)
    assert not torch.equal(seeded(6, dropout, x), first)
    torch.manual_seed(5)
    dropout(x)
    state = torch.get_rng_state()
    dropout(x)
    torch.set_rng_state(state)  # as a resumed run does
    assert torch.equal(dropout(x), following)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_expectation_at_every_position(p):
    rows, columns = 20000, 97  # a row is no multiple of the four elements of a draw, so each position meets all of them
    kept = seeded(1, bulk_dropout(p), torch.ones(rows, columns)) != 0
    deviation = (p * (1 - p)) ** 0.5
    assert abs(kept.float().mean() - (1 - p)) < 5 * deviation / (rows * columns) ** 0.5
    assert (kept.float().mean(0) - (1 - p)).abs().max() < 5 * deviation / rows**0.5
    for quarter in kept.flatten()[: rows * columns // 4 * 4].view(-1, 4).T:  # the four parts of each 64-bit draw
        assert abs(quarter.float().mean() - (1 - p)) < 5 * deviation / len(quarter) ** 0.5
    output = seeded(2, bulk_dropout(p), torch.full((rows * columns,), 3.0, dtype=torch.float64))
    assert abs(output.mean() - 3) < 5 * 3 * (p / (1 - p)) ** 0.5 / len(output) ** 0.5


def test_neighbouring_elements_are_dropped_independently():
    kept = (seeded(3, bulk_dropout(0.5), torch.ones(400000)) != 0).double() * 2 - 1
    for distance in range(1, 9):
        assert abs((kept[distance:] * kept[:-distance]).mean()) < 5 / len(kept) ** 0.5


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.999999])
def test_what_is_kept_is_scaled_by_the_chance_that_16_bits_give(p):
    chance = min(round(p * 65536), 65535) / 65536
    output = seeded(4, bulk_dropout(p), torch.ones(500000, dtype=torch.float64))
    assert output.unique().tolist() == [0, 1 / (1 - chance)]
    assert abs(chance - p) < 2**-15


@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (3, 5, 7), (4, 4)])
def test_the_gradient_of_dropout_is_its_mask_times_the_scale(shape):
    dropout = bulk_dropout(0.4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    noise = seeded(7, dropout, torch.ones(shape, dtype=torch.float64))
    incoming = torch.randn(shape, dtype=torch.float64)
    output = seeded(7, dropout, x)
    torch.testing.assert_close(output, x * noise)
    torch.testing.assert_close(torch.autograd.grad(output, x, incoming)[0], incoming * noise)
    assert torch.autograd.gradcheck(lambda x: seeded(7, dropout, x), x)


def test_without_dropout_everything_is_as_before_and_no_number_is_drawn():
    x, state = torch.randn(50), torch.get_rng_state()
    assert bulk_dropout(0.0)(x) is x
    assert bulk_dropout(0.5).eval()(x) is x
    for mask in MASKS.values():
        q, k, v = random_attention()
        mask = mask if mask is None or mask.dtype == torch.bool else mask.float()
        expected = sdpa_attention_forward(LAYER, q, k, v, mask, scaling=0.3)[0]
        for attend in (precision.cpu_sdpa, precision.wide_sdpa):
            assert torch.equal(attend(LAYER, q, k, v, mask, dropout=0.0, scaling=0.3)[0], expected)
    assert torch.equal(torch.get_rng_state(), state)


def literal_attention(q, k, v, mask, noise, scaling):
    """[batch, queries, heads, size] in float64. ``noise`` [batch, heads, queries, keys]: dropout's mask times its scale."""
    logits = torch.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) * scaling
    if mask is not None:
        logits = logits + (additive(mask) if mask.dtype == torch.bool else mask.double())
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.einsum("bhqk,bhkd->bqhd", weights * noise, v.double())


def noise_of(seed, q, k, p):
    """Dropout's mask times its scale, read off an attention with equal logits whose values are the keys' one-hot vectors."""
    batch, heads, _, size = q.shape
    keys = k.shape[2]
    one_hot = torch.eye(keys).expand(batch, heads, keys, keys)
    zero = torch.zeros(batch, heads, keys, size)
    output, _ = seeded(seed, precision.wide_sdpa, LAYER, torch.zeros_like(q), zero, one_hot, None, dropout=p)
    return output.transpose(1, 2).double() * keys


@pytest.mark.parametrize("attend", [precision.cpu_sdpa, precision.wide_sdpa])
@pytest.mark.parametrize("scaling", [0.8, None])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_with_dropout_and_its_gradients_equal_the_literal_formula(attend, scaling, mask, dtype, tolerance):
    q, k, v = random_attention(dtype)
    noise = noise_of(11, q.float(), k, 0.3)
    assert 0.15 < (noise == 0).float().mean() < 0.45
    output, weights = seeded(11, attend, LAYER, q, k, v, MASKS[mask], dropout=0.3, scaling=scaling)
    expected = literal_attention(q, k, v, MASKS[mask], noise, scaling or 4**-0.5)
    assert output.dtype == dtype and weights is None
    assert output.is_contiguous()
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    incoming = torch.randn(output.shape, generator=torch.Generator().manual_seed(12))
    gradients = torch.autograd.grad(output, (q, k, v), incoming.to(dtype))
    for got, exact in zip(gradients, torch.autograd.grad(expected, (q, k, v), incoming.double()), strict=True):
        assert got.dtype == dtype and got.abs().max() > 0.01
        torch.testing.assert_close(got, exact, rtol=tolerance, atol=tolerance)


def test_attention_with_dropout_is_a_function_of_torchs_seed_and_drops_each_sample_otherwise():
    q, k, v = (x[:1].expand(3, -1, -1, -1) for x in random_attention())
    first = seeded(1, precision.wide_sdpa, LAYER, q, k, v, None, dropout=0.3)[0]
    assert torch.equal(seeded(1, precision.wide_sdpa, LAYER, q, k, v, None, dropout=0.3)[0], first)
    assert not torch.equal(seeded(2, precision.wide_sdpa, LAYER, q, k, v, None, dropout=0.3)[0], first)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_with_dropout_is_on_average_attention_without(mask):
    count = 20000  # as many equal heads, each with draws of its own
    q, k, v = (x[:1, :1].detach().expand(1, count, -1, -1) for x in random_attention())
    mask = None if MASKS[mask] is None else MASKS[mask][:1]
    expected = precision.wide_sdpa(LAYER, q[:, :1], k[:, :1], v[:, :1], mask)[0].squeeze(2)
    draws = seeded(1, precision.wide_sdpa, LAYER, q, k, v, mask, dropout=0.3)[0]
    error = draws.std(2) / count**0.5
    assert ((draws.mean(2) - expected).abs() < 5 * error + 1e-6).all()
    assert 1e-3 < error.max() < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attention_in_blocks_of_heads_gives_the_bits_of_the_whole(monkeypatch, dtype, mask, heads):
    operands, taken = random_attention(dtype, heads=3), []
    own = dropout._InBlocks.apply
    monkeypatch.setattr(dropout._InBlocks, "apply", lambda *x: taken.append(1) or own(*x))
    found = []
    for block in (2**22, heads * 4 * 5 * 7):
        monkeypatch.setattr(dropout, "_BLOCK", block)
        output = seeded(3, precision.wide_sdpa, LAYER, *operands, MASKS[mask], dropout=0.3)[0]
        found.append((output, *torch.autograd.grad(output.float().square().sum(), operands)))
    assert len(taken) == (heads < 3) and all(map(torch.equal, *found))


def test_under_autocast_attention_is_torchs_own_arithmetic(monkeypatch):
    """Which takes products in bf16, as the plain Trainer's."""
    monkeypatch.setattr(dropout, "_BLOCK", 1)
    monkeypatch.setattr(dropout._InBlocks, "apply", lambda *_: 1 / 0)
    q, k, v = random_attention()
    with torch.autocast("cpu", torch.bfloat16):
        precision.cpu_sdpa(LAYER, q, k, v, None, dropout=0.1)[0].sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("mask", ["bool", "float", "bf16"])
def test_a_masked_key_never_has_weight(mask):
    q, k, _ = random_attention()
    one_hot = torch.eye(7).expand(3, 2, 7, 7)
    allowed = some_keys().expand(3, 2, 5, 7).transpose(1, 2)
    met = torch.zeros(allowed.shape, dtype=torch.bool)
    torch.manual_seed(1)
    for _ in range(20):
        met |= precision.wide_sdpa(LAYER, q, k, one_hot, MASKS[mask], dropout=0.5)[0] != 0
    assert torch.equal(met, allowed)


def test_a_causal_layer_stays_causal():
    q, k, _ = random_attention(queries=7)
    layer, one_hot = SimpleNamespace(is_causal=True), torch.eye(7).expand(3, 2, 7, 7)
    weights = precision.cpu_sdpa(layer, q, k, one_hot, None, dropout=0.2)[0].transpose(1, 2)
    assert torch.equal(weights, weights.tril())


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_dropout_of_every_family_is_drawn_in_bulk(tmp_path, monkeypatch, model_type, kind):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    model = AutoModel.from_pretrained(folder, dtype=precision.DTYPES[kind])
    cut = cut_encoder(model, 4).train()
    precision.fit_arithmetic(cut, kind, CPU, "native")
    ids, mask = padded_batch(model.config.pad_token_id)

    def refuse(*arguments, **options):
        raise AssertionError("torch's own dropout")

    first = seeded(1, cut, ids, mask)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "dropout", refuse)
        patch.setattr(nn.functional, "dropout", refuse)
        own = nn.functional.scaled_dot_product_attention
        patch.setattr(
            nn.functional,
            "scaled_dot_product_attention",
            lambda *a, dropout_p=0.0, **o: refuse() if dropout_p else own(*a, dropout_p=dropout_p, **o),
        )
        again = seeded(1, cut, ids, mask)
        sum(x.float().square().sum() for x in again).backward()
    assert all(map(torch.equal, first, again))
    assert not torch.equal(seeded(2, cut, ids, mask).q, first.q)
    for name, parameter in cut.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_other_devices_keep_torchs_own_arithmetic(tmp_path):
    cut = cut_encoder(AutoModel.from_pretrained(make_teacher(tmp_path)), 4)
    kinds = [type(module) for module in cut.modules()]
    precision.fit_arithmetic(cut, "bf16", torch.device("cuda"), "widened")
    assert [type(module) for module in cut.modules()] == kinds
    assert cut.config._attn_implementation == "plain_sdpa"  # torch's own, which takes packed rows too


def test_another_cut_of_the_same_config_leaves_a_models_arithmetic_as_it_is(tmp_path):
    model = AutoModel.from_pretrained(make_teacher(tmp_path))
    cut = cut_encoder(model, 4)
    precision.fit_arithmetic(cut, "bf16", CPU, "widened")
    before = cut.config._attn_implementation
    empty_encoder(model.config, 3)
    assert cut.config._attn_implementation == before != "plain_sdpa"


@pytest.mark.parametrize("arithmetic", ["native", "widened"])
def test_products_are_widened_for_bf16_alone_and_where_that_is_chosen(tmp_path, arithmetic):
    for kind in ("bf16", "fp32"):
        cut = cut_encoder(AutoModel.from_pretrained(make_teacher(tmp_path)), 4)
        precision.fit_arithmetic(cut, kind, CPU, arithmetic)
        wide = kind == "bf16" and arithmetic == "widened"
        assert (type(cut.body.last.projections[0]) is precision.WideLinear) == wide
        assert cut.config._attn_implementation == ("wide_sdpa" if wide else "cpu_sdpa")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_weights_that_are_kept_widened_give_the_same_bits_and_are_cast_in_no_forward(tmp_path, monkeypatch, model_type):
    folder = make_teacher(tmp_path, model_type, **FAMILIES[model_type])
    cut = cut_encoder(AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval(), 4)
    precision.fit_arithmetic(cut, "bf16", CPU, "widened")
    ids, mask = padded_batch(cut.config.pad_token_id)
    with torch.no_grad():
        cast = cut(ids, mask)
        precision.keep_widened(cut)
        dtypes = {name: p.dtype for name, p in cut.named_parameters()}
        linear = [name for name, module in cut.named_modules() if isinstance(module, nn.Linear)]
        assert linear and all(dtypes[f"{name}.weight"] == torch.float32 for name in linear)
        assert all(dtypes[name] == torch.bfloat16 for name in dtypes if name.rpartition(".")[0] not in linear)
        kept = cut(ids, mask)
    assert all(map(torch.equal, cast, kept)) and kept[0].dtype == torch.bfloat16


@pytest.mark.parametrize("precision_, device, arithmetic", [("bf16", "cpu", "native"), ("bf16", "cpu", "widened")])
def test_the_name_of_an_arithmetic_says_how_products_were_taken(precision_, device, arithmetic):
    assert precision.way_of(precision.arithmetic_of(precision_, torch.device(device), arithmetic)) == arithmetic
    assert precision.way_of(precision.arithmetic_of("fp32", torch.device(device), arithmetic)) is None
    assert [precision.way_of(name) for name in (None, 7, "bf16 on NVIDIA H100")] == [None] * 3


def test_a_query_without_a_key_is_finite_under_autocast():
    """As a padded one in a layer with local attention, in fine-tuning with bf16 products."""
    q = torch.randn(2, 4, 6, 8, requires_grad=True)
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    mask[0, :, 5] = False
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = precision.cpu_sdpa(LAYER, q, q, q, mask, dropout=0.1)
    output.sum().backward()
    assert output.isfinite().all() and q.grad.isfinite().all()
