"""In one or several processes, store the gradients of the first step and train, for each configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emollama.config import load


def gradients(path: str) -> dict[str, Any]:
    """name -> gradient of the first step's loss over the global batch."""
    from emollama.optim import trainable

    config = load(path)
    runner = config.runner_class(config)
    runner._gradients(0, next(runner._step_batches()))
    return {name: parameter.grad.clone() for name, parameter in trainable(runner.model).items()}


def train_only(path: str) -> None:
    """Train one configuration."""
    config = load(path)
    config.runner_class(config).train()


def train(paths: list[str]) -> None:
    """Write <config's folder>/gradients_<rank>.pt for each configuration, then train it."""
    import torch

    for path in paths:
        first_gradients = gradients(path)
        config = load(path)
        runner = config.runner_class(config)
        torch.save(first_gradients, Path(path).parent / f"gradients_{runner.world.rank}.pt")
        runner.train()
