"""models.arithmetic: which way of bf16 products is chosen, on CPUs of the imagination."""

import time

import pytest
import torch
import torch.nn.functional as F

from pipeline.measuring import usual_dtype
from pipeline.models import arithmetic
from pipeline.models.arithmetic import LIMIT, USUAL, Product, Rates, measure, rates, widens

CPU = torch.device("cpu")
LARGE = (Product(4096, 768, 3072, 12), Product(4096, 384, 1536, 18))
SMALL = (Product(8, 16, 64),)


class Imagined:
    """Takes the seconds that a CPU of these FLOP/s would; ``spent`` is their sum, ``largest`` the tokens of a product."""

    def __init__(self, monkeypatch, native, widened):
        self.spent, self.largest, self._asked = 0.0, {"native": 0, "widened": 0}, None
        self._rates = {"native": native, "widened": widened}
        monkeypatch.setattr(arithmetic.F, "linear", lambda x, w, b=None: self._note("native", x, w))
        monkeypatch.setattr(arithmetic, "widened_product", lambda x, w, b=None: self._note("widened", x, w))

    def _note(self, way, x, weight):
        self._asked = way, 2 * x.numel() * len(weight)
        self.largest[way] = max(self.largest[way], len(x))

    def seconds_of(self, work):
        work()
        way, flops = self._asked
        self.spent += flops / self._rates[way]
        return flops / self._rates[way]


@pytest.mark.parametrize("products", [USUAL, LARGE, SMALL], ids=["usual", "large", "small"])
@pytest.mark.parametrize(
    "native, widened, faster",
    [
        (410e9, 180e9, "native"),  # AVX-512 bf16 of one kind
        (180e9, 300e9, "widened"),  # and of another
        (7e9, 100e9, "widened"),  # no units: a plain loop
        (3000e9, 200e9, "native"),  # AMX
        (180e9, 190e9, "native"),  # next to nothing to win
    ],
)
def test_the_faster_way_is_chosen_by_its_rate_in_limited_time(monkeypatch, products, native, widened, faster):
    cpu = Imagined(monkeypatch, native, widened)
    found = measure(products, cpu.seconds_of)
    assert found == (pytest.approx(native), pytest.approx(widened)) and found.faster == faster
    assert cpu.spent <= LIMIT


def test_a_cpu_that_emulates_bf16_is_not_asked_for_a_large_product(monkeypatch):
    slow = Imagined(monkeypatch, 7e9, 100e9)
    measure(LARGE, slow.seconds_of)
    assert slow.largest["native"] <= 64
    fast = Imagined(monkeypatch, 3000e9, 2000e9)
    measure(LARGE, fast.seconds_of)
    assert fast.largest["native"] == 4096


def test_products_count_by_what_a_step_computes_in_them(monkeypatch):
    seconds = iter([1.0, 2.0])

    def one(product, limit, seconds_of):
        rate = next(seconds)
        return Rates(rate, 2 * rate)

    monkeypatch.setattr(arithmetic, "_measure_one", one)
    found = measure([Product(1, 1, 1, 3), Product(1, 1, 1, 1)])
    assert found.native == pytest.approx(4 / (3 / 1 + 1 / 2)) and found.widened == pytest.approx(2 * found.native)


def test_a_measurement_is_made_once_in_a_process_and_another_ones_is_taken(monkeypatch):
    made = []
    monkeypatch.setattr(arithmetic, "_known", {})
    monkeypatch.setattr(arithmetic, "measure", lambda products: made.append(products) or Rates(1.0, 2.0))
    assert rates() == rates() == Rates(1.0, 2.0) and rates(SMALL) and made == [USUAL, SMALL]
    arithmetic.adopt(Rates(5.0, 1.0))
    assert rates() == Rates(5.0, 1.0)


def test_there_is_a_choice_for_bf16_on_cpus_alone(monkeypatch):
    monkeypatch.setattr(arithmetic, "rates", lambda *_: Rates(1.0, 2.0))
    assert widens("auto", "bf16", CPU) and widens("widened", "bf16", CPU) and not widens("native", "bf16", CPU)
    for way in ("auto", "widened"):
        assert not widens(way, "fp32", CPU) and not widens(way, "bf16", torch.device("cuda"))
    assert usual_dtype(CPU) == torch.float32
    monkeypatch.setattr(arithmetic, "rates", lambda *_: Rates(2.0, 1.0))
    assert not widens("auto", "bf16", CPU) and usual_dtype(CPU) == torch.bfloat16


def test_both_ways_are_timed_on_this_cpu():
    found = measure(SMALL)
    assert min(found) > 0 and found.faster in ("native", "widened")
    x, weight, bias = (torch.randn(shape).bfloat16() for shape in ((64, 96), (32, 96), (32,)))
    native, widened = F.linear(x, weight, bias), arithmetic.widened_product(x, weight, bias)
    assert widened.dtype == torch.bfloat16
    assert torch.allclose(native.float(), widened.float(), rtol=2**-7, atol=1e-3)


def test_what_else_the_machine_does_decides_nothing(monkeypatch):
    """The work is timed on one thread, by its CPU time: a wait for the CPU is none of it."""
    waits = []
    monkeypatch.setattr(arithmetic, "widened_product", lambda x, w, b=None: waits.append(torch.get_num_threads()))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure(SMALL, lambda work: (work(), 1e-3)[1])
        assert set(waits) == {1} and torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            measure(SMALL, lambda work: 1 / 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert arithmetic._seconds_of(lambda: time.sleep(0.2)) < 0.1
