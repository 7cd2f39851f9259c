"""The teacher's pass of the next window, made while the gradients of this one are averaged over ranks.

The teacher is frozen: what it says of the next samples needs nothing of the students. So its pass can be made while others
wait for a network, and gives the same bits as at its own time.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from pipeline.data.inputs import Inputs
from pipeline.engines.teacher import Teach
from pipeline.models.cut import Taught
from pipeline.training.run import HostedTeacher, Run

Begin = Callable[[Callable[[], Taught]], Callable[[], Taught]]  # begins work, and returns what waits for its result


class Ahead:
    """A hosted teacher's passes: a window's own, or, where one was begun for it, that one's result.

    What is begun must be the window that is asked for next.
    """

    def __init__(self, teach: Teach, begin: Begin | None = None):
        """``begin``: see ``beside``. None: nothing is begun, each pass is made when it is asked for."""
        self._teach, self._begin = teach, begin
        self._result: Callable[[], Taught] | None = None

    def begin(self, coming: Callable[[], Inputs | None] | None) -> None:
        """Begin the pass of the window that ``coming`` gives, if it gives one."""
        window = coming() if self._begin and coming else None
        if self._begin and window is not None:
            self._result = self._begin(partial(self._teach, window.ids, **window.told))

    def wait(self) -> None:
        """Wait for the pass that was begun, if any was; raises its errors. On a GPU it is the device's queue that waits."""
        if self._result:
            self._result()

    def __call__(self, window: Inputs) -> Taught:
        """What the teacher says of ``window``: q, k, v, or vectors."""
        result, self._result = self._result, None
        return result() if result else self._teach(window.ids, **window.told)


def ahead_of(run: Run, teacher: HostedTeacher) -> Ahead:
    """The passes of a run's teacher: begun ahead where gradients travel and the teacher's own parameters do not.

    Those of a sharded teacher would travel with the gradients, in one queue on a GPU, and from two threads on CPUs in an
    order that differs between ranks. Between the CPUs of one machine there is no network to wait for.
    """
    ranks = run.ranks
    travels = ranks.world > 1 and (ranks.device.type == "cuda" or len(ranks.nodes) > 1)
    hides = travels and teacher.hosting.kind == "replicate"
    return Ahead(teacher, beside(ranks.device) if hides else None)


def beside(device: torch.device) -> Begin:
    """How to begin work beside what this process does: in a stream of its own on a GPU, in a thread on CPUs."""
    return _in_stream(device) if device.type == "cuda" else _in_thread()


def _in_thread() -> Begin:
    """A collective on CPUs blocks the thread that calls it. Work gets as many threads as here, and so the same bits."""
    pool = ThreadPoolExecutor(1, "beside", torch.set_num_threads, (torch.get_num_threads(),))
    return lambda work: pool.submit(work).result


def _in_stream(device: torch.device) -> Begin:
    """Both streams wait for all that the other has been given before: that also keeps memory from being used twice."""
    stream = torch.cuda.Stream(device)

    def begin(work: Callable[[], Taught]) -> Callable[[], Taught]:
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            result = work()

        def wait() -> Taught:
            torch.cuda.current_stream(device).wait_stream(stream)
            return result

        return wait

    return begin
