"""torch.compile where it works, and the same function uncompiled where it does not."""

import os
import sys
from collections.abc import Callable
from typing import ClassVar

import torch


class Compiled:
    """``function`` under ``torch.compile``; if that fails, one line says so and ``function`` itself runs from then on.

    The compiler may be missing (a C++ compiler on CPUs, Triton on GPUs) or fail on this machine: neither stops a run.
    ``function`` must not have changed its arguments by the time it fails, since it is called again. Shapes are compiled as
    dynamic: one program for all of them, so that a resumed run computes the same bits whatever shapes it meets first.
    """

    _failed: ClassVar[set[str]] = set()

    def __init__(self, function: Callable, what: str):
        """``what`` is compiled, for the line: where several have one name, they fail together."""
        self._function, self._what = function, what
        self._compiled = torch.compile(function, dynamic=True)

    def __call__(self, *arguments, **options):
        if self._what in self._failed:
            return self._function(*arguments, **options)
        try:
            return self._compiled(*arguments, **options)
        except Exception as error:
            result = self._function(*arguments, **options)  # what fails here as well is not the compiler's fault
            self._failed.add(self._what)
            if os.environ.get("RANK", "0") == "0":
                cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
                print(
                    f"note: {self._what} cannot be compiled here and runs uncompiled, more slowly ({cause[:200]}); "
                    "install g++ (on CPUs) or Triton (on GPUs), or set compile = 'none' in the recipe",
                    file=sys.stderr,
                    flush=True,
                )
            return result
