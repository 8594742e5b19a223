"""Under torchrun: gradients of the first step and tensors after training, for each configuration named on the command line."""

import sys
from pathlib import Path

import torch

from emollama.cli import entry_point
from emollama.config import load
from emollama.optim import trainable


def gradients(path: str) -> dict[str, torch.Tensor]:
    """name -> gradient of the first step's loss over the global batch."""
    config = load(path)
    runner = config.classes["run"](config)
    runner._gradients(0, next(runner._step_batches()))
    return {name: parameter.grad.clone() for name, parameter in trainable(runner.model).items()}


def main() -> None:
    """Write <config's folder>/gradients_<rank>.pt for each configuration, then train it."""
    for path in sys.argv[1:]:
        found = gradients(path)
        config = load(path)
        runner = config.classes["run"](config)
        torch.save(found, Path(path).parent / f"gradients_{runner.world.rank}.pt")
        runner.train()


if __name__ == "__main__":
    entry_point(main)  # leaves as the scripts do: the libraries' threads may abort the clean-up of a finished process
