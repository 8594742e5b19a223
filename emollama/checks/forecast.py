"""What training takes beside the clips: passes over the data, and the disk that its checkpoints need."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from emollama.checks.findings import Finding, TrainingForecast
from emollama.config import RunConfig
from emollama.data.validation_cache import ValidationCache
from emollama.errors import UserError
from emollama.optim import trainable

BYTES_OF_A_PARAMETER = 12  # in a checkpoint: its float32 value and AdamW's two moments
GIB = 2**30


def training_of(config: RunConfig, datasets: Mapping[str, Any], batch_size: int) -> TrainingForecast:
    """The figures of a training run on one process.

    Args:
        config: the resolved configuration.
        datasets: label -> dataset, of ``datasets``; at least one.
        batch_size: of all of them.
    """
    run = config.run
    steps, samples = run.max_epoch * run.iters_per_epoch, batch_size * run.accum_grad_iters
    ratios = {label: dataset.cfg.sample_ratio for label, dataset in datasets.items()}
    draws = {label: steps * samples * ratio / sum(ratios.values()) for label, ratio in ratios.items()}
    parameters = trained_parameters(config)
    files = run.max_epoch if run.keep_last is None else min(run.max_epoch, run.keep_last + 1)  # one more while it is written
    return TrainingForecast(
        steps=steps,
        samples_a_step=samples,
        passes={label: draws[label] / len(dataset) for label, dataset in datasets.items()},
        trained_parameters=parameters,
        checkpoint_bytes=None if parameters is None else parameters * BYTES_OF_A_PARAMETER,
        checkpoints=files + (run.save_every_iters is not None),
        output_dir=run.output_dir,
        free_bytes=shutil.disk_usage(_existing(run.output_dir)).free,
    )


def trained_parameters(config: RunConfig) -> int | None:
    """How many parameters are trained; None where the language model's config.json cannot be read.

    The model is built without weights, which takes seconds, so the number is remembered while config.json stays as it is.
    """
    try:
        status = os.stat(Path(config.model.llama_model) / "config.json")
    except OSError:
        return None
    made, stamp = config.classes["model"], (status.st_size, status.st_mtime_ns)
    seen = ValidationCache.load("trained", os.path.abspath(config.model.llama_model), made.__qualname__, repr(config.model))
    if (known := seen.recall("parameters", stamp)) is not None:
        return int(known)
    try:
        model = made(config.model, device=torch.device("meta"), frozen_dtype=torch.float32)
    except UserError:
        return None
    count = sum(parameter.numel() for parameter in trainable(model).values())
    seen.add("parameters", stamp, str(count))
    seen.save()
    return count


def disk_finding(training: TrainingForecast) -> Finding | None:
    """A problem where the checkpoints do not fit."""
    needed = (training.checkpoint_bytes or 0) * training.checkpoints
    if needed <= training.free_bytes:
        return None
    text = f"run.output_dir ({training.output_dir}): the checkpoints need about {needed / GIB:,.1f} GiB"
    remedy = "Free some space, or keep fewer of them (run.keep_last)"
    return Finding("problem", "disk", f"{text}, and {training.free_bytes / GIB:,.1f} GiB are free. {remedy}")


def _existing(folder: str) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = Path(folder).absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())
