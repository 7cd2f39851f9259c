"""A GPU of the imagination: tensors on the CPU of which those that were never sent count as the host's, all others as its own.

Inside ``FakeDevice`` whatever would make the host wait for a real one raises HostWaits: reading a number, an operation whose
result's shape depends on numbers, a copy back, and a copy there from memory that is not pinned, or of a part of a tensor.
What DeepSpeed's own code does is counted instead.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)  # ``.to(DEVICE)`` sends; ``.to("cpu")`` fetches

_READS = {Tensor.cpu, Tensor.tolist, Tensor.numpy, Tensor.__array__}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
_FACTORIES = {
    torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.rand, torch.randn,
    torch.randint, torch.from_numpy,
}  # fmt: skip
_BY_NUMBERS = {  # reads a number, or its result's shape follows from numbers
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "unique_consecutive", "unique_dim", "_unique", "_unique2",
    "bincount", "repeat_interleave.Tensor",
}  # fmt: skip


class HostWaits(AssertionError):
    """The host would wait for the device here."""


class FakeDevice(TorchDispatchMode):
    """A context manager. ``allowed``: how often DeepSpeed's own code would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed = 0
        self._host: dict[int, Tensor] = {}  # by storage; kept, lest another tensor gets its memory
        self._pinned: set[int] = set()
        self._functions = _Functions(self)

    def __enter__(self) -> "FakeDevice":
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def hosts(self, *tensors: Any) -> None:
        """These have not been sent, nor will be what is computed of them."""
        for x in tensors:
            if isinstance(x, Tensor):
                self._host[_storage(x)] = x

    def is_host(self, x: Any) -> bool:
        return isinstance(x, Tensor) and _storage(x) in self._host

    def pin(self, x: Tensor) -> Tensor:
        pinned = x.clone()
        self.hosts(pinned)
        self._pinned.add(_storage(pinned))
        return pinned

    def send(self, x: Tensor, non_blocking: bool) -> Tensor:
        if not non_blocking or _storage(x) not in self._pinned or not x.is_contiguous():
            self.wait("a copy to the device that is blocking, not pinned or not contiguous")
        with torch._C._DisableTorchDispatch():
            return x.clone()

    def wait(self, what: str) -> None:
        """The host would wait: raise, unless it is DeepSpeed's own code that lets it."""
        if _is_deepspeeds(sys._getframe(1)):
            self.allowed += 1
        else:
            raise HostWaits(what)

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), options: Any = None) -> Any:
        options = options or {}
        tensors = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
        host = [x for x in tensors if self.is_host(x)]
        name = function._schema.name.split("::")[1]
        if len(host) < len(tensors):
            full = f"{name}.{function._overloadname}"
            masks = any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:]) and name.startswith("index")
            if {name, full} & _BY_NUMBERS or masks:
                self.wait(full)
            if name == "copy_" and host:
                self.wait("a copy between host and device")
            elif any(x.dim() for x in host):
                self.wait(f"{full} of tensors on host and device")
        result = function(*arguments, **options)
        if tensors and len(host) == len(tensors):
            self.hosts(*tree_leaves(result))
        return result


class _Functions(TorchFunctionMode):
    """What Python alone sees: where a tensor is wanted, and reads that torch does not dispatch."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, function: Any, types: Any, arguments: tuple = (), options: Any = None) -> Any:
        options, first = options or {}, arguments[0] if arguments else None
        host, theirs = self._device.is_host(first), _is_deepspeeds(sys._getframe(1))
        if function is Tensor.pin_memory:
            return self._device.pin(first)
        if function is Tensor.to and (places := _places(arguments[1:], options)):
            if host and "cpu" not in places:
                return self._device.send(first, options.get("non_blocking", False))
            if not host and "cpu" in places and not theirs:  # DeepSpeed's name of its device is "cpu" as well
                self._device.wait("a copy to the host")
        if function in _READS and not host:
            self._device.wait(f"Tensor.{function.__name__}")
        if function in _INDEXING and not host and any(type(x) is list for x in (arguments[1], *_parts(arguments[1]))):
            self._device.wait("a list as an index, which is sent")
        if function in _FACTORIES and not isinstance(first, Tensor):
            if function in (torch.tensor, torch.as_tensor) and options.get("device"):
                self._device.wait("a copy of numbers to the device")
            result = function(*arguments, **options)
            if not options.get("device") and not theirs:
                self._device.hosts(result)
            return result
        return function(*arguments, **options)


def _parts(index: Any) -> tuple:
    return index if type(index) is tuple else ()


def _places(arguments: tuple, options: dict) -> list:
    """The devices, as a caller gives them, to which a tensor is to go."""
    return [x for x in (*arguments, *options.values()) if isinstance(x, torch.device | str)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _is_deepspeeds(frame: Any) -> bool:
    """Whether the nearest frame outside of torch is DeepSpeed's. Autograd's own is the model's, which decides what it runs."""
    while frame is not None:
        path = frame.f_code.co_filename
        if "/deepspeed/" in path:
            return True
        if frame.f_code.co_name == "_engine_run_backward" or not ("/torch/" in path or path == __file__):
            return False
        frame = frame.f_back
    return False
