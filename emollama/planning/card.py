"""Whether a run fits on a GPU, and the largest micro-batches that do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from emollama.logs.console import Progress
from emollama.memory import GIB
from emollama.parallel_modes import ParallelMode
from emollama.planning.memory import OF_TOKENS, OVERHEAD
from emollama.planning.planner import Planner
from emollama.recomputation import BUSY_TOKENS, MOST_TOKENS, USABLE, fewest_recomputed

FIXED = ("frozen weights", "frozen encoders", "trained weights (float32)", *OVERHEAD)
STEP = 64  # tokens; the micro-batches that are tried are multiples of it
MOST = 65_536  # tokens; no larger micro-batch is tried
MARGIN = 0.005  # share by which a size is tried below the expected one, so that it fits
CLOSE = 0.01  # share by which a further size must be larger, so that it is tried
TRIES = 8  # limit for memory that does not grow like a line; three or four are usual
SIZES = (2, 4, 8, 16, 32, 64)  # numbers of GPUs that are proposed


@dataclass(frozen=True)
class Card:
    """What fits on a GPU.

    Attributes:
        gib: memory of the GPU.
        needed_gib: memory that it must have for the configuration.
        fits: whether it has it.
        recomputation: value of ``model.use_grad_checkpoint`` -> largest ``run.max_tokens``; None if not even one sample fits.
        verdict: "fits" or "does not fit", with the margin or what to change.
    """

    gib: float
    needed_gib: float
    fits: bool
    recomputation: dict[str, int | None]
    verdict: str


def required_bytes(parts: Mapping[str, float]) -> float:
    """Return the bytes that a GPU must have: a part of the memory of a step is lost in unused blocks of the allocator.

    Args:
        parts: component -> bytes.
    """
    fixed = sum(parts.get(name, 0) for name in FIXED)
    return fixed + (sum(parts.values()) - fixed) / USABLE


def card(planner: Planner, gib: float, mode: ParallelMode, progress: Progress) -> Card:
    """Return what fits on a GPU with this memory.

    Args:
        planner: the run. Where its keys are ``auto``, it gets the values that a run would choose on this GPU.
        gib: memory of the GPU in GiB.
        mode: the value of ``run.parallel``.
        progress: gets one item for each of the planner's choices.
    """
    trains = bool(planner.config.datasets)
    by_choice: dict[int, int | None] = {}
    for every in planner.choices if trains else ():
        # The choices are sorted by memory, so that what fits with one of them fits with the next one.
        start = max((tokens for tokens in by_choice.values() if tokens), default=planner.micro_batch.tokens)
        by_choice[every] = largest_tokens(planner, every, gib, mode, start)
        progress.update()
    largest = {_key(every): tokens for every, tokens in by_choice.items()}
    chosen = choose(planner, by_choice, gib, mode) if trains else ""
    needed = required_bytes(planner.needed(planner.every, planner.micro_batch, mode))
    fits, margin = needed <= gib * GIB, gib - needed / GIB
    place = f" with run.parallel: {mode}" if planner.gpus > 1 else ""
    verdict = f"fits{place}{chosen}: {margin:.1f} GiB remain"
    if not fits:
        verdict = f"does not fit{place}: it needs {-margin:.1f} GiB more. {_remedies(planner, gib, mode, largest)}"
    return Card(gib, needed / GIB, fits, largest, verdict)


def choose(planner: Planner, largest: Mapping[int, int | None], gib: float, mode: ParallelMode) -> str:
    """Replace ``auto`` by what a run would choose on a GPU with this memory, and return words about it.

    Args:
        planner: the run.
        largest: the result of :func:`largest_tokens` for each of the planner's choices.
        gib: memory of the GPU in GiB.
        mode: the value of ``run.parallel``.
    """
    run, key, batch = planner.config.run, planner.config.model.use_grad_checkpoint, planner.micro_batch
    if not planner.can_choose_layers:
        # A run then recomputes all layers, and has the smallest micro-batches, as the planner assumes for auto.
        return ""
    choices = planner.choices if key == "auto" else (planner.every,)
    if run.max_tokens != "auto":

        def fitting(every: int) -> int | None:
            return batch.tokens if required_bytes(planner.needed(every, batch, mode)) <= gib * GIB else None

        planner.every, _ = fewest_recomputed(choices, batch.tokens, fitting)
    else:
        most = max(batch.tokens, min(MOST_TOKENS, batch.of_step * planner.sample.total))

        def fitting(every: int) -> int | None:
            tokens = largest[every] if every in largest else largest_tokens(planner, every, gib, mode)
            return min(tokens, most) if tokens is not None and tokens >= batch.tokens else None

        planner.every, tokens = fewest_recomputed(choices, min(BUSY_TOKENS, most), fitting)
        planner.max_tokens = tokens or planner.max_tokens
    words = [f"run.max_tokens: auto, which is {planner.max_tokens}"] if run.max_tokens == "auto" else []
    words += [f"model.use_grad_checkpoint: auto, which recomputes {recomputed_words(planner.every)}"] if key == "auto" else []
    return f" with {', and '.join(words)}" if words else ""


def largest_tokens(planner: Planner, every: int, gib: float, mode: ParallelMode, start: int = 0) -> int | None:
    """Return nearly the largest micro-batch that fits on a GPU, in tokens, at most MOST; None if a single sample does not fit.

    Args:
        planner: the run.
        every: every how many layers one is recomputed.
        gib: memory of the GPU in GiB.
        mode: the value of ``run.parallel``.
        start: the size that is tried first.
    """
    budget, least = gib * GIB, planner.sample.total
    tokens = max(least, min(start, MOST))
    low: tuple[int, float] | None = None  # (tokens, bytes) of the largest size that fits, first of a step without tokens
    high: tuple[int, float] | None = None  # of the smallest size that does not fit
    for _ in range(TRIES):
        parts = planner.needed(every, planner.micro_batch_of(tokens), mode)
        if low is None:
            low = 0, required_bytes({name: value for name, value in parts.items() if name not in OF_TOKENS})
        before = low
        size = tokens, required_bytes(parts)
        if size[1] <= budget:
            low = size
        elif tokens == least:
            return None
        else:
            high = size
        # The memory is nearly a line through any two sizes.
        (first, of_first), (second, of_second) = (low, high) if high else (before, low)
        aim = first + (second - first) * (budget - of_first) / (of_second - of_first) if of_second > of_first else math.inf
        tokens = max(least, int(min(aim * (1 - MARGIN), high[0] - 1 if high else MOST)) // STEP * STEP)
        if low[0] and tokens - low[0] <= max(STEP, CLOSE * low[0]):
            break
    return low[0] if low and low[0] else None


def _key(every: int) -> str:
    return {0: "False", 1: "True"}.get(every, str(every))


def recomputed_words(every: int) -> str:
    """Return words for the layers that are recomputed, of which every n-th one is."""
    return {0: "no layers", 1: "all layers"}.get(every, f"one layer in {every}")


def _remedies(planner: Planner, gib: float, mode: ParallelMode, largest: Mapping[str, int | None]) -> str:
    """Return what to change, so that the run fits."""
    cfg, ways = planner.config.model, []
    batch = planner.micro_batch
    if largest and planner.every != 1 and required_bytes(planner.needed(1, batch, mode)) <= gib * GIB:
        ways.append("model.use_grad_checkpoint: True")
    elif tokens := largest.get("True"):
        recompute = "" if planner.every == 1 else "model.use_grad_checkpoint: True and "
        ways.append(f"{recompute}run.max_tokens: {tokens}")
    if planner.can_shard and (number := _gpus_with_sharding(planner, gib)):
        ways.append(f"run.parallel: fsdp on {number} GPUs")
    if cfg.train_llm == "full":
        ways.append("model.train_llm: lora")
    elif not (cfg.load_in_4bit or cfg.low_resource or cfg.frozen_dtype == "fp8"):
        ways.append("model.load_in_4bit: True")
    return f"Set {', or '.join(ways)}." if ways else "Use GPUs with more memory."


def _gpus_with_sharding(planner: Planner, gib: float) -> int | None:
    """Return the smallest number of GPUs on which the run fits with ``run.parallel: fsdp``; None if none does."""
    before = planner.gpus
    try:
        for planner.gpus in (size for size in SIZES if size >= before):
            if required_bytes(planner.needed(planner.every, planner.micro_batch, "fsdp")) <= gib * GIB:
                return planner.gpus
        return None
    finally:
        planner.gpus = before
