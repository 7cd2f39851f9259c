"""Held-out losses and relation maps of a run's students: every rank runs the forwards."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.reading import Heldout, Reading, heldout_of, read_of
from pipeline.engines.teacher import Teach
from pipeline.relations import QKV
from pipeline.training.maps import SENTENCE, relation_image, relation_maps
from pipeline.training.progress import EVALUATION
from pipeline.training.run import Run
from pipeline.training.trainee import Trainee


class Evaluated(NamedTuple):
    """A student's mean held-out losses, by part and by source, and its relation maps, uint8 [height, width].

    ``losses`` are empty without any held-out sequence, ``by_source`` also where all are of one source. Where vectors are
    learnt there are no maps.
    """

    losses: dict[str, float]
    by_source: dict[str, float]
    maps: Tensor | None


class Evaluation:
    """The held-out sequences of a run, the same ones each time, and one fixed sentence whose relation maps are drawn."""

    def __init__(self, run: Run, teach: Teach):
        recipe = run.recipe
        self._run, self._teach = run, teach
        self.heldout: Heldout | None = heldout_of(
            run.corpus,
            recipe.length,
            recipe.eval_samples,
            recipe.sampling_alpha,
            recipe.seed,
            recipe.layout,
            run.windows.paired,
        )

    def of(self, trainees: list[Trainee], step: int) -> tuple[list[Evaluated], dict[str, Reading]]:
        """Each student after ``step`` updates, and what was read of each source until then. Collective."""
        self._run.progress.at(EVALUATION, step)
        losses, by_source = self.losses(trainees)
        maps = self._maps(trainees)
        read = read_of(self._run.windows, self._run.order, step * self._run.recipe.batch)
        return [Evaluated(*each) for each in zip(losses, by_source, maps, strict=True)], read

    @torch.no_grad()
    def losses(self, trainees: list[Trainee]) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
        """Each student's mean held-out losses, by part and by source. Collective; without a process group if alone."""
        if self.heldout is None:
            return [{} for _ in trainees], [{} for _ in trainees]
        heldout, recipe, ranks = self.heldout, self._run.recipe, self._run.ranks
        for trainee in trainees:
            trainee.engine.eval()
        parts = heldout.inputs.split(recipe.micro_batch)
        total = [torch.zeros(len(trainee.recipe.parts) + 1, device=ranks.device) for trainee in trainees]
        names = sorted(set(heldout.sources))
        of_source = torch.zeros((len(trainees), len(names)), device=ranks.device)

        # Every rank runs equally many forwards (ZeRO-3 gathers in each); one without a batch left runs the first, weightless.
        for first in range(0, len(parts), ranks.world):
            self._run.progress.moved()
            mine = first + ranks.rank
            part = parts[mine if mine < len(parts) else 0].to(ranks.device)
            teacher = self._teach(part.ids, **part.told)
            for trainee, sums, by_name in zip(trainees, total, of_source, strict=True):
                output = trainee.engine(part.ids, **part.told)
                losses = trainee.losses(teacher, output, part.bounds())
                sums += torch.stack(list(losses.values())) * len(part) * (mine < len(parts))
                if len(names) > 1 and mine < len(parts):
                    sources = heldout.sources[mine * recipe.micro_batch :][: len(part)]
                    for name, loss in zip(sources, trainee.loss_of_each(teacher, output, part.bounds()), strict=True):
                        by_name[names.index(name)] += loss

        if ranks.world > 1:
            for sums in (*total, of_source):
                dist.all_reduce(sums)
        means = []
        for trainee, sums in zip(trainees, total, strict=True):
            named = zip(("loss", *trainee.recipe.parts), (sums / len(heldout.inputs)).tolist(), strict=True)
            means.append(dict(named))
        if len(names) == 1:
            return means, [{} for _ in trainees]
        shares = list(zip(heldout.sources, heldout.inputs.shares(), strict=True))
        counts = torch.tensor([sum(share for source, share in shares if source == name) for name in names])
        return means, [dict(zip(names, own, strict=True)) for own in (of_source / counts.to(of_source)).tolist()]

    @torch.no_grad()
    def _maps(self, trainees: list[Trainee]) -> Sequence[Tensor | None]:
        """The relation maps of the sentence, teacher next to student, as grey images."""
        run, recipe = self._run, self._run.recipe
        if recipe.embeds:
            return [None] * len(trainees)
        encoded = run.tokenizer(SENTENCE, return_tensors="pt", truncation=True, max_length=recipe.length)
        ids, images = encoded["input_ids"].to(run.ranks.device), []
        teacher = self._teach(ids)
        for trainee in trainees:
            trainee.engine.eval()
            own, output = trainee.recipe, trainee.engine(ids)
            targets = trainee.targets(teacher, slice(None), ids.shape[1])
            last = [QKV(*(x[-1:] for x in qkv[:3])) for qkv in (targets, output)]  # of its layers that learn
            maps = relation_maps(last[0], last[1], own.relations, own.relation_heads)
            images.append(relation_image(maps))
        return images
