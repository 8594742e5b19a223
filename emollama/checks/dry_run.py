"""``--dry-run``: run all checks that precede the loading of weights, and summarize the run with its memory and disk space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from emollama.checks import forecast
from emollama.config import RunConfig
from emollama.data.dataset import SampleDataset
from emollama.distributed import process_group
from emollama.errors import ErrorCollector, UserError
from emollama.listing import abbreviated
from emollama.logs.console import dry_run_summary
from emollama.logs.logger import get_logger, set_up
from emollama.planning.estimate import Plan, plan
from emollama.runners.build import checkpoint_tensors, model_without_weights
from emollama.runners.datasets import batch_size
from emollama.runners.model_ckpt import checkpoint_paths
from emollama.runners.preparation import Preparation
from emollama.runners.step_layout import samples_per_step
from emollama.runners.summary import feature_rows, training_steps


def dry_run(config: RunConfig, *, training: bool, processes: int = 1, other_checkpoints: Sequence[RunConfig] = ()) -> str:
    """Check a run with the preparation of its runner, and describe it.

    Args:
        config: the resolved configuration.
        training: whether the run trains; otherwise it evaluates.
        processes: number of processes of the run.
        other_checkpoints: the same configuration with other values of ``model.ckpt``, which are checked too.

    Returns:
        A summary of several lines on rank 0, "" on other ranks.

    Raises:
        UserError: If the run would stop before its first step. The message contains all problems.
    """
    world = process_group.start(config.run.device)
    # Only warnings are logged, because the summary contains the other messages.
    set_up(is_main=False)
    for text in config.warnings if world.is_main else ():
        get_logger().warning("%s", text)
    runner = config.runner_class
    problems, planned = ErrorCollector(), None
    processes = max(processes, world.size)
    preparation: Preparation = runner.prepare(config, world, training=training, processes=processes, problems=problems)
    rows = _training(preparation, problems) if preparation.datasets else []
    for other in other_checkpoints if not problems else ():
        with problems:
            shapes = model_without_weights(other, preparation.precision)
            checkpoint_tensors(other, shapes, None, preparation.features, training=False)
    if not problems:
        with problems:
            planned = plan(config, gpus=processes, device=world.device.type)
    problems.raise_all()
    assert planned is not None
    others = [path for other in other_checkpoints for path in checkpoint_paths(other.model.ckpt)]
    entries = [*_run(preparation), *_samples(preparation), *rows, *_model(preparation, planned, others)]
    return dry_run_summary(entries) if world.is_main else ""


def _run(preparation: Preparation) -> Iterator[tuple[str, str]]:
    folder = str(preparation.folder) if preparation.config.run.job_id else f"a new one in {preparation.folder.parent}"
    yield "run folder", folder
    yield "processes", f"{preparation.processes} on {preparation.world.device.type}"


def _samples(preparation: Preparation) -> Iterator[tuple[str, str]]:
    datasets: Mapping[str, SampleDataset] = {f"datasets.{label}": dataset for label, dataset in preparation.datasets.items()} | {
        f"evaluation: {label}": block.dataset for label, block in preparation.blocks.items()
    }
    for name, dataset in datasets.items():
        yield name, f"{len(dataset):,} samples; tasks: {', '.join(dataset.pool.tasks)}"
    yield from feature_rows(datasets)


def _training(preparation: Preparation, problems: ErrorCollector) -> list[tuple[str, str]]:
    """Return rows about the steps, and add a problem if the checkpoints do not fit on the disk."""
    rows: list[tuple[str, str]] = []
    with problems:
        config, datasets = preparation.config, preparation.datasets
        samples = samples_per_step(config.run, batch_size(config.datasets), preparation.processes)
        training = forecast.training_forecast(config, datasets, samples)
        # After a problem, the preparation may have no layout, and nothing is printed.
        rows += [] if problems else training_steps(config.run, preparation.layout, preparation.first_step, has_memory=False)
        if finding := forecast.disk_finding(training):
            raise UserError(finding.text)
    return rows


def _model(preparation: Preparation, planned: Plan, others: list[str]) -> Iterator[tuple[str, str]]:
    sources = [str(preparation.resumed["path"])] if preparation.resumed else checkpoint_paths(preparation.config.model.ckpt)
    yield "checkpoint", abbreviated([*sources, *others]) or "none: projections and adapters start from random values"
    parameters = planned.parameters
    yield "parameters", f"{parameters['trainable']:,} trainable of {parameters['total']:,}"
    yield "memory", f"about {planned.memory_gib['sum']:.2f} GiB on each device (emollama plan lists the parts)"
