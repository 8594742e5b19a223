"""The log of a run: a line on the console, log.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch

from emollama.logs.console import Progress, duration
from emollama.logs.logger import get_logger, log_metrics
from emollama.logs.tracking import Tracking
from emollama.paths import atomic_write

SHOWN_REFERENCES = 2  # of the captions of an image
# TensorBoard's writer sleeps this long if an interrupt keeps its wake-up call back; the end of the run waits for it.
FLUSH_SECONDS = 5


class TrainingBar(Progress):
    """The bar of the training steps on a terminal, below the lines of the steps, which show the progress elsewhere."""

    lines = False


class RunLog:
    """Metrics of a run: an object a line in log.jsonl, scalars in TensorBoard, lines (and a bar on a terminal) on the console.

    A context: leaving it flushes and closes everything.

    Args:
        folder: of the run.
        first_step: where this process begins; what an interrupted one logged from there on is dropped.
        total_steps: of the run.
        epoch_steps: of an epoch.
        log_freq: steps between logged ones.
        enabled: False on ranks that stay silent.
    """

    def __init__(
        self, folder: Path, *, first_step: int, total_steps: int, epoch_steps: int, log_freq: int, enabled: bool
    ) -> None:
        self._folder, self._first, self._total, self._enabled = folder, first_step, total_steps, enabled
        self._epoch_steps, self._every = epoch_steps, log_freq
        self._begun = self._window = self._epoch_begun = time.monotonic()
        self._epoch_losses: list[float] = []
        self._waited = 0.0
        self._steps = self._tokens = self._samples = 0
        self._cut_told = False
        self._tracking: Tracking | None = None
        self._session_end: Any = None
        if enabled:
            path = folder / "log.jsonl"
            kept = entries_before(path, first_step)
            with atomic_write(path) as file:
                file.writelines(json.dumps(entry) + "\n" for entry in kept)
            self._file = path.open("a", encoding="utf-8")
            from torch.utils.tensorboard import SummaryWriter  # here: ranks that write nothing do not need it

            self._board = SummaryWriter(str(folder), purge_step=first_step, flush_secs=FLUSH_SECONDS)
            self._events: Any = self._board.file_writer

    def __enter__(self) -> Self:
        # Here, so that __exit__ removes the bar and shows the cursor again even if an interrupt comes first.
        self._bar = TrainingBar(self._total, "training", enabled=self._enabled, initial=self._first)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if self._enabled:
            if self._session_end is not None and kind is None:
                self._events.add_summary(self._session_end)
            self._board.close()
            self._file.close()
        if self._tracking:
            self._tracking.close(failed=kind is not None)

    def track(self, project: str, config: dict[str, Any]) -> None:
        """Send the scalars to Weights & Biases too; a resumed run goes on there.

        Raises:
            UserError: it does not start: nobody is logged in, or the network is away.
        """
        self._tracking = Tracking(self._folder, project, config, resumed=self._first > 0)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write the run's hyper-parameters for TensorBoard's tab of that name, into the run's own folder.

        Args:
            values: name -> number, text or truth value.
            metrics: tags of the scalars that stand beside them; TensorBoard shows the last value of each.
        """
        if not self._enabled:
            return
        from torch.utils.tensorboard.summary import hparams

        experiment, session_start, self._session_end = hparams(dict(values), dict.fromkeys(metrics, 0.0))
        self._events.add_summary(experiment)
        self._events.add_summary(session_start)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait for data, whose share of the time is logged."""
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: its time counts neither as speed nor towards the end's estimate."""
        begun = time.monotonic()
        yield
        seconds = time.monotonic() - begun
        self._window += seconds
        self._begun += seconds
        self._epoch_begun += seconds
        self._bar.exclude(seconds)

    def step(self, step: int, values: dict[str, Any], samples: int) -> None:
        """One step is done; its values are logged when due, with the speed since the last logged one.

        Args:
            step: number of the step, from 0.
            values: at least epoch, loss, lr, tokens and tokens_cut (of this step, over all ranks).
            samples: of this step, over all ranks.
        """
        if not self._enabled:
            return
        self._bar.update()
        self._steps += 1
        self._epoch_losses.append(values["loss"])
        self._tokens += values["tokens"]
        self._samples += samples
        self._warn_of_cuts(step, values["tokens_cut"])
        if step % self._every and step + 1 < self._total:
            return
        now = time.monotonic()
        seconds = now - self._window
        values = values | {
            "samples_per_s": self._samples / seconds,
            "tokens_per_s": self._tokens / seconds,
            "step_time": seconds / self._steps,
            "data_time": self._waited / self._steps,
            "data_wait": self._waited / seconds,
            "peak_memory_gib": _peak_memory_gib(),
        }
        self._write(step, values)
        self._show(step, values, (now - self._begun) / (step + 1 - self._first))
        self._window, self._waited, self._steps, self._tokens, self._samples = now, 0.0, 0, 0, 0

    def end_epoch_when_due(self, done: int) -> None:
        """After the last step of an epoch, show its average loss, its duration and its checkpoint.

        Args:
            done: number of steps of the run that are done.
        """
        if not self._enabled or done % self._epoch_steps:
            return
        epoch, now = done // self._epoch_steps - 1, time.monotonic()
        losses = [loss for loss in self._epoch_losses if math.isfinite(loss)]
        average = f"{math.fsum(losses) / len(losses):.4f}" if losses else "not finite"
        steps = len(self._epoch_losses)
        part = f" (its last {steps} steps)" if steps < self._epoch_steps else ""
        text = "epoch %d%s: average loss %s, duration %s, checkpoint %s"
        path = self._folder / f"checkpoint_{epoch}.pth"
        get_logger().info(text, epoch, part, average, duration(now - self._epoch_begun), path)
        self._epoch_losses, self._epoch_begun = [], now

    def evaluation(
        self, step: int, epoch: int, metrics: dict[str, float | None], answers: dict[str, list[dict[str, Any]]]
    ) -> None:
        """An evaluation is done: its metrics and a few answers on the console and in TensorBoard.

        Args:
            step: the last one before it, from 0.
            epoch: which one it ended, from 0.
            metrics: "block/task/metric" -> value.
            answers: block -> rows with name, task, prediction and reference; of several references the first two are shown.
        """
        if not self._enabled:
            return
        log_metrics(metrics, f"epoch {epoch}, ")
        self._scalars(step, {f"eval/{name}": value for name, value in metrics.items() if value is not None})
        for block, rows in answers.items():
            for row in rows:
                truth = _one_line(row["reference"])
                get_logger().info("%s (%s): %s  | truth: %s", row["name"], row["task"], row["prediction"], truth)
                text = f"{row['prediction']}\n\n*truth:* {truth}"
                self._board.add_text(f"eval/{block}/{row['task']}/{row['name']}", text, step)
        self._board.flush()

    def _warn_of_cuts(self, step: int, tokens: int) -> None:
        """Tell, once, that texts do not fit."""
        if tokens and not self._cut_told:
            text = "%d tokens of answers or prompts did not fit (model.max_txt_len, max_context_len) in step %d; log.jsonl counts"
            get_logger().warning(f"{text} them as tokens_cut; emollama check-data names the clips", tokens, step)
            self._cut_told = True

    def _write(self, step: int, values: dict[str, Any]) -> None:
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        self._scalars(step, {f"train/{name}": value for name, value in values.items() if name != "epoch"})

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._tracking:
            self._tracking.scalars(step, values)

    def _show(self, step: int, values: dict[str, Any], step_seconds: float) -> None:
        """The step within its epoch, the time until the epoch's end, and the figures that LAVIS shows, in its words."""
        steps = self._epoch_steps
        done = step % steps
        step_of_epoch = f"[{done:{len(str(steps))}d}/{steps}]"
        figures = (
            f"lr: {values['lr']:.6f}  loss: {values['loss']:.4f}  time: {values['step_time']:.4f}"
            f"  data: {values['data_time']:.4f}  max mem: {values['peak_memory_gib'] * 1024:.0f}"
        )
        self._bar.label = f"epoch {values['epoch']} {step_of_epoch}"
        eta = duration(step_seconds * (steps - done - 1))
        get_logger().info("Train: data epoch: [%d]  %s  eta: %s  %s", values["epoch"], step_of_epoch, eta, figures)


def _one_line(reference: str | list[str] | None) -> str | None:
    """A reference on one line."""
    if not isinstance(reference, list):
        return reference
    shown, more = reference[:SHOWN_REFERENCES], len(reference) - SHOWN_REFERENCES
    return " / ".join(shown) + (f" (+{more})" if more > 0 else "")


def _peak_memory_gib() -> float:
    """Most memory that this process ever held: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def entries_before(path: Path, step: int) -> list[dict[str, Any]]:
    """The entries of a log, an object a line, that belong to steps before this one; a line that was cut short is dropped."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["step"] < step:
            kept.append(entry)
    return kept
