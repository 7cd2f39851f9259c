"""engines.graphs, with a graph of the imagination: a replay computes the pass again into the tensors of its capture."""

import pytest
import torch

from pipeline.data.inputs import Inputs
from pipeline.engines.graphs import Graphed, graphed
from pipeline.engines.hosting import Hosting
from pipeline.models.cut import cut_encoder
from pipeline.relations import QKV
from pipeline.settings.reading import load_recipe
from tests.models.test_encoders import FAMILIES
from tests.models.test_packed import model_of, packed


def teach(ids, second=None, padded=None):
    return QKV(*(ids[..., None].float() * factor for factor in (1, 2, 3)))


class Imagined(Graphed):
    replays = 0

    def capture(self, *inputs):
        output = teach(*inputs)

        def replay():
            self.replays += 1
            for own, new in zip(output, teach(*inputs), strict=True):
                own.copy_(new)

        return replay, output


@pytest.mark.parametrize(
    "compiled, hosting, device, wanted",
    [
        ("all", "replicate", "cuda", True),
        ("loss", "replicate", "cuda", False),
        ("all", "zero3", "cuda", False),
        ("all", "replicate", "cpu", False),
    ],
)
def test_a_graph_is_for_a_replica_on_a_gpu_under_compile_all(compiled, hosting, device, wanted):
    recipe = load_recipe("minilm_6x384", [f"compile={compiled}"])
    made = graphed(teach, recipe, Hosting(hosting, "", 1, 1.0), torch.device(device))
    assert isinstance(made, Graphed) if wanted else made is teach


def batches(count, shape=(2, 5)):
    return [torch.full(shape, number) for number in range(1, count + 1)]


def test_a_shape_is_replayed_from_its_third_pass_on_and_each_output_outlives_the_next():
    graphed = Imagined(teach)
    outputs = [graphed(ids, None, False) for ids in batches(6)]
    assert graphed.replays == 1 + 3  # the first is compared with the plain pass
    for ids, output in zip(batches(6), outputs, strict=True):
        assert all(map(torch.equal, output, teach(ids)))


def test_other_shapes_padded_batches_and_batches_that_may_be_padded_run_as_they_are():
    graphed = Imagined(teach)
    for ids in batches(4):
        graphed(ids, None, False)
    replays = graphed.replays
    for ids, second, padded in (
        (torch.ones(2, 4), None, False),
        (torch.ones(2, 5), None, True),
        (torch.ones(2, 5), None, None),
        (torch.ones(2, 5), torch.ones(2, 5) > 0, False),
    ):
        assert all(map(torch.equal, graphed(ids, second, padded), teach(ids)))
    assert graphed.replays == replays > 0


@pytest.mark.parametrize("model_type, told", [("bert", "second"), ("xlm-roberta", "pieces"), ("bert", "padded")])
def test_an_encoder_is_told_what_the_graph_is_told(tmp_path, model_type, told):
    cut = cut_encoder(model_of(tmp_path, model_type), 4, padding=FAMILIES[model_type].get("pad_token_id", 0))
    inputs = packed(cut.padding)
    if told == "second":
        inputs = Inputs(inputs.ids[1:2], inputs.ids[1:2] > 20)
    elif told == "padded":
        inputs = Inputs(inputs.ids[2:], None, torch.tensor([20, 19]))

    def forward(ids, **told):  # as host_teacher's
        return cut.body(*cut.embed(ids, **told))

    with torch.no_grad():
        graphed = Graphed(forward)
        assert all(map(torch.equal, graphed(inputs.ids, **inputs.told), cut(inputs.ids, **inputs.told)))
        assert not torch.equal(cut(inputs.ids, **inputs.told).q, cut(inputs.ids, padded=False).q)


class Wrong(Imagined):
    def capture(self, *inputs):
        _, output = super().capture(*inputs)
        return (lambda: output.q.fill_(7)), output


class Refused(Graphed):
    def capture(self, *inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


@pytest.mark.parametrize(
    "kind, why",
    [(Wrong, "its first replay gave another output"), (Refused, "operation not permitted when stream is c")],
)
@pytest.mark.parametrize("local", ["0", "1"])
def test_a_graph_that_fails_or_is_wrong_is_given_up_in_one_line(monkeypatch, capsys, kind, why, local):
    monkeypatch.setenv("LOCAL_RANK", local)
    graphed = kind(teach)
    for ids in batches(5):
        assert all(map(torch.equal, graphed(ids, None, False), teach(ids)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (local == "0") and all("kernel by kernel" in line and why in line for line in lines)
