"""How gpu_check.py times variants of the training step, attention and decoding."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from gpu_check_files import DEVICE, ON_GPU
from step_variants import BEST, HFOptions, difference, hf_step, loss_and_gradients, packed_step, set_up

from emollama.data.batch import Sample, collate
from emollama.data.loader import BatchLayout, WorkerOptions, step_batches, training_loader
from emollama.decoding.generate import generate
from emollama.decoding.sampling_params import SamplingParams
from emollama.models import attention
from emollama.models.attention import NAME as PACKED
from emollama.runners.runner_base import RunnerBase

MAX_STEPS = 40  # maximum number of timed steps of a variant
GIB = 2**30


@dataclass(frozen=True)
class Variant:
    """A variant of the training step.

    Attributes:
        name: the first column of the table.
        batch_size: number of samples of a step.
        recompute: whether activations are recomputed in the backward pass.
        hf: how Hugging Face code computes the step; None for the project's step.
        max_tokens: tokens of a micro-batch; None for one micro-batch.
        options: options of the run that the variant needs.
    """

    name: str
    batch_size: int
    recompute: bool = False
    hf: HFOptions | None = None
    max_tokens: int | None = None
    options: tuple[str, ...] = ()


class StepCounts(NamedTuple):
    """Tokens of a step without padding, its samples, and the seconds spent waiting for data."""

    tokens: int
    samples: int
    waited: float


# A function of the number of the step.
Step = Callable[[int], StepCounts]


@dataclass(frozen=True)
class Timing:
    """Means over the timed steps.

    Attributes:
        tokens: tokens per step.
        ms: milliseconds per step.
        samples_s: samples per second.
        tok_s: tokens per second.
        wait: share of time spent waiting for data.
        peak: peak memory in GiB.
    """

    tokens: float
    ms: float
    samples_s: float
    tok_s: float
    wait: float
    peak: float


def synchronize() -> None:
    """Wait until the GPU has finished its work."""
    if ON_GPU:
        torch.cuda.synchronize()


def time_variant(runner: RunnerBase, variant: Variant, samples: list[Sample], seconds: float, warmup: int) -> Timing | str:
    """Time the steps of a variant. Returns "out of memory" if it runs out of memory."""
    timing: Timing | str = "out of memory"
    try:
        timing = measure(
            own_step(runner, variant) if variant.hf is None else padded_step(runner, variant, samples), seconds, warmup
        )
    except torch.OutOfMemoryError:
        runner.optimizer.zero_grad(set_to_none=True)
    if ON_GPU:
        torch.cuda.empty_cache()
    return timing


def measure(step: Step, seconds: float, warmup: int) -> Timing:
    """Run the warm-up, then time at least two steps, and more until the time in seconds has passed."""
    for number in range(warmup):
        step(number)
    synchronize()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    start, sums, count = time.perf_counter(), np.zeros(3), 0
    while count < 2 or (time.perf_counter() - start < seconds and count < MAX_STEPS):
        sums += step(warmup + count)
        count += 1
    synchronize()
    elapsed = time.perf_counter() - start
    tokens, samples, waited = sums.tolist()
    peak = torch.cuda.max_memory_allocated() / GIB if ON_GPU else 0.0
    return Timing(tokens / count, 1e3 * elapsed / count, samples / elapsed, tokens / elapsed, waited / elapsed, peak)


def own_step(runner: RunnerBase, variant: Variant) -> Step:
    """Return the runner's own optimizer step on batches of its data loader."""
    set_up(runner, PACKED, variant.recompute)
    layout = BatchLayout(variant.batch_size, 1, 1, 0, variant.max_tokens, runner.layout.tasks_per_clip)
    options = WorkerOptions(runner.cfg.num_workers, ON_GPU)
    loader = training_loader(runner.samples, layout, options, first_step=0, end_step=9999)
    batches = step_batches(loader, layout.loads_per_step)

    def step(number: int) -> StepCounts:
        start = time.perf_counter()
        micro_batches = next(batches)
        waited = time.perf_counter() - start
        runner._step(number, micro_batches)
        return StepCounts(sum(len(batch.input_ids) for batch in micro_batches), variant.batch_size, waited)

    return step


