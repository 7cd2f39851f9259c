"""A step never makes the host wait for a GPU, DeepSpeed's own code apart: found out with a device of the imagination."""

from dataclasses import replace

import pytest
import torch

from pipeline import relations
from pipeline.data.inputs import Inputs, Pieces
from pipeline.data.reading import ReadAhead
from pipeline.engines import both
from pipeline.models import attention
from pipeline.training import guards, loop
from tests.parts import launching
from tests.parts.by_hand import flash_by_hand
from tests.parts.fake_device import DEVICE, FakeDevice, HostWaits
from tests.parts.runs import job, make_recipe_of_several
from tests.parts.tiny import make_recipe

CASES = {
    "full": (),
    "full, accumulated": ("micro_batch=2", "teacher.micro_batch=4"),
    "doc": ("layout=doc",),
    "doc, accumulated, bf16": ("layout=doc", "micro_batch=2", "precision=bf16"),
    "pairs, MiniLMv2": ("segments=pairs", "layout=doc", "pairs=qq,kk,vv", "micro_batch=4"),
    "layers and values": ("layout=doc", "transfer=layer-to-layer", "student.layers=3", "pairs=qk,v_mse"),
    "sharded teacher": ("layout=doc", "teacher.hosting=zero3"),
    "packed": ("layout=packed", "segments=pairs"),
    "packed, accumulated": ("layout=packed", "length=40", "micro_batch=2", "teacher.micro_batch=4", "pairs=qq,kk,vv"),
    "packed layers and values": ("layout=packed", "transfer=layer-to-layer", "pairs=qk,v_mse", "teacher.hosting=zero3"),
}


@pytest.fixture
def watched(monkeypatch):
    """Every update, and the guards behind it, under a FakeDevice; gives the device's allowed waits, one for each update."""
    allowed, update = [], loop.update
    # A GPU has no use for what suits CPUs, and relation_loss does not look at lengths or bounds that are on one.
    monkeypatch.setattr(both, "fit_arithmetic", lambda *_: None)
    monkeypatch.setattr(relations, "_check", lambda *_: None)
    monkeypatch.setattr(relations, "_readable", lambda _: False)

    def under_watch(trainees, ahead, samples, step, ranks, clock, following):
        with FakeDevice() as device:
            device.hosts(samples.ids, samples.second, samples.lengths)
            if pieces := samples.pieces:
                device.hosts(pieces.first, pieces.stop, pieces.cuts, pieces.known_cuts)
            sent = samples.pin_memory().to(DEVICE)
            losses = update(trainees, ahead, sent, step, replace(ranks, device=DEVICE), clock, None)
            guards.note(trainees, losses, step, ranks)
        assert all(type(trainee.engine.skipped_steps) is int for trainee in trainees)
        allowed.append(device.allowed)
        return losses

    monkeypatch.setattr(loop, "update", under_watch)
    return allowed


@pytest.mark.parametrize("case", CASES)
def test_a_step_never_waits_for_the_device(tmp_path, watched, case):
    make_recipe(tmp_path)
    launching.finish_jobs(tmp_path, 1, [job(tmp_path, "run", "micro_batch=8", "steps=3", *CASES[case])])
    assert len(watched) == 3


def test_nor_where_packed_rows_are_attended_to_at_once(tmp_path, watched, monkeypatch):
    monkeypatch.setattr(attention, "_has_flash", lambda *_: True)
    monkeypatch.setattr(attention, "flash", flash_by_hand)
    make_recipe(tmp_path)
    options = ("layout=packed", "length=40", "micro_batch=4", "steps=2", "warmup_steps=1")
    launching.finish_jobs(tmp_path, 1, [job(tmp_path, "run", *options)])
    assert len(watched) == 2


def test_nor_with_several_students_at_other_stages(tmp_path, watched):
    make_recipe_of_several(tmp_path)
    options = ("steps=2", "warmup_steps=1", "layout=doc")
    launching.finish_jobs(tmp_path, 1, [job(tmp_path, "runs", *options, recipe="several.toml")])
    assert len(watched) == 2


