"""``python -m tests.parts.across_layouts RUN STUDENT``: a student's losses on the held-out text of its run, in each layout.

RUN is a run folder, STUDENT the student that was exported from it.
"""

import dataclasses
import sys
from pathlib import Path

import torch

from pipeline.artifacts import checkpoints
from pipeline.data.reading import LAYOUTS
from pipeline.models.loading import load_folder_tokenizer, load_model
from pipeline.settings.values import recipe_of
from pipeline.training.progress import Progress
from pipeline.training.recomputing import _losses

if __name__ == "__main__":
    run, folder = Path(sys.argv[1]), Path(sys.argv[2])
    checkpoint, tokenizer = checkpoints.newest_of(run), load_folder_tokenizer(folder)
    recipe = recipe_of(checkpoint.info["recipe"], str(run))
    for layout in LAYOUTS:
        read = dataclasses.replace(recipe, layout=layout, eval_samples=10**9)
        student = load_model(str(folder), "main", torch.float32)
        losses, _ = _losses(read, checkpoint, student, tokenizer, Progress())
        print(layout, *(f"{name} {loss:.4f}" for name, loss in losses.items()), flush=True)
