"""The loading of micro-batches from global sample indices."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from emollama.data.batch import Batch, Sample, collate
from emollama.data.dataset import SampleDataset
from emollama.data.prompts.prompt import PromptFormat
from emollama.data.sampling import MixtureSampler
from emollama.data.workers import PREFETCH, WorkerReports, require_space_for_workers
from emollama.errors import UserError


class TrainingSamples(Dataset[Sample]):
    """Map-style dataset of a training run: item i is the sample with the global index i."""

    def __init__(self, datasets: Sequence[SampleDataset], prompt: PromptFormat, sampler: MixtureSampler) -> None:
        self.datasets = datasets
        self.prompt = prompt
        self.sampler = sampler
        self.reports = WorkerReports()

    def __getitem__(self, index: int) -> Sample:
        ref = self.sampler.at(index)
        dataset = self.datasets[ref.dataset]
        task, instruction = dataset.pool.draw(ref.rng)
        with self.reports.reading(index):
            sample = self.prompt.tokenize(dataset.record(ref.index, task, instruction, ref.rng), rng=ref.rng)
        return replace(sample, dropout_seed=ref.dropout_seed)

    def description(self, index: int) -> str:
        """Return the name of the sample with a global index, for messages."""
        ref = self.sampler.at(index)
        return f"sample '{list(self.datasets[ref.dataset].names())[ref.index]}'"


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is split over ranks and micro-batches.

    Attributes:
        batch_size: samples per micro-batch on one rank.
        accumulate: micro-batches per step on one rank.
        world, rank: number of processes, and the index of this one.
    """

    batch_size: int
    accumulate: int
    world: int
    rank: int

    @property
    def global_batch(self) -> int:
        """Number of samples per optimizer step over all ranks."""
        return self.batch_size * self.accumulate * self.world

    def sample_indices(self, first_step: int, end_step: int) -> Iterator[list[int]]:
        """Yield the micro-batches of this rank in these steps, each as a list of global sample indices."""
        for step in range(first_step, end_step):
            for micro in range(self.accumulate):
                first = step * self.global_batch + (micro * self.world + self.rank) * self.batch_size
                yield list(range(first, first + self.batch_size))


class _BatchSampler:
    """The batch sampler of a training run; its length gives the data loader a length."""

    def __init__(self, layout: BatchLayout, first_step: int, end_step: int) -> None:
        self._arguments = (layout, first_step, end_step)

    def __iter__(self) -> Iterator[list[int]]:
        layout, first_step, end_step = self._arguments
        return layout.sample_indices(first_step, end_step)

    def __len__(self) -> int:
        layout, first_step, end_step = self._arguments
        return max(0, end_step - first_step) * layout.accumulate


@dataclass(frozen=True)
class WorkerOptions:
    """How a process loads its batches.

    Attributes:
        num_workers: number of data workers; 0 loads in this process.
        pin_memory: whether batches are copied to page-locked memory.
        hang_seconds: time after which the process stops waiting for a batch of a worker; 0 waits forever.
    """

    num_workers: int = 0
    pin_memory: bool = False
    hang_seconds: float = 0.0


def training_loader(
    samples: TrainingSamples, layout: BatchLayout, options: WorkerOptions, *, first_step: int, end_step: int
) -> DataLoader[Batch]:
    """Return a data loader of all remaining steps."""
    num_workers = options.num_workers
    if num_workers:
        samples.reports.open()
    return DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=_BatchSampler(layout, first_step, end_step),
        collate_fn=collate,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        pin_memory=options.pin_memory,
        timeout=options.hang_seconds if num_workers else 0,
        # Without a generator of its own, the loader would draw a seed from torch's global generator.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=samples.reports.start,
    )


def first_batch(samples: TrainingSamples, layout: BatchLayout, first_step: int) -> Batch:
    """Return the first micro-batch of this rank from a step on, loaded in this process."""
    return collate([samples[index] for index in next(layout.sample_indices(first_step, first_step + 1))])


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one seed."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def step_batches(loader: DataLoader[Batch], accumulate: int) -> Iterator[list[Batch]]:
    """Yield the list of ``accumulate`` micro-batches of each step.

    Raises:
        UserError: If data workers cannot be started, or if one raised it; the message does not contain the worker's traceback.
    """
    if loader.num_workers:
        # A forked worker would collect the parent's garbage. The destructor of a decoded video frame then waits forever for
        # threads that exist only in the parent.
        gc.collect()
        require_space_for_workers(loader.num_workers)
    try:
        batches = iter(loader)
    except OSError as error:
        raise UserError(f"data workers cannot be started: {error.strerror or error}. Lower run.num_workers.") from error
    try:
        while step := list(islice(batches, accumulate)):
            yield step
    except UserError as error:
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
