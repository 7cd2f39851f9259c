"""The training loop, from top to bottom: start reading here.

MiniLM in one line: a student's q, k, v of its last layer learn the relations of the teacher's, by KL divergence. From here to
the formula: ``update`` (step.py) runs teacher, student, loss and backward; ``Trainee.losses`` (trainee.py) picks what the
student learns from; ``relation_loss`` (relations.py) is section 3 of arXiv 2002.10957 and section 3.1 of 2012.15828.
Models and engines are made in start.py.
"""

from pipeline.training import guards, resuming, start
from pipeline.training.ahead import ahead_of
from pipeline.training.evaluation import Evaluation
from pipeline.training.run import Run
from pipeline.training.start import Pending
from pipeline.training.step import update
from pipeline.training.watch import Watch


def train(run: Run, pending: list[Pending]) -> int:
    """Train each student from its checkpoint, or its start, to step ``run.last`` or an earlier one that all ranks agree on.

    Returns that step.
    """
    models = start.build(run, pending)  # initialised or loaded; the same on every rank
    teacher = start.host(run, models)  # frozen; replicated or sharded: ids -> q, k, v
    trainees = start.make_trainees(run, models, teacher)  # an engine each, where its checkpoint left off
    start.prepare_folders(run, models, trainees)
    evaluation = Evaluation(run, teacher)
    watch = Watch(run, models, teacher, trainees, evaluation)
    ahead = ahead_of(run, teacher)  # its next pass is made while gradients are averaged
    first = min(trainee.start for trainee in trainees)
    if first == 0:
        beginners = [trainee for trainee in trainees if trainee.start == 0]
        watch.evaluated(0, beginners, evaluation.of(beginners, 0))
    watch.restart_clock(first)

    for step, samples, following in run.reading(first):
        active = [trainee for trainee in trainees if trainee.start <= step]  # one that is ahead waits for the others
        watch.received(step, active)
        due = run.due(step)
        coming = None if due.leaves else following
        with watch.update(due):
            losses = update(active, ahead, samples, step, run.ranks, watch.clock, coming)
        guards.note(active, losses, step, run.ranks)

        # once in a while
        if due.any:
            guards.stop_if_not_finite(active, run.ranks)
        watch.log(step, active, losses, due)
        if due.evaluates:
            watch.evaluated(step + 1, active, evaluation.of(active, step + 1))
        if due.saves:
            resuming.save(run, teacher, active, step + 1)
        if due.leaves:
            break
        watch.restart_clock(step + 1)

    watch.close(step + 1)
    return step + 1
