"""Out of memory in training and evaluation: the error names the samples, and the keys that reduce the memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from emollama.config import RunConfig
from emollama.data.batch import Batch
from emollama.data.loader import BatchLayout
from emollama.data.token_budget import num_tokens
from emollama.distributed.process_group import World
from emollama.errors import UserError
from emollama.listing import abbreviated
from emollama.memory import first_line, is_out_of_memory
from emollama.runners.datasets import batch_size_keys


@contextmanager
def reported(micro_batches: Sequence[Batch], step: int, config: RunConfig, layout: BatchLayout, world: World) -> Iterator[None]:
    """Turn an error of memory in a training step into a user error. The step is not repeated: ranks would diverge.

    Args:
        micro_batches: the micro-batches of the step on this process.
        step: number of the step, from 0.
        config: the configuration of the run.
        layout: the layout of the step.
        world: the processes.

    Raises:
        UserError: If memory was exhausted. The message names the samples of the micro-batch with the most tokens.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        batch = max(micro_batches, key=lambda batch: num_tokens(batch.lengths, padded=layout.padded))
        where, remedy = _where(f"step {step}", error, world), _training_remedy(config, layout, len(batch.names))
        raise UserError(f"{where} {_samples(batch, padded=layout.padded)} {remedy}") from error


def prediction_error(error: BaseException, block_name: str, name: str, tokens: int, world: World) -> UserError:
    """Return the error for a sample of an evaluation block that does not fit into memory alone.

    Args:
        error: the error of memory.
        block_name: name of the block.
        name: name of the sample.
        tokens: text tokens of its prompt.
        world: the processes.
    """
    return UserError(
        f"{_where(f'evaluation block {block_name}', error, world)} The sample '{name}', whose prompt has {tokens:,} text tokens,"
        f" does not fit alone. Lower evaluation_datasets.{block_name}.max_new_tokens or num_beams, or model.max_context_len; set"
        f" run.amp: True; or use fewer processes on this machine{_or_a_larger_one(world)}."
    )


def free_unused() -> None:
    """Free the memory that a failed batch has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _where(what: str, error: BaseException, world: World) -> str:
    return f"{what}: out of memory on process {world.rank} of {world.size} ({world.device}): {first_line(error)}."


def _or_a_larger_one(world: World) -> str:
    return " or a GPU with more memory" if world.device.type == "cuda" else " or a machine with more memory"


def _samples(batch: Batch, *, padded: bool) -> str:
    lengths, names = batch.lengths, batch.names
    longest = max(range(len(names)), key=lengths.__getitem__)
    if len(names) == 1:
        return f"The micro-batch is the sample '{names[0]}' with {lengths[0]:,} tokens."
    return (
        f"The largest micro-batch has {len(names)} samples with {num_tokens(lengths, padded=padded):,} tokens"
        f"{' with padding' if padded else ''}: {abbreviated(names)}. The longest one, '{names[longest]}', has"
        f" {lengths[longest]:,} tokens."
    )


def _training_remedy(config: RunConfig, layout: BatchLayout, batch_size: int) -> str:
    """Return a sentence about the keys of this configuration that reduce the memory of training."""
    run, model = config.run, config.model
    ways = []
    size = f"lower {batch_size_keys(config.datasets)} (now {batch_size})"
    if batch_size > run.tasks_per_clip and run.max_tokens is not None:
        chosen = "" if run.max_tokens == layout.max_tokens else f" {run.max_tokens}, which is"
        ways.append(f"lower run.max_tokens (now{chosen} {layout.max_tokens}), which keeps the global batch")
    elif batch_size > run.tasks_per_clip and run.global_batch is not None:
        ways.append(f"{size}, which keeps the global batch")
    elif batch_size > run.tasks_per_clip:
        ways.append(
            f"{size} and raise run.accum_grad_iters (now {run.accum_grad_iters}) by the same factor, which keeps the global batch"
        )
    if limits := [
        f"model.{key} (now {getattr(model, key)})" for key in ("max_txt_len", "max_context_len") if hasattr(model, key)
    ]:
        ways.append(f"lower {' or '.join(limits)}")
    if getattr(model, "use_grad_checkpoint", True) is not True:
        ways.append("set model.use_grad_checkpoint: True")
    if not run.amp:
        ways.append("set run.amp: True")
    ways.append("use fewer processes on this machine")
    return f"To need less memory: {'; '.join(ways)}. 'emollama plan' estimates the memory."
