"""Time a training step next to Hugging Face code on the same samples, and next to the time that its operations need at least.

    python benchmarks/step.py                                    # hidden size 512, 8 layers, vocabulary of 32,000, float32
    python benchmarks/step.py --hidden 256 --layers 4 --rounds 3
    python benchmarks/step.py --dtype bfloat16 --hidden 4096 --layers 32 --heads 32     # on a GPU

All variants train a Llama with the same random weights, LoRA adapters and projections of features, with the shipped configuration
of stage 1. Those of Hugging Face have the layers of transformers and the adapters of peft. A step is one optimizer step on the
same samples. Before anything is timed, the script checks that all variants have the same loss and the same gradients, without
dropout. Then it runs the variants in turn, several rounds, and prints the median of each:

    emollama                    packed samples, no recomputation
    emollama, recomputation     the same with gradient checkpointing
    plain HF                    padded batches, eager attention, logits of all tokens, gradient checkpointing
    plain HF, no recomputation  the same without gradient checkpointing
    best-effort HF              padded batches of samples of similar length, sdpa, logits only at answers, no checkpointing
    reference                   one sample at a time, eager attention, logits of all tokens, gradient checkpointing, and an image
                                encoder that runs in every step

The last table has one sample per step, as the shipped configurations have on each GPU.

"minimum" is the number of unavoidable floating-point operations divided by the rate of matrix products of the model's sizes,
which is measured in the same run: for each frozen weight 4 operations per token (forward, and the gradient of the input), for
each trained weight 6, for the attention 12 per pair of tokens and channel, and the output layer only at the answers. "peak" is
the maximum of the bytes of all tensors that the step allocates, without those that exist before it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from allocator import bytes_of_tensors
from gpu_check_files import FULL, make_runner, write_files
from step_variants import BEST, PLAIN, ImageEncoder, Step, difference, hf_step, loss_and_gradients, packed_step

from emollama.data.batch import IGNORED, Sample
from emollama.optim import trainable
from emollama.runners.runner_base import RunnerBase


def main() -> None:
    """Check that the variants are equal, time them, and print the tables."""
    arguments = parsed_arguments()
    with tempfile.TemporaryDirectory() as folder:
        runners = build_runners(Path(folder), arguments)
        samples = [runners[0].samples[index] for index in range(arguments.samples)]
        results = [
            run(runners[0], samples, arguments, several_samples(*runners, samples, arguments.pack)),
            run(runners[0], samples[:1], arguments, one_sample(*runners, samples[:1])),
        ]
    if arguments.json:
        sys.stdout.write(json.dumps(results) + "\n")


def parsed_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="hidden size (default: 512)")
    parser.add_argument("--layers", type=int, default=8, help="number of layers (default: 8)")
    parser.add_argument("--heads", type=int, default=8, help="number of attention heads (default: 8)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="size of the vocabulary (default: 32000)")
    parser.add_argument("--image-size", type=int, default=112, help="side of the images in pixels (default: 112)")
    parser.add_argument("--samples", type=int, default=16, help="samples per step (default: 16)")
    parser.add_argument("--pack", type=int, default=8, help="samples per micro-batch (default: 8)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 uses autocast")
    parser.add_argument("--json", action="store_true", help="also print a JSON object")
    return parser.parse_args()


def build_runners(folder: Path, arguments: argparse.Namespace) -> tuple[RunnerBase, RunnerBase]:
    """Write the files of a random model and of random samples; return runners of the shipped configuration: own, and plain HF."""
    llm: dict[str, int | float] = {
        "hidden_size": arguments.hidden,
        "intermediate_size": round(arguments.hidden * 2.6875 / 32) * 32,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "vocab_size": arguments.vocabulary,
    }
    options = ("run.num_workers=0", "run.loss_average=token", f"run.amp={arguments.dtype == 'bfloat16'}")
    sizes = dataclasses.replace(FULL, llm=llm, image_size=arguments.image_size, options=options)
    write_files(folder, sizes)
    return make_runner(folder, sizes), make_runner(folder, sizes, "model.kernels=plain")


def several_samples(runner: RunnerBase, plain: RunnerBase, samples: list[Sample], pack: int) -> dict[str, Step]:
    """Return the variants with several samples per step."""
    encoder = ImageEncoder(runner, samples)
    reference = dataclasses.replace(PLAIN, encoder=encoder)
    return {
        "emollama": packed_step(runner, samples, pack, recompute=False),
        "emollama, recomputation": packed_step(runner, samples, pack, recompute=True),
        "plain HF": hf_step(plain, samples, pack, PLAIN),
        "plain HF, no recomputation": hf_step(plain, samples, pack, dataclasses.replace(PLAIN, recompute=False)),
        "best-effort HF": hf_step(plain, samples, pack, BEST),
        "reference": hf_step(plain, samples, 1, reference),
    }


def one_sample(runner: RunnerBase, plain: RunnerBase, samples: list[Sample]) -> dict[str, Step]:
    """Return the variants with one sample per step."""
    return {
        "emollama": packed_step(runner, samples, 1, recompute=False),
        "emollama, recomputation": packed_step(runner, samples, 1, recompute=True),
        "plain HF": hf_step(plain, samples, 1, PLAIN),
        "best-effort HF": hf_step(plain, samples, 1, BEST),
    }


def run(
    runner: RunnerBase, samples: list[Sample], arguments: argparse.Namespace, variants: dict[str, Step]
) -> dict[str, dict[str, float]]:
    """Check and time the variants, and print their table. Returns its rows."""
    # Timed steps of earlier variants have trained the models.
    for variant in variants.values():
        for own, other in zip(trainable(runner.model).values(), trainable(variant.runner.model).values(), strict=True):
            other.data.copy_(own.data)
    require_equal(variants, arguments.dtype)
    peaks = {name: peak_bytes(variant) for name, variant in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    rates = []
    for _ in range(arguments.rounds):
        rates.append(matmul_rate(runner, samples))
        for name, variant in variants.items():
            times[name].append(seconds(variant))
    minimum = minimum_flops(runner, samples) / statistics.median(rates)
    tokens = sum(len(sample.input_ids) for sample in samples)
    rows = {}
    for name in variants:
        median = statistics.median(times[name])
        rows[name] = {
            "ms": 1e3 * median,
            "samples_s": len(samples) / median,
            "tokens_s": tokens / median,
            "peak_mb": peaks[name] / 1e6,
            "of_minimum": median / minimum,
        }
    show(rows, len(samples), tokens, minimum)
    return rows


def show(rows: dict[str, dict[str, float]], samples: int, tokens: int, minimum: float) -> None:
    """Print a table."""
    lines = [f"{samples} samples, {tokens} tokens per step; minimum {1e3 * minimum:.0f} ms"]
    lines.append(f"{'':28s}{'ms':>8s}{'samples/s':>11s}{'tokens/s':>10s}{'peak MB':>9s}{'x minimum':>11s}{'x best HF':>11s}")
    best = rows["best-effort HF"]["ms"]
    for name, row in rows.items():
        values = f"{row['ms']:8.0f}{row['samples_s']:11.2f}{row['tokens_s']:10.0f}{row['peak_mb']:9.1f}{row['of_minimum']:11.2f}"
        lines.append(f"{name:28s}{values}{best / row['ms']:11.2f}")
    sys.stdout.write("\n".join([*lines, "", ""]))
    sys.stdout.flush()


def require_equal(variants: dict[str, Step], dtype: str) -> None:
    """Check that all variants have the same loss and gradients without dropout, as far as rounding allows.

    Raises:
        SystemExit: If they differ.
    """
    first = None
    for name, variant in variants.items():
        result = loss_and_gradients(variant)
        first = first or result
        differences = difference(first, result)
        sys.stdout.write(f"{name}: loss {result[0]:.6f}, {differences}\n")
        if not differences.is_rounding(getattr(torch, dtype)):
            raise SystemExit(f"{name}: the loss or the gradients differ from those of {next(iter(variants))}")


def seconds(step: Step | Callable[[], object]) -> float:
    """Return the time of a step in seconds: on a GPU until it is done, elsewhere CPU time, which other programs disturb less."""
    call = step.run if isinstance(step, Step) else step
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def peak_bytes(step: Step) -> int:
    """Return the maximum number of bytes of the tensors that a step allocates, as the allocator reports them."""
    step.run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.run()
        return torch.cuda.max_memory_allocated() - before
    return bytes_of_tensors(step.run)[0]


# The minimum


def minimum_flops(runner: RunnerBase, samples: list[Sample]) -> float:
    """Return the floating-point operations that no implementation of a step can avoid."""
    lengths = [len(sample.input_ids) for sample in samples]
    tokens, labelled = sum(lengths), sum(int((sample.labels != IGNORED).sum()) for sample in samples)
    config = runner.model.llm_config
    model: Any = runner.model  # a Protocol cannot require a base class
    frozen = trained = 0
    for name, weight in model.llama_model.named_parameters():
        if "_proj" in name:
            trained += weight.numel() * weight.requires_grad
            frozen += weight.numel() * (not weight.requires_grad)
    head = config.vocab_size * config.hidden_size
    # Each token attends to itself and to the tokens before it: products of queries and keys, and of weights and values.
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    attention = 4 * pairs * config.hidden_size * config.num_hidden_layers * 3
    # The feature vectors of each slot are multiplied by the weights of its projection, whose input needs no gradient.
    fusion = sum(4 * weight.numel() for weight in model.fusion.parameters()) * len(samples)
    return tokens * (4 * frozen + 6 * trained) + labelled * 4 * head + attention + fusion


def matmul_rate(runner: RunnerBase, samples: list[Sample]) -> float:
    """Return the operations per second of a product of the samples' tokens and the weights of an MLP."""
    config, device = runner.model.llm_config, runner.world.device
    tokens = sum(len(sample.input_ids) for sample in samples)
    dtype = torch.bfloat16 if runner.cfg.amp else torch.float32
    inputs = torch.randn(tokens, config.hidden_size, device=device, dtype=dtype)
    weight = torch.randn(config.intermediate_size, config.hidden_size, device=device, dtype=dtype)
    times = [seconds(lambda: torch.nn.functional.linear(inputs, weight)) for _ in range(12)]
    return 2 * inputs.numel() * config.intermediate_size / statistics.median(times[2:])


if __name__ == "__main__":
    main()
