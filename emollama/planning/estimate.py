"""The plan of a run: its parameters, the memory on each GPU, the tokens of a sample, time and disk space.

The model is built on the meta device from the language model's config.json; neither weights nor data are read. The numbers of
parameters are exact, and the memory of a step is counted (:mod:`emollama.planning.counting`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from emollama.components import Model
from emollama.config import RunConfig
from emollama.listing import counted
from emollama.logs.console import Progress, aligned, duration
from emollama.memory import GIB
from emollama.parallel_modes import PARALLEL_MODES, ParallelMode
from emollama.planning import memory
from emollama.planning.card import MOST, Card, card, recomputed_words
from emollama.planning.disk import Disk, disk_of
from emollama.planning.parameters import group_title
from emollama.planning.planner import Planner
from emollama.planning.samples import ANSWER_TOKENS, SENTENCE_TOKENS
from emollama.recomputation import CHOICES


@dataclass(frozen=True)
class Plan:
    """Parameters, memory, tokens, time and disk space of a run.

    Attributes:
        parameters: group -> number of parameters.
        memory_gib: component -> memory in GiB on each GPU, with ``run.parallel`` of the configuration.
        tokens: part of a sample -> number of tokens.
        notes: the assumptions.
        modes: value of ``run.parallel`` -> component -> memory in GiB on each GPU; empty for a single one.
        received_gib: value of ``run.parallel`` -> GiB that each GPU receives from the others in a step.
        step_tflop: 10^12 floating-point operations of a training step on each GPU; 0 for an evaluation.
        seconds: time of all training steps at a stated rate; None without one.
        disk: the checkpoints of a training run; None for an evaluation.
        card: what fits on a GPU; None if no memory of one is stated.
    """

    parameters: dict[str, int]
    memory_gib: dict[str, float]
    tokens: dict[str, int]
    notes: list[str]
    modes: dict[str, dict[str, float]] = field(default_factory=dict)
    received_gib: dict[str, float] = field(default_factory=dict)
    step_tflop: float = 0.0
    seconds: float | None = None
    disk: Disk | None = None
    card: Card | None = None

    def text(self) -> str:
        """Return the numbers as tables."""
        sections = self._sections()
        width = max(len(cells) for _, rows in sections for cells in rows)
        # A single table, so that the columns of all sections are aligned.
        table = iter(aligned([[*cells, *[""] * (width - len(cells))] for _, rows in sections for cells in rows]))
        lines = []
        for title, rows in sections:
            lines += [title, *(f"  {next(table)}".rstrip() for _ in rows), ""]
        lines += [f"verdict: {self.card.verdict}", ""] if self.card else []
        return "\n".join([*lines, *(f"* {note}" for note in self.notes)])

    def _sections(self) -> list[tuple[str, list[list[str]]]]:
        """Return title -> rows of cells."""
        parameters = [[group_title(name), f"{count:,}"] for name, count in self.parameters.items()]
        tokens = [[name.replace("rows: ", "feature tokens: "), f"{count:,}"] for name, count in self.tokens.items()]
        tokens.append(["sum", f"{sum(self.tokens.values()):,}"])
        sections = [
            ("Parameters", parameters),
            ("Memory per GPU (GiB, estimated)", self._memory_rows()),
            ("Tokens of a sample", tokens),
        ]
        if self.disk:
            sections.append(("Disk space of the checkpoints", self.disk.rows()))
        if self.step_tflop:
            rows = [["floating-point operations of a step per GPU", f"{self.step_tflop:,.1f} x 10^12"]]
            rows += [["all steps, at the stated rate", duration(self.seconds)]] if self.seconds else []
            sections.append(("Time", rows))
        if self.card and self.card.recomputation:
            largest = self.card.recomputation.items()
            rows = [[f"use_grad_checkpoint: {key}", _largest(tokens) if tokens else "-"] for key, tokens in largest]
            sections.append((f"Largest run.max_tokens on a GPU with {self.card.gib:g} GiB", rows))
        return sections

    def _memory_rows(self) -> list[list[str]]:
        columns = self.modes or {"": self.memory_gib}
        names = dict.fromkeys(name for parts in columns.values() for name in parts if name != "sum")
        rows = [["run.parallel", *columns]] if self.modes else []
        rows += [[name, *(_gib(parts.get(name)) for parts in columns.values())] for name in (*names, "sum")]
        if self.received_gib:
            rows.append(["received from other GPUs in a step", *map(_gib, self.received_gib.values())])
        return rows


def _largest(tokens: int) -> str:
    return f"{tokens:,} or more" if tokens >= MOST else f"{tokens:,}"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def plan(
    config: RunConfig,
    *,
    gpus: int = 1,
    device: str | None = None,
    gpu_gib: float | None = None,
    tflops: float | None = None,
    check: Callable[[Model], None] = lambda model: None,
) -> Plan:
    """Build the model on the meta device and compute the numbers.

    Args:
        config: the resolved configuration. The folder ``model.llama_model`` must contain a config.json; with a tokenizer, the
            number of text tokens is exact.
        gpus: number of GPUs, or of processes on a CPU.
        device: type of the device: cuda or cpu. If None, it is a GPU unless ``run.device`` is cpu, whether this machine has one
            or not.
        gpu_gib: memory of a GPU, for the verdict; None for no verdict.
        tflops: 10^12 floating-point operations that a GPU computes per second in a step; None for no time.
        check: called with the model on the meta device, before a step is counted.

    Raises:
        UserError: If the folder does not exist, or the configuration is inconsistent.
    """
    mode: ParallelMode = config.run.parallel
    # Some language models take a minute, because their code has many operations.
    with Progress(2 + (len(CHOICES) if gpu_gib else 0), "plan") as progress:
        planner = Planner(config, gpus, device or ("cpu" if config.run.device == "cpu" else "cuda"))
        check(planner.model)
        # A model with few layers has fewer choices.
        progress.update(1 + (len(CHOICES) - len(planner.choices) if gpu_gib else 0))
        # Where the configuration says auto, the rest of the plan is for what a run would choose on this GPU.
        fitting = card(planner, gpu_gib, mode, progress) if gpu_gib else None
        run = planner.run(planner.every, planner.micro_batch)
        progress.update()

    def in_gib(chosen: ParallelMode) -> dict[str, float]:
        parts = memory.components(run, planner.sharding(chosen))
        return {name: size / GIB for name, size in (parts | {"sum": sum(parts.values())}).items()}

    possible: list[ParallelMode] = ["ddp"]
    if planner.can_shard:
        possible += ["fsdp", "hsdp"] if planner.sharding("hsdp").shards < gpus else ["fsdp"]
    modes = [each for each in PARALLEL_MODES if each in possible or each == mode] if gpus > 1 else []
    tflop = 0.0
    if run.step:
        tflop = run.step.flops / 1e12 * run.batch.of_step * planner.sample.total / run.batch.tokens
    steps = config.run.max_epoch * config.run.iters_per_epoch
    return Plan(
        parameters=planner.parameters,
        memory_gib=in_gib(mode),
        tokens=planner.sample.by_part,
        notes=[*planner.notes, *_notes(planner, gpu_gib)],
        modes={each: in_gib(each) for each in modes},
        received_gib={each: memory.received_bytes(run, planner.sharding(each)) / GIB for each in modes if run.step},
        step_tflop=tflop,
        seconds=steps * tflop / tflops if run.step and tflops else None,
        disk=disk_of(config, planner.parameters["trainable"]) if run.step else None,
        card=fitting,
    )


def _notes(planner: Planner, gpu_gib: float | None) -> list[str]:
    """Return the assumptions about the run."""
    batch, config = planner.micro_batch, planner.config
    notes = [f"trained tensors: {', '.join(planner.trained_names)}"]
    tokens = f"{batch.tokens:,} tokens in " if config.datasets and config.run.max_tokens else ""
    texts = f"a sentence of {SENTENCE_TOKENS} tokens and an answer of {ANSWER_TOKENS} tokens"
    limit = config.run.max_tokens if config.datasets else None
    if isinstance(limit, int) and limit < planner.sample.total:
        notes.append(
            f"run.max_tokens is {limit}, less than the {planner.sample.total} tokens of a sample with {texts}, so that the memory"
            " is for micro-batches of one shorter sample. The run rejects longer ones: emollama train --dry-run checks the data"
        )
    else:
        notes.append(f"the memory is for micro-batches of {tokens}{counted(batch.samples, 'sample')}, each with {texts}")
    reason = f"as a run chooses on a GPU with {gpu_gib:g} GiB" if gpu_gib else "which needs the least memory; see --gpu"
    if config.datasets and config.model.use_grad_checkpoint == "auto":
        notes.append(f"model.use_grad_checkpoint: auto is planned as recomputing {recomputed_words(planner.every)}, {reason}")
    if config.datasets and config.run.max_tokens == "auto":
        notes.append(f"run.max_tokens: auto is planned as {planner.max_tokens}, {reason}")
    if config.datasets and config.model.compile:
        notes.append("the step is counted without the compilation of model.compile: True")
    if planner.can_shard and planner.gpus > (shards := planner.sharding("hsdp").shards):
        groups = planner.gpus // shards
        text = f"run.parallel: hsdp is planned for {groups} x {shards} GPUs: {groups} groups, each of which divides the weights"
        notes.append(f"{text} among its {shards} GPUs")
    if planner.on_gpu:
        text = "the memory of the CUDA context{} is an assumption; weights, optimizer and activations are counted"
        notes.append(text.format(" and of NCCL" if planner.gpus > 1 else ""))
    return notes
