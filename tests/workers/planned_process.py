"""Print by how many bytes the memory of this process grows at most in two steps of a run, from before its model is loaded."""

from __future__ import annotations

import sys

import torch

from emollama import optim
from emollama.config import load
from emollama.planning import samples
from emollama.planning.planner import Planner
from emollama.precision import Precision


def kibibytes(name):
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def main(*paths):
    """Run steps of each configuration; only the memory of the last one counts, because the first steps load libraries."""
    for path in paths:
        config = load(path)
        planner, precision = Planner(config, gpus=1, device="cpu"), Precision.of_run(config.run)
        example = samples.example_batch(config, planner.model, planner.sample, planner.micro_batch)
        batch = example.mapped(lambda tensor: torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor)
        before = kibibytes("VmRSS")
        model = config.model_class(config.model, device=torch.device("cpu"), frozen_dtype=precision.frozen_dtype).train()
        optimizer = optim.adamw(optim.trainable(model).items(), lr=1e-4, weight_decay=0.0, beta2=0.99)
        # The files of the weights are mapped while they are read.
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        for _ in range(2):
            for _ in range(2):
                with precision.autocast():
                    loss = config.task_class().loss(model, batch)
                loss.backward()
            optimizer.step()
        grown = kibibytes("VmHWM") - before
        del model, optimizer, loss
    sys.stdout.write(f"{1024 * grown}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
