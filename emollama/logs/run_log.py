"""The log of a training run: console, log.jsonl, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from emollama.logs.console import Progress, duration
from emollama.logs.entries import entries_before
from emollama.logs.log_files import LogFile, TensorBoard, WriteFailures
from emollama.logs.logger import get_logger, log_metrics
from emollama.logs.tracking import Tracking
from emollama.paths import atomic_write
from emollama.run_folder import LOG, PredictionRecord, StepRecord, json_line

SHOWN_REFERENCES = 2  # number of reference captions of an image that are shown


class TrainingBar(Progress):
    """The progress bar of the training steps. Without a terminal, the log lines of the steps show the progress instead."""

    lines = False


class RunLog:
    """Logs metrics of a run: one JSON object per line in log.jsonl, scalars in TensorBoard, lines and a bar on the console.

    It is a context manager that closes all files at its end. If a file of the log cannot be written, for example because the disk
    is full, there is a warning, and the training continues.

    Args:
        folder: folder of the run.
        first_step: first step of this process; entries that an interrupted process has logged from there on are removed.
        total_steps: number of steps of the run.
        epoch_steps: number of steps of an epoch.
        log_freq: number of steps between log entries.
        enabled: False on ranks other than 0, which log nothing.

    Attributes:
        failures: handles errors of writing files of the log.

    Raises:
        OSError: If the files cannot be created.
    """

    def __init__(
        self, folder: Path, *, first_step: int, total_steps: int, epoch_steps: int, log_freq: int, enabled: bool
    ) -> None:
        self._folder, self._first, self._total, self._enabled = folder, first_step, total_steps, enabled
        self._epoch_steps, self._every = epoch_steps, log_freq
        self._start = self._window = self._epoch_start = time.monotonic()
        # Losses on the device, and those that have been copied from there.
        self._new_losses: list[Tensor | float] = []
        self._epoch_losses: list[float] = []
        self._waited = 0.0
        self._steps = self._tokens = self._samples = 0
        self._warned_of_cuts = False
        self._tracking: Tracking | None = None
        self._session_end: Any = None
        self.failures = WriteFailures()
        if enabled:
            self._path = folder / LOG
            entries = entries_before(self._path, first_step)
            with atomic_write(self._path) as file:
                file.writelines(map(json_line, entries))
            self._file = LogFile(self._path)
            self._board = TensorBoard(folder, first_step, self.failures)

    def __enter__(self) -> Self:
        # The bar is created here and not in __init__, so that __exit__ removes it and shows the cursor after an interrupt.
        self._bar = TrainingBar(self._total, "training", enabled=self._enabled, initial=self._first)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if self._enabled:
            if self._session_end is not None and kind is None:
                self._board.summaries(self._session_end)
            self._board.close()
            with self.failures.tolerated(self._path):
                self._file.close()
        if self._tracking:
            self._tracking.close(failed=kind is not None)

    def track(self, project: str, config: dict[str, Any]) -> None:
        """Start logging to Weights & Biases, too. A resumed run continues its run there.

        Raises:
            UserError: If Weights & Biases cannot be started, for example without a login or network.
        """
        self._tracking = Tracking(self._folder, project, config, resumed=self._first > 0)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Log the hyper-parameters of the run for TensorBoard's HParams tab.

        Args:
            values: name -> value.
            metrics: tags of the scalars that TensorBoard shows with them, with the last value of each.
        """
        if not self._enabled:
            return
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams would create a run of its own; these events belong to the run's folder.
        experiment, session_start, self._session_end = hparams(dict(values), dict.fromkeys(metrics, 0.0))
        self._board.summaries(experiment, session_start)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the time in this context as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time in this context from throughput and ETA."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self._window += seconds
        self._start += seconds
        self._epoch_start += seconds
        self._bar.exclude(seconds)

    def is_due(self, step: int) -> bool:
        """Return whether a step gets an entry: every ``log_freq`` steps, and the last step."""
        return step % self._every == 0 or step + 1 == self._total

    def step(self, step: int, values: dict[str, Any], samples: int) -> None:
        """Count a finished step, and log its values if an entry is due, with the throughput since the last entry.

        Args:
            step: number of the step, from 0.
            values: values of this step over all ranks: those of :class:`StepRecord` up to tokens_cut. Those that the device
                computes, among them the loss, are scalar tensors, and are read only if an entry is due.
            samples: number of samples of this step over all ranks.
        """
        if not self._enabled:
            return
        self._bar.update()
        self._steps += 1
        self._new_losses.append(values["loss"])
        self._tokens += values["tokens"]
        self._samples += samples
        self._warn_of_cuts(step, values["tokens_cut"])
        if not self.is_due(step):
            return
        values = _numbers(values)
        self._read_losses()
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
        self._show(step, values, (now - self._start) / (step + 1 - self._first))
        self._window, self._waited, self._steps, self._tokens, self._samples = now, 0.0, 0, 0, 0

    def maybe_end_epoch(self, done: int) -> None:
        """Log average loss, duration and checkpoint of an epoch after its last step.

        Args:
            done: number of finished steps of the run.
        """
        if not self._enabled or done % self._epoch_steps:
            return
        self._read_losses()
        epoch, now = done // self._epoch_steps - 1, time.monotonic()
        losses = [loss for loss in self._epoch_losses if math.isfinite(loss)]
        average = f"{math.fsum(losses) / len(losses):.4f}" if losses else "not finite"
        steps = len(self._epoch_losses)
        part = f" (its last {steps} steps)" if steps < self._epoch_steps else ""
        text = "epoch %d%s: average loss %s, duration %s, checkpoint %s"
        path = self._folder / f"checkpoint_{epoch}.pth"
        get_logger().info(text, epoch, part, average, duration(now - self._epoch_start), path)
        self._epoch_losses, self._epoch_start = [], now

    def _read_losses(self) -> None:
        """Copy the losses since the last call from the device."""
        if self._new_losses:
            self._epoch_losses += torch.stack([torch.as_tensor(loss, dtype=torch.float64) for loss in self._new_losses]).tolist()
            self._new_losses = []

    def evaluation(
        self, step: int, epoch: int, metrics: dict[str, float | None], predictions: Mapping[str, Sequence[PredictionRecord]]
    ) -> None:
        """Log the metrics and a few answers of an evaluation on the console and in TensorBoard.

        Args:
            step: number of the last training step before the evaluation, from 0.
            epoch: the epoch that ended before the evaluation, from 0.
            metrics: "block/task/metric" -> value.
            predictions: block -> predictions; at most two references of each are shown.
        """
        if not self._enabled:
            return
        log_metrics(metrics, f"epoch {epoch}, ")
        self._scalars(step, {f"eval/{name}": value for name, value in metrics.items() if value is not None})
        for block, block_predictions in predictions.items():
            for prediction in block_predictions:
                reference = _one_line(prediction.reference)
                name, task, answer = prediction.name, prediction.task, prediction.prediction
                get_logger().info("%s (%s): %s  | reference: %s", name, task, answer, reference)
                tag, text = f"eval/{block}/{task}/{name}", f"{answer}\n\n*reference:* {reference}"
                self._board.write(lambda writer, tag=tag, text=text: writer.add_text(tag, text, step))  # type: ignore[misc]
        self._board.write(lambda writer: writer.flush())

    def _warn_of_cuts(self, step: int, tokens: int) -> None:
        """Warn once if tokens were cut."""
        if tokens and not self._warned_of_cuts:
            get_logger().warning(
                "%d tokens of answers or prompts did not fit (model.max_txt_len, max_context_len) in step %d. log.jsonl counts"
                " them as tokens_cut; emollama check-data lists the samples.",
                tokens,
                step,
            )
            self._warned_of_cuts = True

    def _write(self, step: int, values: dict[str, Any]) -> None:
        # A custom runner may log other values, too.
        assert {field.name for field in fields(StepRecord)} <= {"step", *values}
        with self.failures.tolerated(self._path):
            self._file.append(json_line({"step": step, **values}))
        self._scalars(step, {f"train/{name}": value for name, value in values.items() if name != "epoch"})

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        self._board.scalars(step, values)
        if self._tracking:
            self._tracking.scalars(step, values)

    def _show(self, step: int, values: dict[str, Any], step_seconds: float) -> None:
        """Log the step in the format of LAVIS, with the time until the end of the epoch."""
        steps = self._epoch_steps
        done = step % steps
        step_of_epoch = f"[{done:{len(str(steps))}d}/{steps}]"
        numbers = (
            f"lr: {values['lr']:.6f}  loss: {values['loss']:.4f}  time: {values['step_time']:.4f}"
            f"  data: {values['data_time']:.4f}  max mem: {values['peak_memory_gib'] * 1024:.0f}"
        )
        self._bar.label = f"epoch {values['epoch']} {step_of_epoch}"
        eta = duration(step_seconds * (steps - done - 1))
        get_logger().info("Train: data epoch: [%d]  %s  eta: %s  %s", values["epoch"], step_of_epoch, eta, numbers)


def _one_line(reference: str | list[str] | None) -> str | None:
    """Join several references into one line."""
    if not isinstance(reference, list):
        return reference
    shown, more = reference[:SHOWN_REFERENCES], len(reference) - SHOWN_REFERENCES
    return " / ".join(shown) + (f" (+{more})" if more > 0 else "")


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with numbers in place of scalar tensors, which are copied from the device together."""
    scalars = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not scalars:
        return values
    numbers = torch.stack([scalar.double() for scalar in scalars.values()]).tolist()
    kinds = [float if scalar.is_floating_point() else int for scalar in scalars.values()]
    return values | {name: kind(number) for name, kind, number in zip(scalars, kinds, numbers, strict=True)}


def _peak_memory_gib() -> float:
    """Return the peak memory of this process in GiB: GPU memory if there is a GPU, otherwise RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
