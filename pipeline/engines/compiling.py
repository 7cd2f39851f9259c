"""torch.compile where it works, and the same function uncompiled where it does not."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch

_WAYS = 8  # in which one function may be compiled: with gradients or without, a mask or none, one sequence or several


class Compiled:
    """``function`` under ``torch.compile``; if that fails, one line says so and ``function`` itself runs from then on.

    The compiler may be missing (a C++ compiler on CPUs, Triton on GPUs) or fail on this machine: neither stops a run. Memory
    that runs out is no such failure, and is raised. ``function`` must not have changed its arguments by the time it fails,
    since it is called again. Shapes are compiled as dynamic: one program for all of them, so that a resumed run computes the
    same bits whatever shapes it meets first.

    Where torch is asked for deterministic algorithms, as on GPUs by ``deterministic = true``, ``function`` itself runs: a GPU's
    programs divide their sums by the first shapes that they meet.

    Methods of one class share torch's store of programs, which would be full after 8 of them: four widths of a student and
    their teacher. What is beyond would run uncompiled in silence; so the store grows with what is compiled, and where it is
    full all the same, that is a failure.
    """

    _failed: ClassVar[set[str]] = set()
    _made: ClassVar[int] = 0

    def __init__(self, function: Callable, what: str):
        """``what`` is compiled, for the line: where several have one name, they fail together."""
        self._function, self._what = function, what
        self._compiled = torch.compile(function, dynamic=True)
        Compiled._made += 1
        settings = torch._dynamo.config  # noqa: SLF001 - torch documents these settings, and has no other name for them
        settings.recompile_limit = max(settings.recompile_limit, _WAYS * Compiled._made)
        settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, settings.recompile_limit)
        settings.fail_on_recompile_limit_hit = True

    def __call__(self, *arguments, **options):
        if self._what in self._failed or torch.are_deterministic_algorithms_enabled():
            return self._function(*arguments, **options)
        try:
            return self._compiled(*arguments, **options)
        except Exception as error:
            if any(map(is_out_of_memory, _with_causes(error))):
                raise
            result = self._function(*arguments, **options)  # what fails here as well is not the compiler's fault
            self._failed.add(self._what)
            if os.environ.get("LOCAL_RANK", "0") == "0":  # of each host: its compiler may be another
                print(f"note: {self._line(error)}", file=sys.stderr, flush=True)
            return result

    def _line(self, error: Exception) -> str:
        """Why ``function`` itself runs from now on, and the way out."""
        if isinstance(error, torch._dynamo.exc.FailOnRecompileLimitHit):  # noqa: SLF001 - as its settings
            limit = torch._dynamo.config.recompile_limit  # noqa: SLF001
            return (
                f"{self._what} met more kinds of inputs than the {limit} that torch's compiler keeps programs for, and runs "
                "uncompiled, more slowly; set compile = 'loss' in the recipe, or train fewer students at once"
            )
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return (
            f"{self._what} cannot be compiled here and runs uncompiled, more slowly ({cause[:200]}); install g++ (on CPUs) or "
            "Triton (on GPUs), or set compile = 'none' in the recipe"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory or the host's ran out: torch has a type for a device's alone."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those it was raised from or wraps, as torch's compiler does with what it meets."""
    while error is not None:
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