def padded_step(runner: RunnerBase, variant: Variant, samples: list[Sample]) -> Step:
    """Return an optimizer step of Hugging Face code, whose batches are collated beforehand, so that it never waits for data."""
    assert variant.hf is not None
    if variant.hf.by_length:
        samples = sorted(samples, key=lambda sample: len(sample.input_ids))
    parts = [samples[start : start + variant.batch_size] for start in range(0, len(samples), variant.batch_size)]
    steps = [hf_step(runner, part, variant.batch_size, variant.hf) for part in parts]
    order = np.random.default_rng(0).permutation(len(parts))

    def step(number: int) -> StepCounts:
        index = order[number % len(parts)]
        steps[index].run()
        return StepCounts(sum(len(sample.input_ids) for sample in parts[index]), len(parts[index]), 0.0)

    return step


def compare(runner: RunnerBase, plain: RunnerBase, samples: list[Sample]) -> str:
    """Return a line with loss and gradients of the project's step and of Hugging Face's, on the same samples without dropout."""
    steps = packed_step(runner, samples, len(samples), recompute=False), hf_step(plain, samples, len(samples), BEST)
    packed, padded = map(loss_and_gradients, steps)
    differences = difference(padded, packed)
    verdict = "" if differences.is_rounding(runner.precision.frozen_dtype) else " MORE THAN ROUNDING"
    return f"loss packed {packed[0]:.6f}, padded sdpa {padded[0]:.6f}, {differences}{verdict}"


def time_attention(count: int = 16) -> list[str]:
    """Return lines with the times of one layer's attention, both ways: for new lengths of the sequences, and for the same again.

    The project uses the flash kernel. For comparison, PyTorch may also choose cuDNN, as it does by default.
    """
    heads, width = (32, 128) if ON_GPU else (2, 8)
    rng = np.random.default_rng(0)
    lengths = [rng.integers(8 * width // 4, 5 * width, rng.integers(6, 13)).tolist() for _ in range(count)]
    dtype = torch.bfloat16 if ON_GPU else torch.float32
    lines = []
    for name, context in (("flash", attention._without_cudnn), ("PyTorch's choice", nullcontext)):
        with patch.object(attention, "_without_cudnn", context):
            times = [[_seconds_of_attention(each, heads, width, dtype) for each in lengths] for _ in range(3)]
        new, again = (1e3 * float(np.mean(part)) for part in (times[0][1:], times[2][1:]))
        lines.append(f"attention, {name}: {new:.2f} ms for new lengths, {again:.2f} ms for the same again")
    return lines


def _seconds_of_attention(lengths: list[int], heads: int, width: int, dtype: torch.dtype) -> float:
    parts = [torch.randn(1, heads, sum(lengths), width, device=DEVICE, dtype=dtype, requires_grad=True) for _ in range(3)]
    seams = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    options = {"cu_seqlens": seams, "max_length": max(lengths), "lengths": lengths}
    synchronize()
    start = time.perf_counter()
    attention.packed_attention(torch.nn.Module(), *parts, None, **options)[0].sum().backward()
    synchronize()
    return time.perf_counter() - start


def time_decoding(runner: RunnerBase, batch_size: int, new_tokens: int, *, is_hf: bool) -> str:
    """Time greedy decoding of one batch with Hugging Face's generate or with the project's own loop."""
    dataset = next(iter(runner.datasets.values()))
    instruction = dataset.pool.first_instruction("reason")
    records = [dataset.record(index % len(dataset), "reason", instruction) for index in range(batch_size)]
    batch = collate([runner.prompt.tokenize(record, for_generation=True) for record in records]).to(runner.world.device)

    def decode() -> None:
        if is_hf:
            options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "num_beams": 1, "do_sample": False}
            runner.model.beam_search(batch, runner.prompt, options)
        else:
            generate([runner.model], batch, SamplingParams(new_tokens), lambda ids: False, [])

    with runner.precision.autocast():
        # The first call warms up.
        decode()
        synchronize()
        start = time.perf_counter()
        decode()
        synchronize()
    elapsed = time.perf_counter() - start
    name = "HF generate" if is_hf else "emollama   "
    rate, milliseconds = batch_size * new_tokens / elapsed, 1e3 * elapsed / new_tokens
    return f"{name} batch {batch_size:3d}: {rate:7.0f} tok/s, {milliseconds:6.1f} ms per token"
