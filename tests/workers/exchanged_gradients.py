"""In each process of a group: the gradients of a step, and the order in which processes exchange them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from emollama.config import load
from emollama.distributed import parallel
from emollama.optim import trainable
from emollama.runners.runner_base import RunnerBase
from emollama.sharded_tensors import whole


def gradients_of_steps(runner: RunnerBase, steps: int) -> None:
    """Compute the gradients of the first steps."""
    batches = runner._step_batches()
    for step in range(steps):
        runner.optimizer.zero_grad(set_to_none=True)
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
    config = load(path)
    runner = config.runner_class(config)
    trained, before, synchronized = trainable(runner.model).values(), [], runner.parallel.no_sync_unless

    def recorded(last: bool) -> AbstractContextManager[Any]:
        before.append({None if parameter.grad is None else parameter.grad.dtype for parameter in trained})
        return synchronized(last)

    runner.parallel.no_sync_unless = recorded
    with runner.lock:
        gradients_of_steps(runner, 1)
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
