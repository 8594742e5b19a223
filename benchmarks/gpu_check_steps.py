"""The training steps that gpu_check.py times: the project's own step, and a step of Hugging Face code on padded batches.

Shape letters: B = samples, W = tokens of the longest sample, H = width of the language model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gpu_check_files import ON_GPU
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emollama.data.batch import IGNORED, Batch, Sample, collate
from emollama.data.loader import BatchLayout, WorkerOptions, step_batches, training_loader
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
        checkpointing: whether activations are recomputed in the backward pass.
        attention: attention implementation of the language model.
        padded: whether Hugging Face's forward pass and loss on padded batches replace the project's step.
        by_length: whether the samples of a padded batch have similar lengths.
    """

    name: str
    batch_size: int
    checkpointing: bool
    attention: str = PACKED
    padded: bool = False
    by_length: bool = False


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


def time_variant(runner: RunnerBase, variant: Variant, samples: list[Sample], seconds: float, warmup: int) -> Timing | None:
    """Time the steps of a variant. Returns None if it runs out of memory."""
    set_up(runner, variant.attention, variant.checkpointing)
    timing = None
    try:
        step = padded_step(runner, variant, samples) if variant.padded else own_step(runner, variant.batch_size)
        timing = measure(step, seconds, warmup)
    except torch.OutOfMemoryError:
        runner.optimizer.zero_grad(set_to_none=True)
    if ON_GPU:
        torch.cuda.empty_cache()
    return timing


def set_up(runner: RunnerBase, attention: str, checkpointing: bool) -> None:
    """Set the attention implementation and gradient checkpointing of the language model."""
    llm: Any = runner.model.llama_model
    llm.get_base_model().set_attn_implementation(attention)
    for module in llm.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = checkpointing


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


def own_step(runner: RunnerBase, batch_size: int) -> Step:
    """Return the runner's own optimizer step on batches of its data loader."""
    layout, options = BatchLayout(batch_size, accumulate=1, world=1, rank=0), WorkerOptions(runner.cfg.num_workers, ON_GPU)
    loader = training_loader(runner.samples, layout, options, first_step=0, end_step=9999)
    batches = step_batches(loader, 1)

    def step(number: int) -> StepCounts:
        start = time.perf_counter()
        micro_batches = next(batches)
        waited = time.perf_counter() - start
        runner._step(number, micro_batches)
        return StepCounts(len(micro_batches[0].input_ids), batch_size, waited)

    return step


def padded_step(runner: RunnerBase, variant: Variant, samples: list[Sample]) -> Step:
    """Return an optimizer step with padding, logits of all tokens and Hugging Face's loss.

    The batches are collated beforehand, so that the step never waits for data.
    """
    if variant.by_length:
        samples = sorted(samples, key=lambda sample: len(sample.input_ids))
    starts = range(0, len(samples), variant.batch_size)
    batches = [collate(samples[start : start + variant.batch_size]) for start in starts]
    order = np.random.default_rng(0).permutation(len(batches))

    def step(number: int) -> StepCounts:
        batch = batches[order[number % len(batches)]].to(runner.world.device)
        with runner.precision.autocast():
            embeddings, mask, labels = pad(runner, batch)
            loss = runner.model.llama_model(inputs_embeds=embeddings, attention_mask=mask, labels=labels).loss
        loss.backward()
        runner.parallel.clip_grad_norm(None)
        runner.optimizer.step()
        runner.optimizer.zero_grad(set_to_none=True)
        return StepCounts(len(batch.input_ids), len(batch.names), 0.0)

    return step


def pad(runner: RunnerBase, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pad a packed batch on the right: return embeddings (B, W, H), attention mask (B, W) and labels (B, W)."""
    lengths = batch.lengths
    embeddings = pad_sequence(list(cast(Any, runner.model)._embed(batch).split(lengths)), batch_first=True)
    labels = pad_sequence(list(batch.labels.split(lengths)), batch_first=True, padding_value=IGNORED)
    mask = torch.arange(labels.shape[1], device=labels.device) < torch.tensor(lengths, device=labels.device)[:, None]
    return embeddings, mask.long(), labels


@torch.no_grad()
def compare_losses(runner: RunnerBase, plain: RunnerBase, samples: list[Sample]) -> str:
    """Return a line with the mean losses of the same samples packed and padded, without dropout."""
    batch = collate(samples).to(runner.world.device)
    runner.model.eval()
    plain.model.eval()
    with runner.precision.autocast():
        packed = runner.model(batch).mean().item()
        set_up(plain, "sdpa", checkpointing=False)
        embeddings, mask, labels = pad(plain, batch)
        logits = plain.model.llama_model(inputs_embeds=embeddings, attention_mask=mask).logits[:, :-1].float()
    padded = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED).item()
    runner.model.train()
    plain.model.train()
    return f"loss packed {packed:.6f}, padded sdpa {padded:.6f}, relative difference {abs(packed - padded) / padded:.2e}"
