"""The moment in a backward pass when its gradients are computed, and not yet averaged over ranks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def before_averaging(engine: Any, work: Callable[[], object]) -> Iterator[None]:
    """Have ``engine.backward`` inside the block call ``work`` between the backward pass and the averaging of gradients.

    DeepSpeed averages at the end of ``engine.backward``: at stages 0 and 1 in the last micro-batch of a step, at 2 and 3 in
    each, where a bucket that fills up is sent earlier. At stages 1 and 2 ``engine.step`` then gathers the new weights.
    """
    average = engine.allreduce_gradients

    def work_then_average(*arguments: Any, **options: Any) -> None:
        work()
        average(*arguments, **options)

    engine.allreduce_gradients = work_then_average
    try:
        yield
    finally:
        del engine.allreduce_gradients
