"""How the samples of a training step are divided among processes and micro-batches, from the keys of a run."""

from __future__ import annotations

from emollama.config import RunConfig
from emollama.data.loader import BatchLayout
from emollama.errors import UserError
from emollama.runners.datasets import batch_size as common_batch_size
from emollama.runners.datasets import require_tasks
from emollama.runners.run_config import RunnerConfig


def require_valid_steps(config: RunConfig, processes: int) -> None:
    """Check all that a run checks about its steps without reading data.

    Args:
        config: the resolved configuration.
        processes: number of processes of the run.

    Raises:
        UserError: If a task pool has fewer tasks than ``run.tasks_per_clip``, or samples cannot be divided among processes.
    """
    if config.datasets:
        require_tasks(config.datasets, config.run.tasks_per_clip)
        step_layout(config.run, common_batch_size(config.datasets), processes, rank=0)


def samples_per_step(run: RunnerConfig, batch_size: int, processes: int) -> int:
    """Return the number of samples of a training step over all processes."""
    return run.global_batch or batch_size * run.accum_grad_iters * processes


def step_layout(run: RunnerConfig, batch_size: int, processes: int, rank: int) -> BatchLayout:
    """Return the layout of a training step.

    Args:
        run: the keys of the run.
        batch_size: the common ``batch_size`` of the datasets.
        processes: number of processes of the run.
        rank: rank of this process.

    Raises:
        UserError: If ``run.global_batch`` is not a multiple of the samples that all processes load together, or batch_size is
            not a multiple of ``run.tasks_per_clip``.
    """
    tasks = run.tasks_per_clip
    if batch_size % tasks and (run.global_batch is None or run.max_tokens is None):
        remedy = f"Set batch_size to a multiple, such as {-(-batch_size // tasks) * tasks}"
        raise UserError(
            f"datasets.*.batch_size is {batch_size}, which is not a multiple of run.tasks_per_clip, {tasks}. {remedy}."
        )
    if run.global_batch is None:
        return BatchLayout(batch_size, run.accum_grad_iters, processes, rank, run.max_tokens, tasks)
    # With a maximum number of tokens, micro-batches have any number of clips, so that batch_size does not matter.
    samples = tasks if run.max_tokens is not None else batch_size
    accumulate, remainder = divmod(run.global_batch, samples * processes)
    if remainder:
        key = "batch_size" if run.max_tokens is None else "run.tasks_per_clip"
        product = f"{processes} processes" if samples == 1 else f"{processes} processes x {key} {samples}"
        others = "" if samples == 1 or run.max_tokens is not None else ", or set run.max_tokens or another batch_size"
        remedy = f"Set it to a multiple{others}"
        raise UserError(f"run.global_batch {run.global_batch} is not a multiple of {product}. {remedy}.")
    return BatchLayout(samples, accumulate, processes, rank, run.max_tokens, tasks)
