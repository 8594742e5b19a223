"""Forecast of training: steps, passes over the data, and disk space of the checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from emollama import disk
from emollama.checks.findings import Finding, TrainingForecast
from emollama.config import RunConfig
from emollama.data.dataset import SampleDataset
from emollama.data.validation_cache import ValidationCache
from emollama.errors import UserError
from emollama.memory import GIB
from emollama.optim import trainable
from emollama.planning.disk import BYTES_PER_PARAMETER, checkpoint_files


def training_forecast(config: RunConfig, datasets: Mapping[str, SampleDataset], samples: int) -> TrainingForecast:
    """Return the forecast of a training run.

    Args:
        config: the resolved configuration.
        datasets: label -> dataset for all blocks under ``datasets``; at least one.
        samples: samples per step over all processes.
    """
    run = config.run
    steps = run.max_epoch * run.iters_per_epoch
    ratios = {label: dataset.sampling().ratio for label, dataset in datasets.items()}
    samples_by_block = {label: steps * samples * ratio / sum(ratios.values()) for label, ratio in ratios.items()}
    parameters = trained_parameters(config)
    return TrainingForecast(
        steps=steps,
        samples_a_step=samples,
        passes={label: samples_by_block[label] / len(dataset) for label, dataset in datasets.items()},
        trained_parameters=parameters,
        checkpoint_bytes=None if parameters is None else parameters * BYTES_PER_PARAMETER,
        checkpoints=checkpoint_files(config),
        output_dir=run.output_dir,
        free_bytes=disk.usage(run.output_dir).free,
    )


def trained_parameters(config: RunConfig) -> int | None:
    """Return the number of trained parameters, or None if the language model's config.json cannot be read.

    The model is built without weights, which takes seconds, so the number is cached until config.json changes.
    """
    try:
        status = os.stat(Path(config.model.llama_model) / "config.json")
    except OSError:
        return None
    model_class, stamp = config.model_class, (status.st_size, status.st_mtime_ns)
    folder = os.path.abspath(config.model.llama_model)
    cache = ValidationCache.load("trained", folder, model_class.__qualname__, repr(config.model))
    if (cached_count := cache.get("parameters", stamp)) is not None:
        return int(cached_count)
    try:
        model = model_class(config.model, device=torch.device("meta"), frozen_dtype=torch.float32)
    except UserError:
        return None
    count = sum(parameter.numel() for parameter in trainable(model).values())
    cache.add("parameters", stamp, str(count))
    cache.save()
    return count


def disk_finding(training: TrainingForecast) -> Finding | None:
    """Return a problem if the checkpoints do not fit on the disk, otherwise None."""
    needed = (training.checkpoint_bytes or 0) * training.checkpoints
    if needed <= training.free_bytes:
        return None
    text = f"run.output_dir ({training.output_dir}): the checkpoints need about {needed / GIB:,.1f} GiB"
    remedy = "Free some space, or set run.keep_last to keep fewer checkpoints"
    return Finding("problem", "disk", f"{text}, but only {training.free_bytes / GIB:,.1f} GiB are free. {remedy}")
