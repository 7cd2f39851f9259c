"""bench loss --static: instructions of the compiled fused loss, and the time that follows from them."""

import importlib.util
import json
import subprocess
import sys

import pytest

from data_prep.cli import UserError
from pipeline.bench import __main__ as bench
from pipeline.plan.hardware import LANES
from tests.parts.launching import ROOT, environment

pytest.importorskip("triton", reason="the fused loss needs Triton: pip install triton")
from pipeline.bench import static
from pipeline.fused import compiled

# A loop without products before, a loop with products and one inside it for waiting, and a loop of masked tiles.
SASS = """
        .type           gradient,@function
gradient:
.text.gradient:
        /*0000*/                   MUFU.EX2 R1, R1 ;
.L_x_0:
        /*0010*/                   FADD R4, R5, R6 ;
        /*0020*/               @P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0040*/                   FFMA R1, R2, R3, R4 ;
        /*0050*/              @!P2 FMUL.FTZ R1, R2, R3 ;
        /*0060*/                   FADD2 R4, R5, R6 ;
        /*0070*/                   MUFU.EX2 R1, R1 ;
        /*0080*/                   F2F.BF16.F32 R1, R1 ;
        /*0090*/                   F2FP.BF16.PACK_AB R1, R2, R3 ;
        /*00a0*/                   LOP3.LUT R1, R2, 0xffff, RZ, 0xc0, !PT ;
        /*00b0*/                   IMAD.SHL.U32 R1, R2, 0x80, RZ ;
        /*00c0*/             @!UP0 LDGSTS.E.128 [R1], desc[UR4][R2.64] ;
        /*00d0*/              @!PT LDS RZ, [RZ] ;
        /*00e0*/                   SHFL.BFLY PT, R1, R2, 0x2, 0x1f ;
.L_x_2:
        /*00f0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [R4], R5 ;
        /*0100*/              @!P1 BRA `(.L_x_2) ;
        /*0110*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0120*/                   BRA.U UP0, `(.L_x_1) ;
.L_x_3:
        /*0130*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0140*/                   MUFU.EX2 R1, R1 ;
        /*0150*/               @P0 BRA `(.L_x_3) ;
        /*0160*/                   EXIT ;
"""


def compiling(*command: str) -> subprocess.CompletedProcess:
    """A process in which Triton compiles; tests themselves interpret (conftest.py)."""
    variables = environment() | {"CUDA_VISIBLE_DEVICES": ""}
    variables.pop("TRITON_INTERPRET", None)
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, env=variables, cwd=ROOT)


def test_the_loop_of_whole_tiles_is_counted_by_unit():
    opcodes = static.tile_loop(SASS)
    assert opcodes[0].startswith("HGMMA") and opcodes[-1] == "BRA.U" and len(opcodes) == 16
    for chip, lanes in (("sm_80", 64), ("sm_90", 128)):
        counts = static.counts_of(opcodes, warps=4, entries=512, chip=chip)
        of_each = 4 * LANES / 512  # threads an entry
        wanted = {"fp32": 3, "exponentials": 2, "tensor": 1, "memory": 3, "integer": 3, "other": 4}
        assert counts.instructions == {unit: number * of_each for unit, number in wanted.items()}
        # FADD2 is two sums
        assert counts.cycles == {"issue": 16 / 512, "fp32": 4 * of_each / lanes, "exponentials": 2 * of_each / 16}


def test_a_kernel_without_such_a_loop_is_not_counted():
    with pytest.raises(RuntimeError, match="no loop with products"):
        static.tile_loop(SASS.replace("HGMMA", "FADD"))


def refused(monkeypatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["bench", "loss", *arguments])
    with pytest.raises(UserError) as error:
        bench.main()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_counted_is_refused_in_one_line(monkeypatch):
    assert "TRITON_INTERPRET=1 interprets" in refused(monkeypatch, "--static")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "--gpu H1000: not known; did you mean H100" in refused(monkeypatch, "--static", "--gpu", "H1000")
    assert "--gpu V100: the fused loss does not run there" in refused(monkeypatch, "--static", "--gpu", "v100")
    assert "--gpu H100: goes with --static" in refused(monkeypatch, "--gpu", "H100")
    assert "--heads 13: does not divide" in refused(monkeypatch, "--static", "--heads", "13")
    assert "--heads 2: heads are 384 wide, and the kernel takes at most 128" in refused(
        monkeypatch, "--static", "--heads", "2"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed, whose compiler it asks: pip install triton" in refused(monkeypatch, "--static")


def test_a_wheel_without_its_disassembler_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled.triton, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(UserError, match=r"/nvdisasm is missing, .*: pip install --force-reinstall triton"):
        compiled.inspected(None, "nvdisasm", "-c")


@pytest.mark.slow
def test_the_fused_loss_reaches_its_targets_by_its_counts():
    result = compiling("pipeline.bench", "loss", "--static", "--gpu", "H100", "--json")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    predicted = {(row["heads"], row["widths"][0]): row["value"] for row in rows if row["measure"] == "predicted"}
    assert predicted.keys() == {(48, 768), (12, 768), (64, 1024)}
    assert predicted[48, 768] <= 45 and predicted[12, 768] <= 9 and predicted[64, 1024] <= 60
    # An eighth or a quarter of the teacher's exponentials are polynomials; no logarithm or conversion is in the loop.
    counted = [row["parts"]["exponentials"] for row in rows if row["unit"] == "an entry"]
    assert counted and set(counted) <= {1.75, 1.875, 2.0}
    by_pass = [row for row in rows if row["unit"] == "cycles"]
    assert all(row["value"] == max(row["parts"].values()) for row in by_pass)
    assert len(by_pass) == 5 + 2 + 2  # qk has three passes; kk and vv are as qq
