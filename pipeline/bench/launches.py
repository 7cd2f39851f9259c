"""``bench step --launches``: what a GPU would be sent in one update, counted on any machine.

Counted are the operations that torch dispatches, and each call of a kernel that Inductor generated. Not counted are views,
and what only reserves memory, asks something or reads a number; each read makes the host wait, which is a row of its own.

So that a CPU is asked for what a GPU would be, models have torch's own layers and attention, not those for CPUs; the
attention drops nothing, and of a dropout's three operations on a CPU one counts: on a GPU each is a single kernel. A
compiled program's kernels are the CPU's; how many a GPU's program has may differ a little. Triton's own kernels, as of the
fused loss, count where they run. A CUDA graph counts as what is copied to and from it.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

from torch import nn
from torch._inductor.codecache import PyCodeCache
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.bench.tools import Row
from pipeline.data.inputs import Inputs
from pipeline.engines.teacher import Teach
from pipeline.models.cut import CutEncoder
from pipeline.models.precision import use_torchs_own
from pipeline.training.trainee import Trainee

_PARTS = ("teacher", "student", "loss", "backward", "engine.step")
_WARM_UPS = 3  # updates before the one that is counted: compiling, and Adam's moments
_NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh", "promote_types",
    "_local_scalar_dense", "is_nonzero", "set_", "resize_",
    "bernoulli_", "div_.Scalar",  # a dropout's mask; its product counts
}  # fmt: skip
_WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"}


def launch_rows(trainee: Trainee, teach: Teach, samples: Inputs, case: dict) -> Iterator[Row]:
    """The rows of an update of one micro-batch, its parts one by one."""
    for _ in range(_WARM_UPS):
        _update(trainee, teach, samples, {name: contextlib.nullcontext() for name in _PARTS})
    parts = {name: Launches() for name in _PARTS}
    _update(trainee, teach, samples, parts)
    for name, part in parts.items():
        note = f"{part.operations} operations, {part.kernels} calls of generated kernels"
        yield Row(name, part.total, "launches", note, case)
    whole = sum(part.total for part in parts.values())
    yield Row("update", whole, "launches", "the sum; how many the loss has depends on the device's blocks", case)
    note = "target with compile = all: at most 450, with a fused loss of a few launches"
    yield Row("without the loss", whole - parts["loss"].total, "launches", note, case)
    yield Row(
        "waits", sum(part.waits for part in parts.values()), "", "numbers that the host reads and waits for", case
    )


def _update(trainee: Trainee, teach: Teach, samples: Inputs, parts: Mapping[str, AbstractContextManager]) -> None:
    """One update of one micro-batch, each part within its own context."""
    engine = trainee.engine
    engine.train()
    with parts["teacher"]:
        teacher = teach(samples.ids, **samples.told)
    with parts["student"]:
        output = engine(samples.ids, **samples.told)
    with parts["loss"]:
        loss = trainee.losses(teacher, output, samples.bounds())["loss"]
    with parts["backward"]:
        engine.backward(loss)
    with parts["engine.step"]:
        engine.step()


def as_on_gpus(encoder: CutEncoder) -> None:
    """Give a BERT the layers and the attention that it has on a GPU, as far as they are to be counted."""
    use_torchs_own(encoder)
    for name, module in encoder.named_modules():
        if name.endswith("attention.self.dropout"):
            cast(nn.Dropout, module).p = 0.0


class Launches(TorchDispatchMode):
    """Within it: ``operations`` that torch was asked for, calls of generated ``kernels``, ``waits`` of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.kernels = self.waits = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Torch asks: compiled programs run inside this mode, which only looks on."""
        return True

    @property
    def total(self) -> int:
        return self.operations + self.kernels

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: Any = None) -> Any:
        self.operations += _launches(function)
        self.waits += function.overloadpacket.__name__ in _WAITS
        return function(*arguments, **options or {})

    def __enter__(self):
        self._undo = contextlib.ExitStack()
        for module in PyCodeCache.modules:
            for name, kernel in list(vars(module).items()):
                if name.startswith("cpp_fused"):  # a function, on a CPU
                    self._count(module, name)
                elif name.startswith("triton_"):
                    self._count(kernel, "run")
        if (jit := sys.modules.get("triton.runtime.jit")) is not None:
            self._count(jit.JITFunction, "run")
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()

    def _count(self, owner: Any, attribute: str) -> None:
        """Count the calls of a kernel, which is this attribute of its ``owner``."""
        original = getattr(owner, attribute)

        def counted(*arguments: Any, **options: Any) -> Any:
            self.kernels += 1
            return original(*arguments, **options)

        setattr(owner, attribute, counted)
        self._undo.callback(setattr, owner, attribute, original)


def _launches(function: Any) -> bool:
    """Whether an operation would launch a kernel on a GPU."""
    names = {function.overloadpacket.__name__, function.__name__}  # as mul and mul.Tensor
    return function.namespace in ("aten", "c10d") and not function.is_view and not names & _NO_KERNEL
