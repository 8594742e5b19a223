"""In one or several processes, store the gradients of the first step and train, for each configuration."""

from __future__ import annotations

from pathlib import Path

from emollama.config import load


def train_only(path: str) -> None:
    """Train one configuration."""
    config = load(path)
    config.runner_class(config).train()


def forward_passes(path: str) -> list[int]:
    """Train one configuration. Returns the number of forward passes of each step."""
    config = load(path)
    runner = config.runner_class(config)
    numbers, gradients = [], runner._gradients

    def counted(step, batches, weight):
        numbers.append(len(batches))
        return gradients(step, batches, weight)

    runner._gradients = counted
    runner.train()
    return numbers


def train(paths: list[str]) -> None:
    """Write <config's folder>/gradients_<rank>.pt for each configuration, then train it."""
    import torch

    from emollama.optim import trainable

    for path in paths:
        config = load(path)
        runner = config.runner_class(config)
        micro_batches = next(runner._step_batches())
        runner._gradients(0, micro_batches, *runner.world.totals(sum(batch.total_weight for batch in micro_batches)))
        gradients = {name: parameter.grad for name, parameter in trainable(runner.model).items()}
        torch.save(gradients, Path(path).parent / f"gradients_{runner.world.rank}.pt")
        runner.optimizer.zero_grad(set_to_none=True)
        runner.train()
