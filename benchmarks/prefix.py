"""Time a training step in which several questions about a clip share the beginning of their prompts.

    python benchmarks/prefix.py                                  # hidden size 512, 8 layers, 448 pixels, float32, on one thread
    python benchmarks/prefix.py --tasks-per-clip 2 --clips 6
    python benchmarks/prefix.py --dtype bfloat16 --hidden 4096 --layers 32 --heads 32     # on a GPU

Both variants train the same samples in the same micro-batches: with ``run.tasks_per_clip``, and with the whole prompt in each
sample, which is how emollama trains them without this key. The output layer, which processes only answers, has the share of
the operations that it has in a 7B model with a vocabulary of 32,000.

The script first checks, without dropout, that the losses and the gradients are equal, in float64 within 1e-6. Then it runs the
variants in turn and prints the medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_check_files import FULL, make_runner, write_files
from step import peak_bytes, seconds
from step_variants import Step, packed_step, without_dropout

from emollama.data.batch import PackedFeatures, Sample
from emollama.runners.runner_base import RunnerBase

TASKS = ("emotion", "reason", "reason_v2")
# Relative L2 of the difference of all gradients. In float32, rounding changes them by about 2e-6.
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}


def main() -> None:
    """Check that the variants are equal, time them, and print the table."""
    arguments = parsed_arguments()
    with tempfile.TemporaryDirectory() as folder:
        runner = build_runner(Path(folder), arguments)
        k, count = arguments.tasks_per_clip, arguments.clips * arguments.tasks_per_clip
        shared = [sample for clip in runner.samples.__getitems__(list(range(0, count, k))) for sample in clip]
        variants = {"whole prompts": [runner.samples[index] for index in range(count)], "shared prompts": shared}
        steps = {name: packed_step(runner, samples, count, recompute=False) for name, samples in variants.items()}
        require_equal(runner, steps, arguments.dtype)
        times = timed(steps, arguments.rounds)
        show(variants, times, {name: peak_bytes(step) for name, step in steps.items()})


def parsed_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size (default: 512)")
    parser.add_argument("--layers", type=int, default=8, help="number of layers (default: 8)")
    parser.add_argument("--heads", type=int, default=8, help="number of attention heads (default: 8)")
    parser.add_argument("--vocabulary", type=int, default=1000, help="size of the vocabulary (default: 1000)")
    parser.add_argument("--image-size", type=int, default=448, help="side of the images in pixels (default: 448)")
    parser.add_argument("--tasks-per-clip", type=int, default=3, choices=(2, 3), help="questions about a clip (default: 3)")
    parser.add_argument("--clips", type=int, default=2, help="clips of a step (default: 2)")
    parser.add_argument("--words", type=int, default=57, help="average words of a caption (default: 57, about 100 tokens)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--dtype", choices=tuple(TOLERANCE), default="float32", help="bfloat16 uses autocast")
    return parser.parse_args()


def build_runner(folder: Path, arguments: argparse.Namespace) -> RunnerBase:
    """Write the files of a random model and of random samples, and return the runner of stage 1 with all three tasks."""
    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    llm: dict[str, int | float] = {
        "hidden_size": arguments.hidden,
        "intermediate_size": round(arguments.hidden * 2.6875 / 32) * 32,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "vocab_size": arguments.vocabulary,
    }
    options = (
        "run.num_workers=0",
        f"run.amp={arguments.dtype == 'bfloat16'}",
        f"run.tasks_per_clip={arguments.tasks_per_clip}",
        f"datasets.feature_face_caption.task_pool=[{','.join(TASKS)}]",
        f"datasets.feature_face_caption.batch_size={arguments.clips * arguments.tasks_per_clip}",
    )
    words = (round(0.7 * arguments.words), round(1.3 * arguments.words) + 1)
    sizes = dataclasses.replace(FULL, llm=llm, image_size=arguments.image_size, answer_words=words, options=options)
    write_files(folder, sizes)
    return make_runner(folder, sizes)


def require_equal(runner: RunnerBase, steps: dict[str, Step], dtype: str) -> None:
    """Check that both variants have the same loss and gradients without dropout, in float64 and in the precision of the run.

    Raises:
        SystemExit: If they differ.
    """
    if dtype == "float32":
        with float64(runner):
            report_difference(runner, steps, "float64", 1e-6)
    report_difference(runner, steps, dtype, TOLERANCE[dtype])


def report_difference(runner: RunnerBase, steps: dict[str, Step], dtype: str, tolerance: float) -> None:
    """Print the relative differences of the losses and of all gradients, and check them."""
    losses, gradients = [], []
    for step in steps.values():
        with without_dropout(runner):
            losses.append(step.gradients())
        gradients.append(torch.cat([p.grad.flatten().double() for p in runner.model.parameters() if p.grad is not None]))
        runner.optimizer.zero_grad(set_to_none=True)
    error = abs(losses[1] / losses[0] - 1), ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
    sys.stdout.write(
        f"{dtype}: loss {losses[0]:.6f}, relative differences of loss and gradients {error[0]:.1e}, {error[1]:.1e}\n"
    )
    sys.stdout.flush()
    if not max(error) <= tolerance:
        raise SystemExit("the loss or the gradients differ")


@contextmanager
def float64(runner: RunnerBase) -> Iterator[None]:
    """Inside ``with``, the model computes in float64, in which rounding does not hide a difference."""
    to_float, model = PackedFeatures.float, cast(nn.Module, runner.model)
    model.double()
    PackedFeatures.float = lambda packed: PackedFeatures(packed.values.double(), packed.offsets)  # type: ignore[method-assign]
    try:
        yield
    finally:
        PackedFeatures.float = to_float  # type: ignore[method-assign]
        model.float()


def timed(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
    return times


def show(variants: dict[str, list[Sample]], times: dict[str, list[float]], peaks: dict[str, int]) -> None:
    """Print a table."""
    sys.stdout.write(f"{'':16s}{'tokens':>8s}{'ms':>8s}{'answers/s':>11s}{'peak MB':>9s}{'x whole':>9s}\n")
    whole = statistics.median(times["whole prompts"])
    for name, samples in variants.items():
        tokens, median = sum(len(sample.input_ids) for sample in samples), statistics.median(times[name])
        values = f"{tokens:8d}{1e3 * median:8.0f}{len(samples) / median:11.2f}{peaks[name] / 1e6:9.1f}{whole / median:9.2f}"
        sys.stdout.write(f"{name:16s}{values}\n")


if __name__ == "__main__":
    main()
