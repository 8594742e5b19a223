"""In each process of a group: the gradients of a step, and the order in which processes exchange them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from emollama.config import load
from emollama.distributed import parallel
from emollama.optim import trainable
from emollama.runners.runner_base import RunnerBase
from emollama.sharded_tensors import whole


def gradients_of_steps(runner: RunnerBase, steps: int) -> None:
    """Compute the gradients of the first steps."""
    batches = runner._step_batches()
    for step in range(steps):
        runner.parallel.zero_grad(runner.optimizer)
        micro_batches = next(batches)
        runner._gradients(step, micro_batches, *runner.world.totals(sum(batch.total_weight for batch in micro_batches)))


def gradients(path: str) -> dict[str, Any]:
    """Return name -> gradient of the first step, as nested lists."""
    config = load(path)
    runner = config.runner_class(config)
    with runner.lock:
        gradients_of_steps(runner, 1)
    return {name: whole(parameter.grad).tolist() for name, parameter in trainable(runner.model).items()}


def dtypes_between_micro_batches(path: str) -> list[set[torch.dtype | None]]:
    """Return the dtypes of the trained tensors' gradients before each micro-batch of the first step; None for no gradient."""
    return between_micro_batches(path, lambda gradient: None if gradient is None else gradient.dtype, steps=1)


def tensors_between_micro_batches(path: str) -> float:
    """Return the number of different gradients that a trained tensor has before the micro-batches of the fourth step."""
    addresses = between_micro_batches(path, lambda gradient: gradient.data_ptr() if gradient is not None else None, steps=4)[-3:]
    return len(set.union(*addresses)) / len(addresses[0])


def between_micro_batches(path: str, value_of: Callable[[Tensor | None], Any], steps: int) -> list[set[Any]]:
    """Return the values of a function of the trained tensors' gradients before each micro-batch."""
    config = load(path)
    runner = config.runner_class(config)
    trained, before, synchronized = trainable(runner.model).values(), [], runner.parallel.no_sync_unless

    def recorded(last: bool) -> AbstractContextManager[Any]:
        before.append({value_of(parameter.grad) for parameter in trained})
        return synchronized(last)

    runner.parallel.no_sync_unless = recorded
    with runner.lock:
        gradients_of_steps(runner, steps)
    return before


def exchange_order(path: str) -> list[list[str]]:
    """Return the names of the trained tensors in each group of gradients that is exchanged together in the third step."""

    class SmallGroups(parallel.DistributedDataParallel):
        """DistributedDataParallel with groups so small that the tiny model has several."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, bucket_cap_mb=0.02, **options)

    config = load(path)
    original, first = parallel.DistributedDataParallel, torch.distributed._DEFAULT_FIRST_BUCKET_BYTES
    parallel.DistributedDataParallel, torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = SmallGroups, 1000
    try:
        runner = config.runner_class(config)
    finally:
        parallel.DistributedDataParallel, torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = original, first
    names = {id(parameter): name for name, parameter in trainable(runner.model).items()}
    exchanged: list[list[str]] = []

    def hook(_, bucket):
        exchanged.append([names[id(parameter)] for parameter in bucket.parameters()])
        work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    runner.parallel._wrapped.register_comm_hook(None, hook)
    with runner.lock:
        gradients_of_steps(runner, 2)
        exchanged.clear()
        gradients_of_steps(runner, 1)
    return exchanged
