"""How the samples of a training step are divided among processes and micro-batches, from the keys of a run."""

from __future__ import annotations

from emollama.data.loader import BatchLayout
from emollama.errors import UserError
from emollama.runners.run_config import RunnerConfig


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
        UserError: If ``run.global_batch`` is not a multiple of the samples that all processes load together.
    """
    if run.global_batch is None:
        return BatchLayout(batch_size, run.accum_grad_iters, processes, rank, run.max_tokens)
    # With a maximum number of tokens, micro-batches have any number of samples, so that batch_size does not matter.
    samples = 1 if run.max_tokens is not None else batch_size
    accumulate, remainder = divmod(run.global_batch, samples * processes)
    if remainder:
        product = f"{processes} processes" if samples == 1 else f"{processes} processes x batch_size {samples}"
        remedy = "Set it to a multiple" if samples == 1 else "Set it to a multiple, or set run.max_tokens or another batch_size"
        raise UserError(f"run.global_batch {run.global_batch} is not a multiple of {product}. {remedy}.")
    return BatchLayout(samples, accumulate, processes, rank, run.max_tokens)
