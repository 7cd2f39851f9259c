"""Reports of a run while it trains, for a person and for machines. All ranks call it, the first one writes."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from data_prep.cli import UserError, as_typed
from pipeline.data.reading import Reading
from pipeline.engines.ranks import Ranks, on_first_rank
from pipeline.engines.student import gradient_norm
from pipeline.models.counting import forward_flops
from pipeline.training.evaluation import Evaluated, Evaluation
from pipeline.training.introduction import introduce
from pipeline.training.monitor import Monitor
from pipeline.training.progress import READ, UPDATE
from pipeline.training.run import Due, HostedTeacher, Run
from pipeline.training.start import Models
from pipeline.training.step import Clock
from pipeline.training.trainee import Trainee


class Watch:
    """A monitor for each student, on the first rank; on the others nothing is shown, and collectives are joined."""

    def __init__(
        self, run: Run, models: Models, teacher: HostedTeacher, trainees: list[Trainee], evaluation: Evaluation
    ):
        self._run = run
        self.clock = Clock(run.ranks.device, run.progress.moved)
        self._monitors: dict[int, Monitor] = {}  # by the identity of a trainee
        on_first_rank(run.ranks, self._begin, models, teacher, trainees, evaluation)

    def _begin(self, models: Models, teacher: HostedTeacher, trainees: list[Trainee], evaluation: Evaluation) -> None:
        run, flops = self._run, _flops_per_step(self._run, models)
        for number, trainee in enumerate(trainees):
            recipe = trainee.recipe
            folder = Path(recipe.out)
            label = f"{folder.name}: " if len(trainees) > 1 else ""
            self._monitors[id(trainee)] = Monitor(
                folder, trainee.start, recipe.steps, run.tokens_per_step, flops, label, shows_bar=number == 0
            )
        introduce(run, models, teacher, list(self._monitors.values()), evaluation.heldout)

    def received(self, step: int, trainees: list[Trainee]) -> None:
        """The samples of update ``step`` (from 0) of these students are here: before anything that may wait for the device."""
        for monitor in self._of(trainees):
            monitor.received()
            if monitor.failure:
                self._run.early.ask(monitor.failure)
        self._run.progress.at(UPDATE, step + 1)

    @contextlib.contextmanager
    def update(self, due: Due) -> Iterator[None]:
        """An update: its parts are timed if it is logged."""
        self.clock.running = due.logs
        yield

    def log(self, step: int, trainees: list[Trainee], losses: list[Tensor], due: Due) -> None:
        """Update ``step`` (from 0) is done; ``losses`` [micro-batches, 1 + pairs] of each student are logged if that is due."""
        done, recipe = step + 1, self._run.recipe
        if not due.logs:
            for monitor in self._of(trainees):
                monitor.step(done)
            return
        shares = _shares(self.clock.seconds())
        for trainee, own in zip(trainees, losses, strict=True):
            mean = _mean(own.mean(0), self._run.ranks).tolist()
            for monitor in self._of([trainee]):
                by_part = dict(zip(("loss", *trainee.recipe.parts), mean, strict=True))
                others = {"learning_rate": trainee.recipe.learning_rate_at(step), "samples": done * recipe.batch}
                monitor.log(done, by_part, **others, **gradient_norm(trainee.engine), **shares)

    def evaluated(self, step: int, trainees: list[Trainee], found: tuple[list[Evaluated], dict[str, Reading]]) -> None:
        """Show what an evaluation after ``step`` updates has found, and what was read of each source until then."""
        evaluated, read = found
        for monitor, each in zip(self._of(trainees), evaluated, strict=False):
            monitor.evaluated(step, each.losses, each.maps)
            if len(read) > 1:
                monitor.of_sources(step, read, each.by_source)

    def restart_clock(self, step: int) -> None:
        """Training continues with update ``step`` (from 0): an evaluation or a save is no training time."""
        self._run.progress.at(READ, step + 1)
        for monitor in self._monitors.values():
            monitor.resume()

    def close(self, step: int) -> None:
        """The run leaves after ``step`` updates: say why, and what to type next.

        Raises UserError, on all ranks, if the disk has not taken what there was to write, and names the file.
        """
        run, recipe, early = self._run, self._run.recipe, self._run.early
        if step < run.last:
            early.forget()
            end = f"Stopped after step {step} ({early.reason}); the same command resumes it."
        elif run.last < recipe.steps:
            end = f"Stopped after step {step} as asked; the same command without --stop-at resumes it."
        else:
            end = f"Done: {recipe.steps} steps."
        for monitor in self._monitors.values():
            finished = step == recipe.steps and not recipe.stage
            more = as_typed(f" Next: python -m pipeline.export {monitor.run} {monitor.run}-student") if finished else ""
            monitor.say(end + more)
            monitor.close()
        on_first_rank(run.ranks, self._stop_if_unwritten, step)

    def _stop_if_unwritten(self, step: int) -> None:
        for monitor in self._monitors.values():
            if monitor.failure:
                raise UserError(
                    f"{monitor.failure}; the run has written its checkpoint of step {step} and stops: free some space and run "
                    "the same command again"
                )

    def _of(self, trainees: list[Trainee]) -> list[Monitor]:
        return [self._monitors[id(trainee)] for trainee in trainees if id(trainee) in self._monitors]


def _flops_per_step(run: Run, models: Models) -> float:
    """Floating-point operations of a step: the teacher's forward, and each student's with its backward, which is twice that."""
    recipe = run.recipe
    *earlier, layer = models.layers
    whole = recipe.embeds
    flops = forward_flops(models.teacher.config, layer, recipe.length, len(earlier), whole) * recipe.batch
    for student in models.students:
        config, layers = student.model.config, len(student.recipe.layers)
        flops += 3 * forward_flops(config, config.num_hidden_layers, recipe.length, layers - 1, whole) * recipe.batch
    return flops


def _shares(seconds: dict[str, float]) -> dict[str, float]:
    """{"teacher_share": …}: each part's share of the time of an update."""
    return {f"{part}_share": spent / sum(seconds.values()) for part, spent in seconds.items()}


def _mean(x: Tensor, ranks: Ranks) -> Tensor:
    """The mean of ``x`` over all ranks."""
    dist.all_reduce(x)
    return x / ranks.world
