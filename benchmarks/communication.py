"""Measure the share of forward and backward passes that processes spend on exchanging gradients.

    torchrun --nproc-per-node 2 benchmarks/communication.py                                # random Llama of width 256, 4 layers
    torchrun --nproc-per-node 4 benchmarks/communication.py --hidden 4096 --layers 32      # on GPUs
    torchrun --nproc-per-node 2 benchmarks/communication.py --options run.reduce_dtype=bf16

Each round runs these steps in turn, on the same samples:

    step      the forward and backward pass of a training step
    silent    the same step without the exchange of gradients, as for a micro-batch that is not the last one of a step
    control   the silent step once more: the difference between two equal things

The script prints the median time of each, the share of the exchange ("step" minus "silent", divided by "step"), the share that
the control would have, and the number of gradients. All processes begin and end a step together. If they share the cores of one
machine, the exchange also costs the time of these cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_check_files import FULL, make_runner, write_files

from emollama.data.batch import collate
from emollama.distributed import process_group
from emollama.optim import trainable
from emollama.runners.runner_base import RunnerBase


def main() -> None:
    """Time the steps, and print the shares on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256, help="hidden size (default: 256)")
    parser.add_argument("--layers", type=int, default=4, help="number of layers (default: 4)")
    parser.add_argument("--heads", type=int, default=4, help="number of attention heads (default: 4)")
    parser.add_argument("--samples", type=int, default=4, help="samples of a process and step (default: 4)")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default: 15)")
    parser.add_argument("--options", nargs="*", default=[], help="options of the run, such as run.reduce_dtype=bf16")
    arguments = parser.parse_args()
    world = process_group.start()
    if world.size == 1:
        raise SystemExit("this is a single process, which exchanges nothing. Use torchrun --nproc-per-node 2 or more.")
    with ExitStack() as stack:
        folder = world.on_rank_zero(lambda: stack.enter_context(tempfile.TemporaryDirectory()))
        report(build(Path(folder), world, arguments), arguments)
        world.on_rank_zero(lambda: None)  # the folder is deleted when all processes are done
    process_group.stop()


def build(folder: Path, world: process_group.World, arguments: argparse.Namespace) -> RunnerBase:
    """Write the files of a random model and of random samples, and return a runner of the shipped configuration."""
    llm: dict[str, int | float] = {
        "hidden_size": arguments.hidden,
        "intermediate_size": round(arguments.hidden * 2.6875 / 32) * 32,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "vocab_size": 32000,
    }
    precision = "run.amp=True" if world.device.type == "cuda" else "run.amp=False"
    sizes = dataclasses.replace(FULL, llm=llm, image_size=112, options=("run.num_workers=0", precision))
    world.on_rank_zero(lambda: write_files(folder, sizes))
    return make_runner(folder, sizes, *arguments.options)


def report(runner: RunnerBase, arguments: argparse.Namespace) -> None:
    """Time the steps in turn, and print the table on rank 0."""
    world, samples = runner.world, [runner.samples[index] for index in range(arguments.samples)]
    batch = collate(samples)

    def gradients(exchange: bool) -> None:
        with runner.parallel.no_sync_unless(last=exchange), runner.precision.autocast():
            (runner.task.loss(runner.parallel, batch.to(world.device)) / batch.total_weight).backward()
        runner.parallel.zero_grad(runner.optimizer)

    steps = {"step": partial(gradients, True), "silent": partial(gradients, False), "control": partial(gradients, False)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds + 2):
        for name, step in steps.items():
            seconds = timed(step, world)
            # The first step of DDP decides which gradients it exchanges together.
            if turn >= 2:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    if world.is_main:
        for name, median in medians.items():
            sys.stdout.write(f"{name:10s}{1e3 * median:10.1f} ms\n")
        share = 1 - medians["silent"] / medians["step"]
        control = abs(medians["silent"] - medians["control"]) / medians["step"]
        size = sum(parameter.numel() for parameter in trainable(runner.model).values())
        sys.stdout.write(f"exchange of gradients: {share:.1%} of a step (control {control:.1%}), {size:,} gradients\n")


def timed(step: Callable[[], None], world: process_group.World) -> float:
    """Return the time of a step in seconds, from its common start to its end on the slowest process."""
    world.any(False)
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    world.any(False)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
