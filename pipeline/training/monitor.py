"""The outputs of a run: a bar or plain lines, log.txt and TensorBoard for a person, metrics.jsonl for machines. Rank 0 only."""

import contextlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from data_prep.cli import UserError, shows_bars
from pipeline.artifacts.metrics import keep_until
from pipeline.artifacts.run_folder import flat
from pipeline.data.reading import Reading

_BUFFER = 2**20  # bytes: what a disk does not take stays here, and goes with the next row


class Monitor:
    """Writes one row for each logged step to RUN/metrics.jsonl and RUN/tensorboard, and shows it, after ``label``.

    ``data_wait`` in a row is the share of the training time in which there was no batch yet; ``model_flops`` is what the
    forwards and backwards of all models on all ranks come to in a second, by ``flops_per_step``.
    A run that resumes from step ``start`` drops the rows after it: they are about to be made again.

    A file that cannot be written, of a full disk, is no error once the run is under way: ``failure`` names it, and whoever
    looks there can save a checkpoint first. Its rows wait in memory, and are written if the disk takes them before ``close``.
    Raises UserError if it is so at the start.
    """

    def __init__(
        self,
        run: Path,
        start: int,
        steps: int,
        tokens_per_step: float,
        flops_per_step: float = 0.0,
        label: str = "",
        shows_bar: bool = True,
    ):
        self.run, self.failure = run, ""
        self._paths = {"metrics": run / "metrics.jsonl", "log": run / "log.txt", "board": run / "tensorboard"}
        keep_until(self._paths["metrics"], start)
        self._file, self._text = (self._paths[name].open("a", _BUFFER, encoding="utf-8") for name in ("metrics", "log"))
        with self._writing("board"):
            self._board = SummaryWriter(self._paths["board"], purge_step=start + 1 if start else None)
        if self.failure:
            raise UserError(f"{self.failure}; free some space and run the same command again")
        self._steps, self._tokens_per_step, self._flops_per_step = steps, tokens_per_step, flops_per_step
        self._label = label
        self._bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not (shows_bar and shows_bars()),
            smoothing=0.1,
        )
        self._logged, self._busy, self._waited, self._since = start, 0.0, 0.0, time.perf_counter()

    def describe(self, recipe: dict) -> None:
        """Write what the run is made by for TensorBoard: as text, and as hyper-parameters next to the held-out loss.

        Of the latter TensorBoard shows those of the first start.
        """
        values = {key: _plain(value) for key, value in flat(recipe).items()}
        text = "\n".join(["| key | value |", "|---|---|", *(f"| {key} | `{value}` |" for key, value in values.items())])
        with self._writing("board"):
            self._board.add_text("recipe", text, self._logged)
            writer: Any = self._board.file_writer
            for summary in hparams(values, {"heldout/loss": None}):
                writer.add_summary(summary)  # add_hparams would make a run of its own

    def say(self, line: str, about_all: bool = False, shown: bool = True) -> None:
        """A sentence for the person, above the bar: about this run, or ``about_all`` that train together."""
        if shown:
            self._bar.clear()
            self._show(line if about_all else self._label + line)
        self._note(line)

    def received(self) -> None:
        """The next batch is here: what came since ``resume`` was waiting for data."""
        self._waited += time.perf_counter() - self._since

    def step(self, step: int) -> None:
        """Update ``step`` is done."""
        self._busy += time.perf_counter() - self._since
        self._bar.update(step - self._bar.n)

    def resume(self) -> None:
        """Training continues: time since the last ``step`` (an evaluation, a checkpoint) does not count as training."""
        self._since = time.perf_counter()

    def log(self, step: int, losses: dict[str, float], **others: float) -> None:
        """Update ``step`` is done, and this is its row: losses in nats, and what else is known, as ``learning_rate``."""
        self.step(step)
        busy = max(self._busy, 1e-9)
        rate, waited = (step - self._logged) * self._tokens_per_step / busy, self._waited / busy
        self._logged, self._busy, self._waited = step, 0.0, 0.0
        left = (self._steps - step) * self._tokens_per_step / max(rate, 1e-9)
        flops = rate / self._tokens_per_step * self._flops_per_step
        self._write(
            step, "train", losses | others | {"tokens_per_second": rate, "data_wait": waited, "model_flops": flops}
        )
        shown = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        line = f"step {step}/{self._steps}  {shown}  {rate:,.0f} tokens/s  {_duration(left)} left"
        if self._bar.disable:
            self.say(line)
        else:
            self._note(line)
            self._bar.set_postfix_str(f"{shown} {rate:,.0f} tok/s")

    def evaluated(self, step: int, losses: dict[str, float], maps: Tensor | None) -> None:
        """Held-out losses and the relation maps as a grey image, uint8 [height, width], as far as there are any."""
        if maps is not None:
            with self._writing("board"):
                self._board.add_image("relations, teacher left, student right", maps, step, dataformats="HW")
        if losses:
            self._write(step, "heldout", losses)
            self.say(f"step {step}/{self._steps}  held out: " + "  ".join(f"{k} {v:.4f}" for k, v in losses.items()))

    def of_sources(self, step: int, reading: dict[str, Reading], losses: dict[str, float]) -> None:
        """Write what was read of each source until now, and its held-out loss in nats where a sequence of it is held out."""
        rows = {
            name: {what: value for what, value in read._asdict().items() if value is not None}
            for name, read in reading.items()
        }
        for name, loss in losses.items():
            rows.setdefault(name, {})["loss"] = loss
        by_tag = {
            f"{'heldout_loss' if what == 'loss' else what}_by_source/{name}": value
            for name, values in rows.items()
            for what, value in values.items()
        }
        self._row({"step": step, "kind": "sources", "sources": rows}, by_tag)

    def close(self) -> None:
        self._bar.close()
        for name, file in (("board", self._board), ("metrics", self._file), ("log", self._text)):
            with self._writing(name):
                file.close()

    def _write(self, step: int, kind: str, values: dict[str, float]) -> None:
        self._row({"step": step, "kind": kind, **values}, {f"{kind}/{name}": value for name, value in values.items()})

    def _row(self, row: dict, scalars: dict[str, float]) -> None:
        """Write a row to metrics.jsonl, and its ``scalars`` for TensorBoard."""
        with self._writing("metrics"):
            print(json.dumps(row), file=self._file, flush=True)
        with self._writing("board"):
            for tag, value in scalars.items():
                self._board.add_scalar(tag, value, row["step"])

    def _show(self, line: str) -> None:
        try:
            print(line, flush=True)
        except BrokenPipeError:  # whoever reads the output has left
            raise
        except OSError as error:
            output = sys.stdout.fileno()
            self.failure = self.failure or f"{Path(f'/proc/self/fd/{output}').readlink()}: {error.strerror}"
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # Python would try again as it ends, and fail

    def _note(self, line: str) -> None:
        with self._writing("log"):
            print(line, file=self._text, flush=True)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Keep an OSError as the ``failure``, if it is the first one."""
        try:
            yield
        except OSError as error:
            self.failure = self.failure or f"{self._paths[name]}: {error.strerror}"


def _plain(value: object) -> bool | str | float:
    return value if isinstance(value, bool | str | int | float) else json.dumps(value)


def _end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Print why a thread ends, but for TensorBoard's: what it could not write is raised where it is used next."""
    if not (isinstance(ended.exc_value, OSError) and type(ended.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(ended)


threading.excepthook = _end_of_thread


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