def test_deepspeeds_own_waits_are_counted(tmp_path, watched):
    make_recipe(tmp_path)
    launching.finish_jobs(tmp_path, 1, [job(tmp_path, "run", "steps=2", "warmup_steps=1", "precision=bf16")])
    assert all(0 < count < 10 for count in watched)  # of ZeRO-1, a step: its search for overflow, and the norm


def by_hand(device, x):
    """A tensor on the host."""
    made = torch.tensor(x)
    assert device.is_host(made)
    return made


WAITS = {
    "a number": lambda device, x: x.sum().item(),
    "a bool": lambda device, x: bool(x.any()),
    "a decision": lambda device, x: 1 if (x > 1).all() else 2,
    "an int": lambda device, x: int(x.max()),
    "a list": lambda device, x: x.tolist(),
    "an array": lambda device, x: x.numpy(),
    "places": lambda device, x: x.nonzero(),
    "a choice by a mask": lambda device, x: x[x > 1],
    "a write by a mask": lambda device, x: x.__setitem__(x > 1, x[:3]),
    "equality": lambda device, x: torch.equal(x, x),
    "different ones": lambda device, x: x.unique(),
    "repeats": lambda device, x: x.repeat_interleave(x),
    "a fetched copy": lambda device, x: x.cpu(),
    "another fetched copy": lambda device, x: x.to("cpu"),
    "new numbers": lambda device, x: torch.tensor([1, 2], device=DEVICE),
    "a copy that blocks": lambda device, x: by_hand(device, [1, 2]).pin_memory().to(DEVICE),
    "memory that is not pinned": lambda device, x: by_hand(device, [1, 2]).to(DEVICE, non_blocking=True),
    "part of pinned memory": lambda device, x: (
        by_hand(device, [[1, 2], [3, 4]]).pin_memory()[:, :1].to(DEVICE, non_blocking=True)
    ),
    "a copy into a tensor": lambda device, x: x.copy_(torch.zeros(6, dtype=torch.long)),
    "a list as an index": lambda device, x: x.view(2, 3)[:, [0, 2]],
    "an index on the host": lambda device, x: x[by_hand(device, [1, 2])],
}


@pytest.mark.parametrize("what", WAITS)
def test_the_device_of_the_imagination_notices(what):
    with FakeDevice() as device:
        x = torch.arange(6, device=DEVICE)
        with pytest.raises(HostWaits):
            WAITS[what](device, x)


def test_the_device_of_the_imagination_lets_work_be_queued():
    with FakeDevice() as device:
        ids = torch.arange(6).view(2, 3)
        inputs = Inputs(ids, ids > 2, by_hand(device, [3, 2])).pin_memory().to(DEVICE)
        assert not device.is_host(inputs.lengths) and device.is_host(inputs.known_lengths) and inputs.padded
        (part,) = inputs.split(2)
        mask = torch.arange(3, device=DEVICE) < part.lengths[:, None]
        (part.ids * 2.0).masked_fill(mask, 0).sum().mul_(3)


def test_what_is_read_ahead_is_sent_whole_and_pinned(monkeypatch):
    made = torch.ones(4, 3, dtype=torch.long)
    cuts = torch.tensor([[0, 2, 3, 4], [0, 4, 4, 4], [0, 3, 4, 4]], dtype=torch.int32)
    pieces = Pieces.of(cuts, torch.tensor([3, 4, 4]), 4, 2.0)
    batches = [Inputs(made.t(), made.t() > 0, torch.tensor([4, 3, 4])), Inputs(made.t(), made.t() > 0, pieces=pieces)]
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: calls.append(("pin", x.is_contiguous())) or x)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda x, device, non_blocking=False: calls.append(("to", non_blocking)) or x
    )
    (padded,) = ReadAhead(iter(batches[:1]), torch.device("cuda"))
    assert calls == [("pin", True)] * 3 + [("to", True)] * 3
    (packed,) = ReadAhead(iter(batches[1:]), torch.device("cuda"))
    assert calls[6:] == [("pin", True)] * 5 + [("to", True)] * 5  # ids, second, first, stop, cuts
    assert padded.known_lengths is batches[0].lengths and packed.pieces.known_cuts is cuts
