"""How bf16 products are taken on a CPU: found by timing, since its flags do not tell.

*Native* is torch's own bf16 product; *widened* is that of the operands in fp32, rounded to bf16. Both multiply exactly, add
up in fp32 and round once, so they give the same numbers but for the order of sums. Which is faster is another matter: a CPU
without bf16 units emulates native products in a plain loop, one with AVX-512 bf16 may run them at twice the rate of fp32 or
at half of it, one with AMX at many times.

They are timed on one thread, by the CPU time that it takes: what else the machine does must not decide.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.units import has_bf16_gpu

Way = Literal["native", "widened"]
Seconds = Callable[[Callable[[], object]], float]  # of CPU time that a work takes

LIMIT = 0.25  # seconds of products, so that a measurement takes 0.3 with what is around them
# Times the native rate. Below it native products stay: a measurement must not say one thing today and another tomorrow, and
# widened ones need memory.
WIDENS_FROM = 1.1
_CALLS = 3  # of each way at a size; the fastest counts
# Smaller products are timed at this size, where units decide, not calls; and no larger matrix than of so many numbers.
_LEAST = 256, 256, 1024
_WEIGHT = 2**22


class Product(NamedTuple):
    """A linear layer's product, [tokens, width] × [width, outputs], and how often a step takes it."""

    tokens: int
    width: int
    outputs: int
    times: int = 1

    @property
    def flops(self) -> float:
        return 2.0 * self.tokens * self.width * self.outputs


class Rates(NamedTuple):
    """FLOP/s of native and of widened products, of one core."""

    native: float
    widened: float

    @property
    def faster(self) -> Way:
        """The way to take."""
        return "widened" if self.widened > WIDENS_FROM * self.native else "native"

    def __str__(self) -> str:
        native, widened = (f"{rate / 1e9:,.0f}" for rate in self)
        return f"native {native} GFLOP/s a core, widened to fp32 and rounded {widened}"


USUAL = (Product(2048, 768, 3072),)  # where no model is at hand: a layer of BERT-base, four sequences of 512
_known: dict[tuple[Product, ...], Rates] = {}


def rates(products: Sequence[Product] = USUAL) -> Rates:
    """Both ways' rates over all ``products``, timed once in a process."""
    key = tuple(products)
    if key not in _known:
        _known[key] = measure(key)
    return _known[key]


def adopt(found: Rates, products: Sequence[Product] = USUAL) -> None:
    """Take ``found``, another process's measurement, for this one's: all have to decide the same."""
    _known[tuple(products)] = found


def measure(products: Sequence[Product], seconds_of: Seconds | None = None) -> Rates:
    """Time both ways of all ``products``, LIMIT seconds long at most."""
    native = widened = flops = 0.0
    with _one_thread():
        for product in products:
            rate = _measure_one(product, LIMIT / len(products), seconds_of or _seconds_of)
            share = product.times * product.flops
            native, widened, flops = native + share / rate.native, widened + share / rate.widened, flops + share
    return Rates(flops / native, flops / widened)


@torch.inference_mode()
def _measure_one(product: Product, limit: float, seconds_of: Seconds) -> Rates:
    """The rates of one product. The ways take turns, so that a busy cache is so for both.

    Tokens are doubled up to the product's as long as time allows: a CPU that emulates bf16 is never asked for a whole one.
    """
    most, width, outputs = map(max, product[:3], _LEAST)
    weight = torch.ones(min(outputs, max(1, _WEIGHT // width)), width, dtype=torch.bfloat16)
    kept, tokens, spent = weight.float(), 4, 0.0
    while True:
        x = torch.ones(tokens, width, dtype=torch.bfloat16)
        ways = (lambda x=x: F.linear(x, weight)), (lambda x=x: widened_product(x, kept))
        turns = [[seconds_of(way) for way in ways] for _ in range(_CALLS)]
        spent += sum(map(sum, turns))
        native, widened = (min(each) for each in zip(*turns, strict=True))
        if tokens == most or spent + 2 * sum(map(sum, turns)) > limit:
            break
        tokens = min(2 * tokens, most)
    while spent + 2 * (native + widened) < limit:
        turn = [seconds_of(way) for way in ways]
        spent += sum(turn)
        native, widened = min(native, turn[0]), min(widened, turn[1])
    flops = 2.0 * tokens * weight.numel()
    return Rates(flops / native, flops / widened)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds_of(work: Callable[[], object]) -> float:
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def widened_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` taken in fp32 and rounded to the dtype of ``x``; shapes as there."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def has_choice(precision: str, device: torch.device) -> bool:
    """Whether there are two ways to take the products of a model of this ``precision`` on ``device``."""
    return precision == "bf16" and device.type == "cpu"


def widens(arithmetic: str, precision: str, device: torch.device) -> bool:
    """Whether products are widened: as ``arithmetic`` says, which is a recipe's, and by measurement if that is "auto"."""
    if not has_choice(precision, device):
        return False
    return arithmetic == "widened" or (arithmetic == "auto" and rates().faster == "widened")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a model that may be of either precision is faster in bf16 on ``device``."""
    if device.type == "cpu":
        return not widens("auto", "bf16", device)
    return has_bf16_gpu()
