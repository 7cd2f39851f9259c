"""Packed rows in an encoder: each piece is computed as it is alone, in every family, whatever lies beside it."""

import itertools

import pytest
import torch
from transformers import AutoModel

from pipeline.data.inputs import Inputs, Pieces
from pipeline.models import attention
from pipeline.models.cut import CutEncoder, cut_encoder
from pipeline.models.pooling import Pooling
from pipeline.models.precision import fit_arithmetic
from tests.models.test_encoders import FAMILIES
from tests.models.test_pooling import MODES
from tests.parts.tiny import make_teacher

ROWS = [[12, 5, 3], [20], [4, 4, 4, 4, 4], [19]]  # positions of each row's pieces; the rest of 20 is padding
LENGTH = 20


def packed(pad: int, rows=ROWS, length=LENGTH, a_row=1.0) -> Inputs:
    """Rows of random pieces, [CLS] first and [SEP] last, padded with ``pad``."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((len(rows), length), pad)
    cuts = torch.full((len(rows), max(map(len, rows)) + 2), length, dtype=torch.int32)
    for row, sizes in enumerate(rows):
        begin = 0
        for number, size in enumerate(sizes):
            own = torch.randint(5, 50, (size,), generator=generator)
            own[0], own[-1] = 2, 3
            ids[row, begin : begin + size], cuts[row, number] = own, begin
            begin += size
        cuts[row, len(sizes)] = begin
    ends = torch.tensor([sum(sizes) for sizes in rows])
    return Inputs(ids, pieces=Pieces.of(cuts, ends, length, a_row))


def places(rows=ROWS):
    """Row and positions of each piece."""
    for row, sizes in enumerate(rows):
        begin = 0
        for size in sizes:
            yield row, slice(begin, begin + size)
            begin += size


def model_of(tmp_path, model_type: str):
    folder = make_teacher(tmp_path / "teacher", model_type, **FAMILIES[model_type])
    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def test_where_pieces_lie():
    pieces = packed(0).pieces
    assert pieces.sizes == [12, 5, 3, 20, 4, 4, 4, 4, 4, 19, 1]
    for row, where in places():
        assert (pieces.first[row, where] == where.start).all() and (pieces.stop[row, where] == where.stop).all()
        assert pieces.positions[row, where].tolist() == list(range(where.stop - where.start))
    assert pieces.first[3, 19] == pieces.stop[3, 19] == 0
    ends = pieces.offsets.tolist()
    assert [b - a for a, b in itertools.pairwise(ends) if b > a] == pieces.sizes and ends[-1] == 80
    part = packed(0).split(2)[1].pieces
    assert part.sizes == [4, 4, 4, 4, 4, 19, 1] and part.offsets[-1] == 40
    assert packed(0, a_row=2.5).shares() == [3 / 2.5, 1 / 2.5, 5 / 2.5, 1 / 2.5]


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_piece_gives_what_it_gives_alone(tmp_path, model_type, fitted):
    model = model_of(tmp_path, model_type).double()  # the order of sums depends on the machine, and tells nothing here
    cut = cut_encoder(model, 4, padding=model.config.pad_token_id, earlier=(2,))
    if fitted:
        fit_arithmetic(cut, "fp32", torch.device("cpu"))
    inputs = packed(model.config.pad_token_id)
    second = inputs.pieces.positions > 1
    with torch.no_grad():
        together = cut(inputs.ids, **(inputs.told | {"second": second}))
        for row, where in places():
            alone = cut(inputs.ids[row : row + 1, where], second=second[row : row + 1, where])
            for ours, theirs in zip(together, alone, strict=True):
                torch.testing.assert_close(
                    ours[2 * row : 2 * row + 2, where], theirs, rtol=0, atol=1e-12 * float(theirs.abs().max())
                )


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_piece_has_the_vector_that_it_has_alone(tmp_path, model_type):
    model = model_of(tmp_path, model_type)
    pad = model.config.pad_token_id
    batch, encoder = packed(pad), CutEncoder(model, 4, padding=pad, pooling=Pooling(MODES))
    with torch.no_grad():
        (vectors,) = encoder(batch.ids, **batch.told)
        assert vectors.shape == (4, 6, len(MODES) * model.config.hidden_size) and vectors.isfinite().all()
        numbers = [number for sizes in ROWS for number in range(len(sizes))]
        for (row, where), number in zip(places(), numbers, strict=True):
            (alone,) = encoder(batch.ids[row : row + 1, where])
            torch.testing.assert_close(vectors[row, number], alone[0, 0], rtol=1e-5, atol=1e-5)
    assert batch.bounds().counts().tolist() == [3, 1, 5, 1]
    assert batch.pieces.texts().sum(-1).tolist() == [[*sizes, 0, 0, 0, 0, 0][:6] for sizes in ROWS]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_lies_beside_a_piece_changes_none_of_its_bits(tmp_path, model_type):
    model = model_of(tmp_path, model_type)
    cut = cut_encoder(model, 4, padding=model.config.pad_token_id)
    inputs = packed(model.config.pad_token_id)
    other = inputs.ids.clone()
    other[0, 13:16] = 7
    with torch.no_grad():
        first, changed = (cut(ids, **inputs.told) for ids in (inputs.ids, other))
    for one, two in zip(first, changed, strict=True):
        assert torch.equal(one[0, :12], two[0, :12]) and torch.equal(one[0, 17:], two[0, 17:])
        assert not torch.equal(one[0, 12:17], two[0, 12:17]) and torch.equal(one[1:], two[1:])


@pytest.mark.parametrize("model_type", ["bert", "modernbert", "eurobert"])
def test_gradients_are_the_sums_of_those_alone(tmp_path, model_type):
    model = model_of(tmp_path, model_type)
    cut = cut_encoder(model, 4, padding=model.config.pad_token_id)
    inputs = packed(model.config.pad_token_id)
    weight = torch.randn(4, LENGTH, 3 * 32, generator=torch.Generator().manual_seed(5))

    def total(output, of):
        return (torch.cat(output, -1) * of).sum()

    def gradients(loss):
        wanted = [p for p in cut.parameters() if p.requires_grad]
        return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)

    real = (inputs.pieces.stop > 0)[..., None]
    whole = gradients(total(cut(inputs.ids, **inputs.told), weight * real))
    alone = gradients(sum(total(cut(inputs.ids[r : r + 1, w]), weight[r : r + 1, w]) for r, w in places()))
    greatest = max(float(x.abs().max()) for x in alone)
    for ours, theirs in zip(whole, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * greatest)


def test_dropout_is_drawn_within_pieces(tmp_path):
    model = model_of(tmp_path, "bert").train()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    for layer in model.encoder.layer:
        layer.attention.self.dropout.p = 0.3
    cut = cut_encoder(model, 4, padding=0)
    fit_arithmetic(cut, "fp32", torch.device("cpu"))
    inputs, outputs = packed(0), []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(cut(inputs.ids, **inputs.told))
    again = cut(inputs.ids, **inputs.told)
    assert all(map(torch.equal, *outputs)) and not torch.equal(outputs[0].q, again.q)


def test_flash_attention_is_asked_in_terms_that_torch_takes():
    """Its shapes and its backward, without a GPU: what it computes there is compared on the device itself."""
    q, k, v = (torch.empty(80, 4, 16, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in "qkv")
    offsets = torch.empty(28, device="meta", dtype=torch.int32)
    for dropout, reach in ((0.0, None), (0.1, 4)):
        output = attention.flash((q, k, v), offsets, 20, dropout, 0.25, reach)
        assert output.shape == q.shape and output.dtype == q.dtype
        gradients = torch.autograd.grad(output.float().sum(), (q, k, v))
        assert [x.shape for x in gradients] == [q.shape] * 3


def test_who_cannot_use_flash_attention_goes_piece_by_piece_and_is_told_once(monkeypatch, capsys):
    has = attention._has_flash.__wrapped__
    assert not has(torch.device("cpu"), torch.bfloat16, 64)
    assert not capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    for dtype, width, why in (
        (torch.float32, 64, "it takes bf16 and fp16"),
        (torch.bfloat16, 12, "these are 12 wide"),
        (torch.bfloat16, 64, "it needs compute capability 8.0"),
    ):
        assert not has(torch.device("cuda"), dtype, width)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("note: packed rows are attended to piece by piece") and why in line
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not has(torch.device("cuda"), torch.float32, 64) and not capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["", "offsets", "gradient"])
def test_flash_attention_is_compared_with_each_piece_alone(monkeypatch, wrong):
    """By a flash attention for CPUs that is right, or sees one key too many, or has a gradient that is not its own."""

    def flash(operands, offsets, longest, dropout, scaling, reach):
        parts, bounds = [], offsets.tolist()
        for begin, end in itertools.pairwise(bounds):
            if end > begin:
                q, *kv = (x[begin : end + (wrong == "offsets" and end < bounds[-1])] for x in operands)
                mask = attention._window(len(q), reach, q.device)
                own = (x.transpose(0, 1)[None] for x in (q, *kv))
                out = torch.nn.functional.scaled_dot_product_attention(*own, mask, enable_gqa=True)
                parts.append(out[0].transpose(0, 1)[: end - begin])
        output = torch.cat(parts)
        return output.detach() + 2 * (output - output.detach()) if wrong == "gradient" else output

    monkeypatch.setattr(attention, "flash", flash)
    error = attention.flash_error(torch.device("cpu"), torch.bfloat16, 16)
    assert (error < attention._ERROR) == (not wrong)
