"""How the samples of a training step are divided among processes and micro-batches, from the keys of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from emollama.config import RunConfig
from emollama.data.dataset import DatasetConfig
from emollama.data.loader import BatchLayout
from emollama.errors import UserError
from emollama.listing import counted
from emollama.recomputation import MOST_TOKENS
from emollama.runners.datasets import batch_size as common_batch_size
from emollama.runners.datasets import batch_size_keys, require_tasks
from emollama.runners.longest_samples import Longest
from emollama.runners.run_config import RunnerConfig

TOKENS_STEP = 256  # run.max_tokens: auto is a multiple, so that it seldom depends on small changes of the free memory


class Size(NamedTuple):
    """Numbers of tokens, and of tokens with logits, that no micro-batch exceeds."""

    tokens: int
    labels: int


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
        step_layout(config.run, config.datasets, processes, rank=0)


def samples_per_step(run: RunnerConfig, batch_size: int, processes: int) -> int:
    """Return the number of samples of a training step over all processes."""
    return run.global_batch or batch_size * run.accum_grad_iters * processes


def step_layout(run: RunnerConfig, datasets: Mapping[str, DatasetConfig], processes: int, rank: int) -> BatchLayout:
    """Return the layout of a training step. With ``run.max_tokens: auto``, it has the largest maximum that a run may choose.

    Args:
        run: the keys of the run.
        datasets: block name -> block under ``datasets``.
        processes: number of processes of the run.
        rank: rank of this process.

    Raises:
        UserError: If the datasets have different batch sizes, ``run.global_batch`` is not a multiple of the samples that all
            processes load together, or batch_size is not a multiple of ``run.tasks_per_clip``.
    """
    batch_size, tasks = common_batch_size(datasets), run.tasks_per_clip
    max_tokens = run.max_tokens
    if not isinstance(max_tokens, int | None):
        max_tokens = MOST_TOKENS
    if batch_size % tasks and (run.global_batch is None or max_tokens is None):
        remedy = f"Set batch_size to a multiple, such as {-(-batch_size // tasks) * tasks}"
        raise UserError(
            f"the value of {batch_size_keys(datasets)} is {batch_size}, which is not a multiple of run.tasks_per_clip, {tasks}."
            f" {remedy}."
        )
    if run.global_batch is None:
        return BatchLayout(batch_size, run.accum_grad_iters, processes, rank, max_tokens, tasks)
    # With a maximum number of tokens, micro-batches have any number of clips, so that batch_size does not matter.
    samples = tasks if max_tokens is not None else batch_size
    accumulate, remainder = divmod(run.global_batch, samples * processes)
    if remainder:
        key = "batch_size" if max_tokens is None else "run.tasks_per_clip"
        product = f"{processes} processes" if samples == 1 else f"{counted(processes, 'process', 'processes')} x {key} {samples}"
        remedy = f"Set it to a multiple, such as {(accumulate + 1) * samples * processes}"
        if max_tokens is None and (size := fitting_batch_size(run.global_batch, batch_size, processes, tasks)):
            remedy = f"{remedy}, or batch_size to {size}, or set run.max_tokens"
        raise UserError(f"run.global_batch {run.global_batch} is not a multiple of {product}. {remedy}.")
    return BatchLayout(samples, accumulate, processes, rank, max_tokens, tasks)


def possible_layouts(layout: BatchLayout, longest: Longest) -> list[BatchLayout]:
    """Return the layouts among which ``run.max_tokens: auto`` chooses, by tokens in descending order."""
    most, least = (most_tokens(replace(layout, max_tokens=tokens), longest.sample) for tokens in (MOST_TOKENS, 1))
    multiples = range(most // TOKENS_STEP * TOKENS_STEP, least, -TOKENS_STEP)
    return [replace(layout, max_tokens=tokens) for tokens in dict.fromkeys((most, *multiples, least))]


def most_tokens(layout: BatchLayout, longest: int) -> int:
    """Return a number of tokens, with padding, that no micro-batch exceeds if a sample has at most ``longest`` tokens."""
    if layout.max_tokens is None:
        return longest * layout.batch_size
    # The samples about a clip are in one micro-batch, even if they have more tokens.
    return min(max(layout.max_tokens, longest * layout.tasks_per_clip), longest * layout.batch_size * layout.accumulate)


def size_of(layout: BatchLayout, longest: Longest) -> Size:
    """Return numbers of tokens, with padding, and of tokens with logits that no micro-batch exceeds."""
    tokens = most_tokens(layout, longest.sample)
    samples = layout.batch_size if layout.max_tokens is None else layout.batch_size * layout.accumulate
    if layout.padded:
        # Padded samples all have logits at the positions of the labels of each of them.
        return Size(tokens, min(longest.answer * samples**2, tokens))
    if layout.max_tokens is None:
        return Size(tokens, longest.answer * samples)
    # An answer follows a prompt. The samples about a clip share the beginning of theirs.
    prompt = longest.shortest_prompt // layout.tasks_per_clip
    share = longest.answer / max(1, longest.answer + prompt)
    return Size(tokens, min(longest.answer * samples, math.ceil(share * tokens)))


def fitting_batch_size(samples: int, batch_size: int, processes: int, tasks: int) -> int | None:
    """Return the largest batch size, of at most ``batch_size``, with which processes get equally many samples of a step.

    Args:
        samples: number of samples of the step over all processes.
        batch_size: the present batch size.
        processes: number of processes.
        tasks: the value of ``run.tasks_per_clip``, of which a batch size is a multiple.

    Returns:
        None if the processes cannot get equally many samples with any batch size.
    """
    sizes = range(tasks, max(tasks, batch_size) + 1, tasks)
    return max((size for size in sizes if samples % (size * processes) == 0), default=None)


def remedy_for(samples: int, config: RunConfig, processes: int, tasks: int) -> str:
    """Return the keys with which a step has a number of samples, or the number of processes that this requires.

    Args:
        samples: number of samples of the step over all processes.
        config: the resolved configuration.
        processes: number of processes.
        tasks: the value of ``run.tasks_per_clip`` with which the step had them.
    """
    run, batch_size = config.run, common_batch_size(config.datasets)
    size = fitting_batch_size(samples, batch_size, processes, tasks)
    if size is None:
        fewer = max(number for number in range(1, processes) if samples % (number * tasks) == 0)
        return f"{processes} processes cannot share {samples} samples of a step equally, but {fewer} can"
    keys = {"run.global_batch": samples}
    if run.accum_grad_iters > 1:
        keys["run.accum_grad_iters"] = 1
    if run.max_tokens is None and size != batch_size:
        keys |= {f"datasets.{block_name}.batch_size": size for block_name in config.datasets}
    settings = " and ".join(f"{key}: {value}" for key, value in keys.items())
    return f"{settings} {'set' if len(keys) > 1 else 'sets'} the samples of a step"
